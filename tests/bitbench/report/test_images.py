"""A converted image classifier in reports: accuracy with its interval beside bytes and speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitbench.analysis.claims import ClaimStatus, evaluate_claim
from bitbench.analysis.figures import figures_of_summary
from bitbench.analysis.moved import compare_figure
from bitbench.analysis.summary import Summary, summarise
from bitbench.report.context import context_of
from bitbench.report.csv import render as csv
from bitbench.report.html import render as html
from bitbench.report.images import images
from bitbench.report.markdown import render as markdown
from bitbench.report.overview import overview
from bitbench.report.tables import Cell, Table
from bitbench.store.reader import RunData
from bitbench.store.schema import CodeIdentity, Record, RunInfo, Status
from bitbench.suite.expand import expand
from bitbench.suite.schema import Claim, Suite

LAYERS: dict[str, Any] = {
    "linear": {"kind": "linear"},
    "ternary": {"kind": "ternary"},
    "two-bit": {"kind": "ternary", "format": "two_bit"},
    "k3": {"kind": "k_ternary", "k": 3},
    "int8": {"kind": "torch_int8"},
}
ENTRY = {"kind": "image_accuracy", "model": "cifar-resnet18", "images": "cifar10"}
COUNT = 2000
WRONG = {"linear": 60, "ternary": 1800, "k3": 64}
"""The first so many images are wrong."""
SECONDS = {"linear": 8e-3, "ternary": 2e-3, "two-bit": 2e-3, "k3": 4e-3}


def summary_of(workloads: list[dict[str, Any]], *, quick: bool = False) -> Summary:
    suite = Suite.model_validate(
        {"schema": 1, "name": "vision", "baseline": "linear", "launches": 3, "layers": LAYERS}
        | {"workloads": workloads}
    )
    plan = expand(suite)
    records = []
    for case in plan.cases:
        for launch in range(case.launches):
            common = {"case": case.id, "launch": launch}
            if case.layer == "int8":
                records.append(Record(**common, status=Status.UNSUPPORTED, reason="no convolution of it"))
            elif case.replicate == "images":
                wrong = WRONG[case.layer] if case.layer in WRONG else WRONG["ternary"]
                first = next(c for c in plan.cases if c.point == case.point and c.numerics == case.numerics)
                records.append(
                    Record(
                        **common, status=Status.OK,
                        metrics={"quality.accuracy": 1 - wrong / COUNT, "quality.images": COUNT},
                        replicates={"quality.right": [0.0] * wrong + [1.0] * (COUNT - wrong)},
                        shared_from="" if first.id == case.id else first.id,
                    )
                )  # fmt: skip
            elif case.phase == "once":
                ratio = {"linear": 1.0, "ternary": 19.9, "two-bit": 15.9, "k3": 6.6}[case.layer]
                metrics = {"memory.weight_ratio": ratio, "memory.bits_per_weight": 32 / ratio}
                records.append(
                    Record(**common, status=Status.OK, metrics=metrics | {"memory.model_ratio": ratio**0.9})
                )
            else:
                ns = int(SECONDS[case.layer] * case.params["batch"] * 1e9) + 1000 * launch
                records.append(Record(**common, status=Status.OK, calls=1, samples_ns=[ns] * 3))
    info = RunInfo(
        run="r", created="2026-01-02T03:04:05Z", suite_path="", suite=suite.resolved(), threads=2,
        quick=quick, environment={}, code=CodeIdentity(bitbench="0", impl="0"),
    )  # fmt: skip
    return summarise(RunData(path=Path("r"), info=info, cases=plan.cases, records=records))


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summary_of([{**ENTRY, "count": COUNT, "batch": [1, 32]}])


def table(summary: Summary) -> Table:
    section = images(summary)
    assert section is not None
    [only] = section.tables
    return only


def column(found: Table, title: str) -> dict[str, Cell]:
    at = [column.title for column in found.columns].index(title)
    return {row[0].text: row[at] for row in found.rows}


def test_accuracy_has_wilsons_interval_and_the_change_that_of_its_images(summary: Summary) -> None:
    accuracy, change = column(table(summary), "Accuracy"), column(table(summary), "Change")
    assert (accuracy["linear"].text, accuracy["linear"].notes) == ("97.00 %", ("[96.16, 97.66]",))
    assert accuracy["ternary"].text == accuracy["two-bit"].text == "10.00 %"
    assert change["linear"].text == "0"
    # Four images of 2000 more: each accuracy is known to a point only, their difference to a quarter of it.
    assert (change["k3"].text, change["k3"].notes) == ("-0.20 points", ("[-0.42, 0.02]",))
    assert (change["k3"].tone, change["ternary"].tone) == ("muted", "bad")
    assert change["ternary"].text == "-87.00 points"


def test_bytes_and_speed_stand_beside_it(summary: Summary) -> None:
    found = table(summary)
    assert column(found, "Weight ratio")["ternary"].text == "19.9x"
    assert column(found, "Bits per weight")["linear"].text == "32"
    assert column(found, "Whole network")["k3"].text == "5.465x"
    one, many = column(found, "1 image at once"), column(found, "32 images at once")
    assert (one["linear"].text, one["linear"].notes[0]) == ("125/s", "8.001 ms")
    assert (many["linear"].text, many["linear"].notes[0]) == ("125/s", "256.0 ms")
    assert "3.999x" in " ".join(one["ternary"].notes)
    assert "faster" in " ".join(one["ternary"].notes)
    assert one["ternary"].sort > one["k3"].sort > one["linear"].sort
    rate = summary.one("image_accuracy", "linear", batch=32).value("inference.images_per_second")
    assert rate.value == pytest.approx(125, rel=1e-3)


def test_shared_and_failed_cases_say_so(summary: Summary) -> None:
    found = table(summary)
    shared = column(found, "Computed by")
    case = summary.one("image_accuracy", "ternary", count=COUNT)
    assert (shared["ternary"].text, shared["two-bit"].text) == ("itself", case.case.id)
    for cell in (column(found, "Accuracy")["int8"], column(found, "1 image at once")["int8"]):
        assert (cell.text, cell.notes) == ("n/a", ("unsupported",))


def test_what_stays_float_is_said() -> None:
    plain = table(summary_of([ENTRY]))
    assert "The first convolution and the head stay float32;" in plain.note
    titles = {column.title for column in plain.columns}
    assert not titles & {"Head is", "First convolution is", "1 image at once"}
    both = table(summary_of([ENTRY, {**ENTRY, "head": "same"}]))
    assert "where they say `float`" in both.note
    at = [column.title for column in both.columns].index("Head is")
    assert [row[at].text for row in both.rows] == ["float"] * 5 + ["same"] * 5
    ratio = [column.title for column in both.columns].index("Weight ratio")
    assert {row[ratio].case for row in both.rows[:4]}.isdisjoint(row[ratio].case for row in both.rows[5:9])


def test_norms_whose_statistics_were_taken_anew_say_so() -> None:
    found = table(summary_of([ENTRY, {**ENTRY, "calibration": 1000}]))
    at = [column.title for column in found.columns].index("Norms")
    assert [row[at].text for row in found.rows] == ["as trained"] * 5 + ["of 1000 images"] * 5
    assert "no weight was changed either" in found.note
    plain = table(summary_of([ENTRY]))
    assert "Norms" not in {column.title for column in plain.columns}
    assert "no weight" not in plain.note


def test_the_first_screen_has_the_answer(summary: Summary) -> None:
    context = context_of(summary)
    said = " ".join(context.answer)
    assert "`ternary` convolutions leave cifar-resnet18 **10.00 %** of the test images right" in said
    assert "97.00 % with float ones; the most accurate low-bit layer is `k3` with **96.80 %**" in said
    assert "its weights at 6.6x less memory than fp32." in said
    [glance] = overview(summary).tables
    accuracy = column(glance, "Accuracy")
    assert (accuracy["k3"].text, accuracy["k3"].notes) == ("96.80 %", ("-0.20 points",))
    assert accuracy["int8"].notes == ("unsupported",)


def test_the_answer_compares_layers_at_one_point_only() -> None:
    """Another entry scores other images, or takes norms anew: its best layer is not that of the first."""
    summary = summary_of(
        [
            {**ENTRY, "count": COUNT, "layers": ["linear", "ternary"]},
            {**ENTRY, "count": COUNT, "calibration": 500, "layers": ["linear", "k3"]},
        ]
    )
    [said] = [text for text in context_of(summary).answer if "cifar-resnet18" in text]
    assert "**10.00 %** of the test images right, against 97.00 % with float ones." in said
    assert "k3" not in said


def test_every_rendering_has_it_and_none_lists_the_images(summary: Summary) -> None:
    context = context_of(summary)
    for text in (html(context), markdown(context), csv(summary)):
        assert len(text) < 400_000
    assert "-0.20 points" in html(context)
    assert "-0.20 points" in markdown(context)
    assert "quality.accuracy_change" in csv(summary)


def claim(**fields: Any) -> Claim:
    return Claim.model_validate({"id": "c", "says": "s", "where": {"layer": "k3"}, **fields})


def test_claims_are_judged_by_the_interval_over_images(summary: Summary) -> None:
    def judged(**fields: Any) -> ClaimStatus:
        return evaluate_claim(claim(**fields), summary).status

    assert judged(metric="quality.accuracy_change", at_least=-0.01) is ClaimStatus.PASS
    assert judged(metric="quality.accuracy_change", at_least=0) is ClaimStatus.INCONCLUSIVE
    assert judged(metric="quality.accuracy", at_least=0.96) is ClaimStatus.INCONCLUSIVE
    assert judged(metric="quality.accuracy", at_least=0.95) is ClaimStatus.PASS
    assert judged(metric="quality.accuracy", at_least=0.98) is ClaimStatus.FAIL
    failed = {"metric": "quality.accuracy", "at_least": 0.5, "where": {"layer": "int8"}}
    assert judged(**failed) is ClaimStatus.NOT_EVALUATED
    # The failed case of the claim's own point, not those of bytes and time.
    assert len(evaluate_claim(claim(**failed), summary).evidence) == 1
    for metric in ("memory.model_ratio", "memory.weight_ratio"):
        assert len(evaluate_claim(claim(**{**failed, "metric": metric}), summary).evidence) == 1
    rate = {**failed, "metric": "inference.images_per_second"}
    assert len(evaluate_claim(claim(**rate), summary).evidence) == 2


def test_a_ratio_of_accuracies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no ratio: leave out of, and claim quality\.accuracy_change"):
        claim(metric="quality.accuracy", at_least=0.9, of={"layer": "linear"})


def test_baselines_hold_the_accuracy_within_a_tolerance(summary: Summary) -> None:
    figures = figures_of_summary(summary).figures
    held = figures[f"image_accuracy/model=cifar-resnet18/images=cifar10/count={COUNT}/k3"]
    assert (held["quality.accuracy"].kind, held["quality.accuracy"].value) == ("accuracy", 0.968)
    case = summary.one("image_accuracy", "k3", count=COUNT)
    own = case.series["quality.accuracy"]
    other = summary.one("image_accuracy", "ternary", count=COUNT).series["quality.accuracy"]
    assert compare_figure(case.case, "quality.accuracy", own, own, "base").moved == ""
    assert compare_figure(case.case, "quality.accuracy", own, other, "base").moved == "worse"


def test_a_run_without_a_classifier_has_no_section() -> None:
    conv = {"kind": "conv2d", "shapes": [{"shape": [8, 8], "size": 8}], "memory": False}
    assert images(summary_of([{**conv, "batch": [1]}])) is None
