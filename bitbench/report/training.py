"""What training with the layers costs: accuracy when it is done, time and memory of a step."""

from __future__ import annotations

from collections.abc import Callable

from bitbench.analysis.summary import CaseSummary, Summary, summarise
from bitbench.errors import UserError
from bitbench.report.numbers import shape_text
from bitbench.report.overview import describe_layer, verdict_text
from bitbench.report.tables import (
    Cell,
    Column,
    Section,
    Table,
    absent,
    figure_cell,
    name_cell,
    verdict_tone,
    without_empty,
)
from bitbench.store.reader import RunData, load_run, stored_runs


def training(summary: Summary) -> list[Section]:
    """The training results of this run, and of the stored runs that its suite cites."""
    sections = []
    own = training_tables(summary, "training")
    if own:
        sections.append(Section("training", "Training from scratch", [], own))
    cited = [str(name) for name in summary.run.info.suite.get("cites", [])]
    return [*sections, *(_cited(summary, name) for name in cited)]


def _cited(summary: Summary, suite: str) -> Section:
    """The tables of stored runs of ``suite`` in the folder that holds this run: of each sort of training
    that of the newest run with a figure of it, for a run may hold a part of its suite."""
    section_id, title = f"cited-{suite}", f"Stored run: {suite}"
    chosen: dict[str, tuple[RunData, Table]] = {}
    for path in stored_runs(summary.run.path.parent, suite):
        if len(chosen) == len(_TABLES):
            break
        try:
            stored = summarise(load_run(path))
        except UserError:
            continue  # cannot be read: nothing to cite
        for workload, table_of in _TABLES.items():
            if workload in chosen or not any(case.series for case in stored.select(workload)):
                continue
            if table := table_of(stored, section_id):
                chosen[workload] = stored.run, table
    if not chosen:
        text = f"No stored run of the suite `{suite}` was found beside this run, so none is cited."
        return Section(section_id, title, [text])
    sources: dict[str, tuple[RunData, list[str]]] = {}
    cited = [chosen[workload] for workload in _TABLES if workload in chosen]
    for run, table in cited:
        sources.setdefault(run.info.run, (run, []))[1].append(table.title)
    prose = [
        f"{'From' if len(sources) == 1 else '; '.join(titles) + ': from'} the stored run `{run.info.run}` of "
        f"{run.info.created}, not from this one; its samples are in `{run.path.name}/samples.jsonl`."
        for run, titles in sources.values()
    ]
    return Section(section_id, title, prose, [table for _, table in cited])


def training_tables(summary: Summary, table_id: str) -> list[Table]:
    """A table for each sort of training that the run measured, and of the speed of what was trained."""
    found = [table_of(summary, table_id) for table_of in (*_TABLES.values(), _image_speed)]
    return [table for table in found if table is not None]


def _texts(summary: Summary, table_id: str) -> Table | None:
    return _trained(
        summary,
        table_id,
        "pretrain",
        "training.bits_per_byte",
        Column("Bits per byte", "held-out, after training; interval over seeds"),
        "Bits per byte after quantisation-aware training",
    )


def _images(summary: Summary, table_id: str) -> Table | None:
    return _trained(
        summary,
        f"{table_id}-images",
        "classify",
        "training.accuracy",
        Column("Accuracy", "share of held-out images classified right; interval over seeds"),
        "Accuracy after training a network to tell images apart",
        "Of a perceptron all three layers are of the kind. Of a residual network (`resnet`) the convolutions "
        "of its blocks are; its first convolution and its head stay float, where the entry does not say "
        "`ends: same`. Packed: the same network with its weights in codes, on the same images.",
    )


def _trained(
    summary: Summary, table_id: str, workload: str, metric: str, score: Column, title: str, note: str = ""
) -> Table | None:
    """The score by layer of a network trained from scratch; None where none was."""
    cases = [case for case in summary.select(workload) if case.case.phase == "once"]
    if not cases:
        return None
    columns = [
        Column("Layer", numeric=False),
        Column("Training", numeric=False),
        score,
        Column("Against baseline", f"{score.title.lower()} / that of {summary.baseline}, paired by seed"),
        Column("Training loss", "at the last step"),
        Column("Seeds"),
        Column("Time", "wall time of one training run"),
        Column("Packed", "the score of the packed network, on the same images"),
        Column("Memory vs fp32", "bytes of the fp32 network / bytes of the packed one, all of it"),
    ]
    rows = []
    for case in cases:
        found = case.value(metric)
        settings = ", ".join(f"{key} {value}" for key, value in case.case.params.items())
        first = [_name(summary, case.case.layer), Cell(settings)]
        if found is None:
            rows.append([*first, *(absent(case.status) for _ in range(len(columns) - len(first)))])
            continue
        rows.append(
            [
                *first,
                figure_cell(found, "", case=case.case.id),
                _against(case, summary, metric),
                figure_cell(case.value("training.loss"), "", case=case.case.id),
                Cell(str(found.n), sort=float(found.n)),
                figure_cell(case.value("training.seconds"), "s", case=case.case.id),
                figure_cell(case.value("training.packed_accuracy"), "", case=case.case.id),
                figure_cell(case.value("memory.model_ratio"), "x", case=case.case.id),
            ]
        )
    return without_empty(Table(table_id, title, columns, rows, note, filterable=True))


