"""Speed of single layers, one table a shape, and of the whole model when it decodes."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.analysis.aggregate import linear_points, linear_shapes
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import estimate, interval, percent, shape_text, with_interval
from bitbench.report.overview import point_title
from bitbench.report.tables import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    absent,
    figure_cell,
    name_cell,
    verdict_tone,
)


def speed(summary: Summary, figures: Sequence[Figure]) -> Section | None:
    """Section ``speed``; None where no single layer was timed."""
    points = linear_points(summary)
    if not points:
        return None
    columns = [Column("Layer", numeric=False)]
    columns += [
        Column(point_title(p), "time of one call; below it the speed-ups with their 95 % intervals")
        for p in points
    ]
    tables = []
    for shape in linear_shapes(summary):
        rows = []
        for layer in summary.layers:
            cells = [
                _cell(summary, summary.one("linear", layer, shape=shape, tokens=tokens, cache=cache))
                for tokens, cache in points
            ]
            rows.append([name_cell(layer), *cells])
        name = shape_text(shape)
        tables.append(Table(f"speed-{name}", f"{name} (out x in)", columns, rows, filterable=True))
    prose = [
        f"Each cell: time of one call with M tokens; the speed-up against `{summary.baseline}`; the "
        "speed-up against the fastest `nn.Linear` dtype at that point. Quantising the activations is "
        "inside the timed call. Sorting is by time."
    ]
    return Section("speed", "Speed of single layers", prose, tables, list(figures))


def _cell(summary: Summary, case: CaseSummary | None) -> Cell:
    if case is None:
        return absent()
    latency = case.value("time.latency")
    if latency is None:
        return absent(case.status)
    notes = [interval(latency, "s")]
    if case.case.layer != summary.baseline and (speedup := case.value("time.speedup")) is not None:
        word = f" {case.verdict.word.value}" if case.verdict is not None else ""
        notes.append(f"{with_interval(speedup, 'x')}{word}")
    best = summary.best_float.get(case.case.point, "")
    against_best = case.value("time.speedup_best_float")
    if against_best is not None and best not in (summary.baseline, case.case.layer):
        notes.append(f"{with_interval(against_best, 'x')} vs {best}")
    return Cell(
        estimate(latency, "s"),
        tuple(note for note in notes if note),
        sort=latency.value,
        tone=verdict_tone(case.verdict),
        case=case.case.id,
    )


def decode(summary: Summary, figures: Sequence[Figure]) -> Section | None:
    """Section ``decode``; None where no model was decoded."""
    cases = summary.select("decode")
    if not cases:
        return None
    columns = [
        Column("Layer", numeric=False),
        Column("Model", numeric=False),
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
    return Section(
        "decode",
        "Decoding a whole model",
        [
            "Text generation at batch 1. What is not converted (embedding, output head, norms, attention) "
            "bounds the gain: the ceiling is the speed-up that layers taking no time would give."
        ],
        [Table("decode", "Decode", columns, [_decode_row(case, summary) for case in cases], filterable=True)],
        list(figures),
    )


def _decode_row(case: CaseSummary, summary: Summary) -> list[Cell]:
    first = [name_cell(case.case.layer), Cell(str(case.case.params.get("model", "")))]
    if not case.ok:
        return [*first, *(absent(case.status) for _ in range(10))]

    def cell(metric: str, unit: str = "") -> Cell:
        return figure_cell(case.value(metric), unit, case=case.case.id)

    def share(metric: str) -> Cell:
        found = case.value(metric)
        return absent() if found is None else Cell(percent(found.value), sort=found.value, case=case.case.id)

    is_baseline = case.case.layer == summary.baseline
    word = case.verdict.word.value if case.verdict is not None else ""
    return [
        *first,
        cell("decode.tokens_per_second"),
        cell("time.latency", "s"),
        Cell("1x", sort=1.0, case=case.case.id) if is_baseline else cell("time.speedup", "x"),
        Cell(
            word or ("baseline" if is_baseline else "none"), tone=verdict_tone(case.verdict), badge=bool(word)
        ),
        share("decode.blocks_share"),
        share("decode.head_share"),
        share("decode.rest_share"),
        cell("decode.ceiling", "x"),
        cell("memory.model_bytes", "B"),
        cell("memory.model_ratio", "x"),
    ]
