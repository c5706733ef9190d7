"""What the layers cost in accuracy: after conversion, and after training."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.analysis.summary import CaseSummary, Summary, summarise
from bitbench.errors import UserError
from bitbench.report.overview import describe_layer, ledger_case
from bitbench.report.tables import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    absent,
    figure_cell,
    name_cell,
    without_empty,
)
from bitbench.store.reader import latest_run, load_run

FLOAT_NOTE = (
    "The float reference is not the model as trained: its weights are dequantised from a file of about 4.5 "
    "bits a weight. Ratios are against that reference."
)


def accuracy(summary: Summary, figures: Sequence[Figure]) -> Section | None:
    """Section ``accuracy``; None where no perplexity was measured."""
    cases = summary.select("perplexity")
    if not cases:
        return None
    columns = [
        Column("Layer", numeric=False),
        Column("Model", numeric=False),
        Column("Text", numeric=False),
        Column("Bits per weight", "at the largest shape of the memory ledger"),
        Column("Perplexity", "exp of the mean negative log likelihood a token; interval over documents"),
        Column("Ratio", f"perplexity / perplexity of {summary.baseline}, paired by document"),
        Column("Tokens", "held-out tokens scored"),
        Column("Documents", "stretches of text, each scored from an empty context"),
        Column("Computed by", "case that computed it, where the numerics are equal", numeric=False),
    ]
    table = Table(
        "perplexity",
        "Perplexity after conversion, without retraining",
        columns,
        [_row(case, summary) for case in cases],
        FLOAT_NOTE,
        filterable=True,
    )
    return Section("accuracy", "Accuracy after conversion", [], [table], list(figures))


def _row(case: CaseSummary, summary: Summary) -> list[Cell]:
    params = case.case.params
    first = [
        name_cell(case.case.layer),
        Cell(str(params.get("model", ""))),
        Cell(str(params.get("text", ""))),
    ]
    if not case.ok:
        return [*first, *(absent(case.status) for _ in range(6))]
    ledger = ledger_case(summary, case.case.layer)
    bits = (
        absent()
        if ledger is None
        else figure_cell(ledger.value("memory.bits_per_weight"), case=ledger.case.id)
    )
    perplexity = case.value("quality.perplexity")
    ratio = case.value("quality.perplexity_ratio")
    is_baseline = case.case.layer == summary.baseline
    return [
        *first,
        bits,
        figure_cell(perplexity, case=case.case.id),
        Cell("1x", sort=1.0, case=case.case.id)
        if is_baseline
        else figure_cell(ratio, "x", case=case.case.id),
        figure_cell(case.value("quality.tokens"), case=case.case.id),
        absent() if perplexity is None else Cell(str(perplexity.n), sort=float(perplexity.n)),
        Cell(case.shared_from or "itself", tone="muted", case=case.shared_from),
    ]


def training(summary: Summary) -> list[Section]:
    """The training results of this run, and of the stored runs that its suite cites."""
    sections = []
    own = training_table(summary, "training")
    if own is not None:
        sections.append(Section("training", "Training from scratch", [], [own]))
    cited = [str(name) for name in summary.run.info.suite.get("cites", [])]
    for name in cited:
        section_id = f"cited-{name}"
        stored = _newest(summary, name)
        table = None if stored is None else training_table(stored, section_id)
        if stored is None or table is None:
            text = f"No stored run of the suite `{name}` was found beside this run, so none is cited."
            sections.append(Section(section_id, f"Stored run: {name}", [text]))
            continue
        info = stored.run.info
        text = (
            f"From the stored run `{info.run}` of {info.created}, not from this one; its samples are in "
            f"`{stored.run.path.name}/samples.jsonl`."
        )
        sections.append(Section(section_id, f"Stored run: {name}", [text], [table]))
    return sections


def _newest(summary: Summary, suite: str) -> Summary | None:
    """Summary of the newest run of ``suite`` in the folder that holds this run."""
    try:
        return summarise(load_run(latest_run(summary.run.path.parent, suite)))
    except UserError:
        return None  # no such run, or one that cannot be read: nothing to cite


def training_table(summary: Summary, table_id: str) -> Table | None:
    """Held-out bits per byte by layer; None where nothing was trained."""
    cases = summary.select("pretrain")
    if not cases:
        return None
    columns = [
        Column("Layer", numeric=False),
        Column("Training", numeric=False),
        Column("Bits per byte", "held-out, after training; interval over seeds"),
        Column("Against baseline", f"bits per byte / those of {summary.baseline}, paired by seed"),
        Column("Training loss", "at the last step"),
        Column("Seeds"),
        Column("Time", "wall time of one training run"),
    ]
    rows = []
    for case in cases:
        found = case.value("training.bits_per_byte")
        settings = ", ".join(f"{key} {value}" for key, value in case.case.params.items())
        first = [
            name_cell(case.case.layer, describe_layer(summary.layers.get(case.case.layer, {}))),
            Cell(settings),
        ]
        if found is None:
            rows.append([*first, *(absent(case.status) for _ in range(5))])
            continue
        rows.append(
            [
                *first,
                figure_cell(found, "", case=case.case.id),
                _against(case, summary),
                figure_cell(case.value("training.loss"), "", case=case.case.id),
                Cell(str(found.n), sort=float(found.n)),
                figure_cell(case.value("training.seconds"), "s", case=case.case.id),
            ]
        )
    title = "Bits per byte after quantisation-aware training"
    return without_empty(Table(table_id, title, columns, rows, filterable=True))


def _against(case: CaseSummary, summary: Summary) -> Cell:
    if case.case.layer == summary.baseline:
        return Cell("1x", sort=1.0, case=case.case.id)
    for other in summary.cases:
        if other.case.point == case.case.point and other.case.layer == summary.baseline and other.series:
            ratio = case.series["training.bits_per_byte"].ratio_to(other.series["training.bits_per_byte"])
            return figure_cell(None if ratio is None else ratio.estimate(), "x", case=case.case.id)
    return absent()