def _image_speed(summary: Summary, table_id: str) -> Table | None:
    """Images a second of the packed networks; None where none was timed."""
    cases = [case for case in summary.select("classify") if case.case.phase == "timed"]
    if not cases:
        return None
    columns = [
        Column("Layer", numeric=False),
        Column("Network", numeric=False),
        Column("Batch", "images of a call"),
        Column("Images/s", "classified by the packed network"),
        Column("Time", "of a call"),
        Column("Speed-up", f"against {summary.baseline}"),
        Column("Verdict", numeric=False),
    ]
    rows = []
    for case in cases:
        params = dict(case.case.params)
        batch = int(params.pop("batch"))
        network = ", ".join(f"{key} {value}" for key, value in params.items())
        first = [_name(summary, case.case.layer), Cell(network), Cell(str(batch), sort=float(batch))]
        if not case.ok:
            rows.append([*first, *(absent(case.status) for _ in range(len(columns) - len(first)))])
            continue
        is_baseline = case.case.layer == summary.baseline
        verdict = case.verdict
        rows.append(
            [
                *first,
                figure_cell(case.value("inference.images_per_second"), "", case=case.case.id),
                figure_cell(case.value("time.latency"), "s", case=case.case.id),
                Cell("1x", sort=1.0) if is_baseline else figure_cell(case.value("time.speedup"), "x"),
                absent()
                if verdict is None
                else Cell(verdict_text(verdict), tone=verdict_tone(verdict), badge=True),
            ]
        )
    title = "Speed of the networks that tell images apart, packed"
    note = "The whole network, float parts included, on a batch of test images."
    return without_empty(Table(f"{table_id}-images-speed", title, columns, rows, note, filterable=True))


def _against(case: CaseSummary, summary: Summary, metric: str) -> Cell:
    if case.case.layer == summary.baseline:
        return Cell("1x", sort=1.0, case=case.case.id)
    for other in summary.cases:
        if other.case.point == case.case.point and other.case.layer == summary.baseline and other.series:
            ratio = case.series[metric].ratio_to(other.series[metric])
            return figure_cell(None if ratio is None else ratio.estimate(), "x", case=case.case.id)
    return absent()


def _steps(summary: Summary, table_id: str) -> Table | None:
    """Time and memory of single training steps; None where none was measured."""
    cases = summary.select("train_step")
    if not cases:
        return None
    columns = [
        Column("Layer", numeric=False),
        Column("Shape", "out_features x in_features", numeric=False),
        Column("Tokens", "rows of the input"),
        Column("Time", "forward, backward and update of one layer in training form"),
        Column("Speed-up", f"against {summary.baseline}"),
        Column("Verdict", numeric=False),
        Column("Kept", "weights and the optimizer's state, live from step to step"),
        Column("Rise in a step", "gradients, activations and temporaries: rise of the high-water mark"),
        Column("Peak", "kept, and the rise in a step"),
    ]
    places: dict[tuple[str, str, int], dict[str, CaseSummary]] = {}
    for case in cases:
        params = case.case.params
        place = (case.case.layer, shape_text(params["shape"]), int(params["tokens"]))
        places.setdefault(place, {})[case.case.phase] = case
    rows = [_step_row(summary, place, found) for place, found in places.items()]
    note = (
        f"AdamW, or DiodeMix for weights without a float copy. Against `{summary.baseline}` trained the same "
        "way. Bytes kept are counted; the rise is measured."
    )
    return without_empty(
        Table(f"{table_id}-steps", "A step of training one layer", columns, rows, note, filterable=True)
    )


_TABLES: dict[str, Callable[[Summary, str], Table | None]] = {
    "pretrain": _texts,
    "classify": _images,
    "train_step": _steps,
}
"""The table of each workload that trains."""


def _step_row(summary: Summary, place: tuple[str, str, int], found: dict[str, CaseSummary]) -> list[Cell]:
    layer, shape, tokens = place
    timed, weighed = found.get("timed"), found.get("once")

    def cell(case: CaseSummary | None, metric: str, unit: str) -> Cell:
        if case is None:
            return absent()
        return figure_cell(
            case.value(metric), unit, case=case.case.id, why="" if case.ok else str(case.status)
        )

    is_baseline = layer == summary.baseline
    verdict = None if timed is None else timed.verdict
    return [
        _name(summary, layer),
        Cell(shape),
        Cell(str(tokens), sort=float(tokens)),
        cell(timed, "time.latency", "s"),
        Cell("1x", sort=1.0) if is_baseline else cell(timed, "time.speedup", "x"),
        absent() if verdict is None else Cell(verdict_text(verdict), tone=verdict_tone(verdict), badge=True),
        cell(weighed, "memory.training_bytes", "B"),
        cell(weighed, "memory.peak_bytes", "B"),
        cell(weighed, "memory.training_peak_bytes", "B"),
    ]


def _name(summary: Summary, layer: str) -> Cell:
    return name_cell(layer, describe_layer(summary.layers.get(layer, {})))
