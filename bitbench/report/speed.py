"""Speed of single layers, one table a shape, and of the whole model when it decodes."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.analysis.aggregate import linear_points, linear_shapes
from bitbench.analysis.limits import binding_limit, peaks
from bitbench.analysis.remarks import suspicion
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import estimate, interval, percent, plain, shape_text, with_interval
from bitbench.report.overview import point_title, verdict_text
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
    without_empty,
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
            cases = [
                summary.one("linear", layer, shape=shape, tokens=tokens, cache=cache)
                for tokens, cache in points
            ]
            if any(case is not None for case in cases):  # else the suite leaves it out at this shape
                rows.append([name_cell(layer), *(_cell(summary, case) for case in cases)])
        name = shape_text(shape)
        table = Table(f"speed-{name}", f"{name} (out x in)", columns, rows, filterable=True)
        tables.append(without_empty(table))
    prose = [
        f"Each cell: time of one call with M tokens; the speed-up against `{summary.baseline}`; the "
        "speed-up against the fastest `nn.Linear` dtype at that point; the share of the machine's measured "
        "limit that was reached, and which limit binds. Quantising the activations is inside the timed "
        "call. Sorting is by time.",
        _limits(summary),
        _suspicions(summary),
    ]
    return Section("speed", "Speed of single layers", [text for text in prose if text], tables, list(figures))


def _limits(summary: Summary) -> str:
    """The measured limits in words; empty where none were measured."""
    found = peaks(summary)
    if found is None:
        return ""
    rates = [(kind, found.compute(kind)) for kind in ("fp32", "bf16", "int8", "bit")]
    measured = ", ".join(f"{kind} {plain(rate / 1e9, 3)}" for kind, rate in rates if rate)
    text = f"Measured limits: reading memory {plain(found.read_bytes_per_s / 1e9, 3)} GB/s"
    if measured:
        text += f"; arithmetic, in billion operations/s: {measured}"
    return (
        f"{text}. No share is given where the limit that binds was not measured, such as the bandwidth of a "
        "cache. A share above 100 % beats what set the limit: torch's matrix product (fp32, bf16)."
    )


def _suspicions(summary: Summary) -> str:
    """What the word in a cell means; empty where no result is suspicious."""
    if not any(suspicion(case.notes) for case in summary.cases):
        return ""
    return (
        "A result called suspicious is above a measured limit, but not by so much that it cannot be true: "
        "the list of all cases says which limit, and by how much."
    )


def _share(summary: Summary, case: CaseSummary) -> str:
    """``69 % of memory limit``; results above the limit say so."""
    share = case.value("roofline.share")
    if share is None:
        return ""
    limit = binding_limit(summary, case)
    named = f"{limit} limit" if limit else "limit"
    return f"{percent(share.value)} of {named}"


def _cell(summary: Summary, case: CaseSummary | None) -> Cell:
    if case is None:
        return absent()
    latency = case.value("time.latency")
    if latency is None:
        return absent(case.status)
    notes = [interval(latency, "s")]
    if case.case.layer != summary.baseline and (speedup := case.value("time.speedup")) is not None:
        notes.append(f"{with_interval(speedup, 'x')} {verdict_text(case.verdict)}".strip())
    best = summary.best_float.get(case.case.point, "")
    against_best = case.value("time.speedup_best_float")
    if against_best is not None and best not in (summary.baseline, case.case.layer):
        notes.append(f"{with_interval(against_best, 'x')} vs {best}")
    notes.append(_share(summary, case))
    notes.append(suspicion(case.notes))
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
    rows = [_decode_row(case, summary) for case in cases]
    table = Table("decode", "Decode", columns, rows, filterable=True)
    return Section(
        "decode",
        "Decoding a whole model",
        [
            "Text generation at batch 1. What is not converted (embedding, output head, norms, attention) "
            "bounds the gain: the ceiling is the speed-up that layers taking no time would give."
        ],
        [without_empty(table)],
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
    return [
        *first,
        cell("decode.tokens_per_second"),
        cell("time.latency", "s"),
        Cell("1x", sort=1.0, case=case.case.id) if is_baseline else cell("time.speedup", "x"),
        _verdict(case, summary),
        share("decode.blocks_share"),
        share("decode.head_share"),
        share("decode.rest_share"),
        cell("decode.ceiling", "x"),
        cell("memory.model_bytes", "B"),
        cell("memory.model_ratio", "x"),
    ]


def _verdict(case: CaseSummary, summary: Summary) -> Cell:
    if case.verdict is not None:
        return Cell(verdict_text(case.verdict), tone=verdict_tone(case.verdict), badge=True)
    # A quick run judges nothing: the column goes.
    return absent() if summary.quick else Cell("baseline", tone="muted")
