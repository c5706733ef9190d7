"""Speed and size of a whole model: when it decodes, and when it reads a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.overview import HEAD_IS, head_cells, verdict_text
from bitbench.report.speed import launched
from bitbench.report.tables import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    absent,
    figure_cell,
    name_cell,
    share_cell,
    verdict_tone,
    without_empty,
)
from bitbench.store.schema import PROMPT_TOKENS


def decode(summary: Summary, figures: Sequence[Figure]) -> Section | None:
    """Section ``decode``; None where no model was decoded."""
    cases = summary.select("decode")
    if not cases:
        return None
    steps = [case for case in cases if PROMPT_TOKENS not in case.case.params]
    prompts = [case for case in cases if PROMPT_TOKENS in case.case.params]
    tables = [_steps_table(steps, summary)] if steps else []
    tables += [_prompts_table(prompts, summary)] if prompts else []
    return Section(
        "decode",
        "Decoding a whole model",
        [
            "Text generation at batch 1. What is not converted (embedding, norms, attention, and the output "
            "head unless it says `same`) bounds the gain: the ceiling is the speed-up that layers taking no "
            "time would give."
        ],
        tables,
        list(figures),
    )


_FIRST = (
    Column("Layer", numeric=False),
    Column("Model", numeric=False),
    HEAD_IS,
)


def _steps_table(cases: Sequence[CaseSummary], summary: Summary) -> Table:
    columns = [
        *_FIRST,
        Column("Tokens/s", "batch 1, with a KV cache"),
        Column("Time per token"),
        Column("Speed-up", f"against {summary.baseline}"),
        Column("Verdict", numeric=False),
        Column("Blocks", "share of a token's time in transformer blocks"),
        Column("Head", "share of a token's time in the output head"),
        Column("Rest", "share of a token's time elsewhere"),
        Column("Ceiling", "speed-up if the converted layers took no time at all"),
        Column("Model bytes", "live storage of the whole model"),
        Column("Model ratio", "fp32 whole-model bytes / whole-model bytes"),
    ]
    heads = head_cells(cases)
    rows = [_steps_row(case, head, summary, len(columns)) for case, head in zip(cases, heads, strict=True)]
    return without_empty(Table("decode", "Decode", columns, rows, filterable=True))


def _steps_row(case: CaseSummary, head: Cell, summary: Summary, columns: int) -> list[Cell]:
    first = _first(case, head)
    if not case.ok:
        return [*first, *(absent(case.status) for _ in range(columns - len(first)))]

    def cell(metric: str, unit: str = "") -> Cell:
        return figure_cell(case.value(metric), unit, case=case.case.id)

    def share(metric: str) -> Cell:
        return share_cell(case.value(metric), case=case.case.id)

    return [
        *first,
        cell("decode.tokens_per_second"),
        figure_cell(case.value("time.latency"), "s", case=case.case.id, notes=launched(case)),
        _speedup(case, summary),
        _verdict(case, summary),
        share("decode.blocks_share"),
        share("decode.head_share"),
        share("decode.rest_share"),
        cell("decode.ceiling", "x"),
        cell("memory.model_bytes", "B"),
        cell("memory.model_ratio", "x"),
    ]


def _prompts_table(cases: Sequence[CaseSummary], summary: Summary) -> Table:
    columns = [
        *_FIRST,
        Column("Prompt", "tokens read at once"),
        Column("Prompt tokens/s", "batch 1, into an empty KV cache"),
        Column("Time to read it", "until the logits of the first new token"),
        Column("Speed-up", f"against {summary.baseline}"),
        Column("Verdict", numeric=False),
    ]
    rows = []
    for case, head in zip(cases, head_cells(cases), strict=True):
        tokens = int(case.case.params[PROMPT_TOKENS])
        first = [*_first(case, head), Cell(str(tokens), sort=float(tokens))]
        if not case.ok:
            rows.append([*first, *(absent(case.status) for _ in range(len(columns) - len(first)))])
            continue
        rate = figure_cell(case.value("decode.prefill_tokens_per_second"), case=case.case.id)
        time = figure_cell(case.value("time.latency"), "s", case=case.case.id, notes=launched(case))
        rows.append([*first, rate, time, _speedup(case, summary), _verdict(case, summary)])
    return without_empty(Table("prefill", "Prefill: reading a prompt", columns, rows, filterable=True))


def _first(case: CaseSummary, head: Cell) -> list[Cell]:
    return [name_cell(case.case.layer), Cell(str(case.case.params.get("model", ""))), head]


def _speedup(case: CaseSummary, summary: Summary) -> Cell:
    if case.case.layer == summary.baseline:
        return Cell("1x", sort=1.0, case=case.case.id)
    return figure_cell(case.value("time.speedup"), "x", case=case.case.id)


def _verdict(case: CaseSummary, summary: Summary) -> Cell:
    if case.verdict is not None:
        return Cell(verdict_text(case.verdict), tone=verdict_tone(case.verdict), badge=True)
    # A quick run judges nothing: the column goes.
    return absent() if summary.quick else Cell("baseline", tone="muted")
