"""What the layers cost a language model in accuracy after conversion. Image classifiers are in
:mod:`bitbench.report.images`, training in :mod:`bitbench.report.training`."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.overview import HEAD_IS, head_cells, ledger_case
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
        HEAD_IS,
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
        [_row(case, head, summary) for case, head in zip(cases, head_cells(cases), strict=True)],
        FLOAT_NOTE,
        filterable=True,
    )
    return Section("accuracy", "Accuracy after conversion", [], [without_empty(table)], list(figures))


def _row(case: CaseSummary, head: Cell, summary: Summary) -> list[Cell]:
    params = case.case.params
    first = [
        name_cell(case.case.layer),
        Cell(str(params.get("model", ""))),
        head,
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
