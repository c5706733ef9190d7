"""A pretrained image classifier after conversion: what it still gets right, its bytes, its speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitbench.analysis.statistics import Estimate
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import in_percent, in_points, percent_interval, plain
from bitbench.report.overview import HEAD_IS, STEM_IS, head_cells
from bitbench.report.speed import CELL, speed_cell
from bitbench.report.tables import Cell, Column, Section, Table, absent, figure_cell, name_cell, without_empty
from bitbench.store.schema import all_params
from bitbench.suite.expand import counted

_PLACE = ("model", "images", "stem", "head")


def images(summary: Summary) -> Section | None:
    """Section ``images``; None where no classifier was converted."""
    cases = summary.select("image_accuracy")
    if not cases:
        return None
    scored = [case for case in cases if case.case.replicate == "images"]
    bytes_of = {(case.case.layer, _place(case)): case for case in cases if case.case.replicate == "exact"}
    timed = {
        (case.case.layer, _place(case), case.case.params["batch"]): case
        for case in cases
        if case.case.phase == "timed"
    }
    batches = sorted({batch for _, _, batch in timed})
    columns = [
        Column("Layer", numeric=False),
        Column("Network", numeric=False),
        STEM_IS,
        HEAD_IS,
        Column(
            "Norms",
            "statistics of the batch norms: as trained, or taken anew after conversion, on training images",
            numeric=False,
        ),
        Column("Accuracy", "share of the test images classified right; Wilson's 95 % interval over images"),
        Column("Change", f"in percentage points from {summary.baseline}, image by image; 95 % interval"),
        Column("Images", "test images scored"),
        Column("Bits per weight", "of the replaced weights, scales included"),
        Column("Weight ratio", "fp32 bytes of the replaced weights / (codes + scales)"),
        Column("Whole network", "fp32 bytes of the network / its bytes, what stays float included"),
        *(
            Column(f"{counted(batch, 'image')} at once", f"images a second of the whole network; {CELL}")
            for batch in batches
        ),
        Column("Computed by", "case that computed the accuracy, where the numerics are equal", numeric=False),
    ]
    rows = []
    for case, stem, head in zip(scored, head_cells(scored, "stem"), head_cells(scored), strict=True):
        key = case.case.layer, _place(case)
        rows.append(
            [
                name_cell(case.case.layer),
                Cell(str(case.case.params["model"]), (str(case.case.params["images"]),)),
                stem,
                head,
                _norms(case, scored),
                *_quality(case, summary),
                *_size(bytes_of.get(key)),
                *(_rate(timed.get((*key, batch)), summary) for batch in batches),
                Cell(case.shared_from or "itself", tone="muted", case=case.shared_from)
                if case.ok
                else absent(case.status),
            ]
        )
    table = Table(
        "images",
        "Image classification after conversion, without retraining",
        columns,
        rows,
        _note(scored),
        filterable=True,
    )
    return Section("images", "A converted image classifier", [], [without_empty(table)])


def _place(case: CaseSummary) -> tuple[Any, ...]:
    params = all_params(case.case.workload, case.case.params)
    return tuple(params[name] for name in _PLACE)


def _norms(case: CaseSummary, scored: Sequence[CaseSummary]) -> Cell:
    if not any("calibration" in other.case.params for other in scored):
        return absent()
    number = case.case.params.get("calibration")
    return Cell("as trained" if number is None else f"of {counted(number, 'image')}")


def _note(cases: Sequence[CaseSummary]) -> str:
    ends = {place[2:] for place in map(_place, cases)}
    said = (
        "The first convolution and the head stay float32"
        if ends == {("float", "float")}
        else "The first convolution and the head are left float32 where they say `float`"
    )
    if any("calibration" in case.case.params for case in cases):
        said += "; where the norms are not as trained, no weight was changed either"
    return (
        f"{said}; norms, sums and ReLU are float32 in every network. A change whose interval holds 0 is none "
        "that these images can show."
    )


def _quality(case: CaseSummary, summary: Summary) -> list[Cell]:
    if not case.ok:
        return [absent(case.status) for _ in range(3)]
    found = case.value("quality.accuracy")
    accuracy = (
        absent()
        if found is None
        else Cell(in_percent(found), _below(found), sort=found.value, case=case.case.id)
    )
    scored = figure_cell(case.value("quality.images"), case=case.case.id)
    return [accuracy, _change(case, summary), scored]


def _change(case: CaseSummary, summary: Summary) -> Cell:
    if case.case.layer == summary.baseline:
        return Cell("0", sort=0.0, case=case.case.id)
    found = case.value("quality.accuracy_change")
    if found is None or found.low is None or found.high is None:
        return absent()
    tone = "bad" if found.high < 0 else "good" if found.low > 0 else "muted"
    return Cell(in_points(found), _below(found), sort=found.value, tone=tone, case=case.case.id)


def _below(found: Estimate) -> tuple[str, ...]:
    return tuple(line for line in (percent_interval(found),) if line)


def _size(case: CaseSummary | None) -> list[Cell]:
    if case is None or not case.ok:
        return [absent("" if case is None else case.status) for _ in range(3)]
    return [
        figure_cell(case.value("memory.bits_per_weight"), case=case.case.id),
        figure_cell(case.value("memory.weight_ratio"), "x", case=case.case.id),
        figure_cell(case.value("memory.model_ratio"), "x", case=case.case.id),
    ]


def _rate(case: CaseSummary | None, summary: Summary) -> Cell:
    if case is None or not case.ok:
        return speed_cell(summary, case)
    rate = case.value("inference.images_per_second")
    if rate is None:
        return absent()
    below = speed_cell(summary, case)
    return Cell(f"{plain(rate.value)}/s", (below.text, *below.notes), rate.value, below.tone, case.case.id)
