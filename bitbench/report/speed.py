"""Speed of single layers: one table a shape, number of threads and busy neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bitbench.analysis.aggregate import conditions, linear_points, linear_shapes
from bitbench.analysis.limits import binding_limit, peaks
from bitbench.analysis.remarks import suspicion
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import estimate, interval, percent, plain, shape_text, with_interval
from bitbench.report.overview import verdict_text
from bitbench.report.tables import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    absent,
    name_cell,
    verdict_tone,
    without_empty,
)
from bitbench.suite.expand import counted

CELL = "time of one call; below it the speed-ups with their 95 % intervals"


def speed(summary: Summary, figures: Sequence[Figure]) -> Section | None:
    """Section ``speed``; None where no single layer was timed."""
    points = linear_points(summary)
    if not points:
        return None
    tables = []
    for threads, neighbours in dict.fromkeys((point.threads, point.neighbours) for point in points):
        chosen = [p for p in points if (p.threads, p.neighbours) == (threads, neighbours)]
        tag = condition_tag(threads, neighbours)
        own = "".join(f", {words}" for words in conditions(threads, neighbours))
        columns = [Column("Layer", numeric=False)]
        columns += [Column(point.title, CELL) for point in chosen]
        for shape in linear_shapes(summary):
            rows = []
            for layer in summary.layers:
                cases = [summary.one("linear", layer, shape=shape, **point._asdict()) for point in chosen]
                if any(case is not None for case in cases):  # else the suite leaves it out at this shape
                    rows.append([name_cell(layer), *(speed_cell(summary, case) for case in cases)])
            name = shape_text(shape)
            title = f"{name} (out x in){own}"
            if rows:
                table = Table(f"speed-{name}{tag}", title, columns, rows, filterable=True)
                tables.append(without_empty(table))
    prose = [
        f"Each cell: time of one call with M tokens; the speed-up against `{summary.baseline}`; the "
        "speed-up against the fastest `nn.Linear` dtype at that point; the share of the machine's measured "
        "limit that was reached, and which limit binds. Quantising the activations is inside the timed "
        "call. Sorting is by time.",
        *(limits(summary, threads) for threads in dict.fromkeys(point.threads for point in points)),
        _replays(summary),
        _suspicions(summary),
        beside(point.neighbours for point in points),
    ]
    return Section("speed", "Speed of single layers", [text for text in prose if text], tables, list(figures))


def condition_tag(threads: int | None, neighbours: int | str | None) -> str:
    """What tells a table of such points apart: ``-t1-nall``."""
    return ("" if threads is None else f"-t{threads}") + ("" if neighbours is None else f"-n{neighbours}")


def beside(neighbours: Iterable[int | str | None]) -> str:
    """What busy neighbours are; empty where no point has any."""
    if all(found is None for found in neighbours):
        return ""
    return (
        "Busy neighbours are processes that keep a core busy each while layers are called, as other programs "
        "would. Times beside them are those of a shared machine, and shares of the limit fall with them."
    )


def limits(summary: Summary, threads: int | None) -> str:
    """The limits measured with ``threads`` (None: the run's) in words; empty where none were measured."""
    found = peaks(summary, threads)
    if found is None:
        return ""
    own = {isa: rates for isa, rates in found.isas.items() if isa in named_isas(summary)}
    rates = [(kind, found.compute(kind)) for kind in ("fp32", "bf16", "int8", "bit")]
    measured = ", ".join(f"{kind} {plain(rate / 1e9, 3)}" for kind, rate in rates if rate)
    whose = "" if threads is None else f" with {counted(threads, 'thread')}"
    text = f"Measured limits{whose}: reading memory {plain(found.read_bytes_per_s / 1e9, 3)} GB/s"
    if measured:
        text += f"; arithmetic, in billion operations/s: {measured}"
    for isa, by_kind in own.items():
        text += f"; by {isa} alone: {', '.join(f'{k} {plain(r / 1e9, 3)}' for k, r in by_kind.items())}"
    if threads is not None:
        return f"{text}."
    return (
        f"{text}. No share is given where the limit that binds was not measured, such as the bandwidth of a "
        "cache. A share above 100 % beats what set the limit: torch's matrix product or convolution (fp32, "
        "bf16)."
    )


def named_isas(summary: Summary) -> set[str]:
    """Instruction sets that layers of the suite are held to."""
    return {str(layer["isa"]) for layer in summary.layers.values() if layer.get("isa")}


def _replays(summary: Summary) -> str:
    """How short calls were timed on a GPU; empty where none was replayed."""
    if not any(case.value("time.eager") for case in summary.cases):
        return ""
    return (
        "Where a cell says what a call takes launched from the host, its time is that of a captured graph "
        "that is replayed: the host's launches, and Python, are not in it."
    )


def _suspicions(summary: Summary) -> str:
    """What the word in a cell means; empty where no result is suspicious."""
    if not any(suspicion(case.notes) for case in summary.cases):
        return ""
    return (
        "A result called suspicious is above a measured limit, but not by so much that it cannot be true: "
        "the list of all cases says which limit, and by how much."
    )


def launched(case: CaseSummary) -> list[str]:
    """What a call takes launched from the host, where its time is that of a replayed graph."""
    eager = case.value("time.eager")
    return [] if eager is None else [f"launched from the host: {estimate(eager, 's')}"]


def _share(summary: Summary, case: CaseSummary) -> str:
    """``69 % of memory limit``; results above the limit say so."""
    share = case.value("roofline.share")
    if share is None:
        return ""
    limit = binding_limit(summary, case)
    named = f"{limit} limit" if limit else "limit"
    return f"{percent(share.value)} of {named}"


def speed_cell(summary: Summary, case: CaseSummary | None) -> Cell:
    """Time, speed-ups and share of the limit of one timed case; None is a gap of the suite."""
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
    notes += launched(case)
    notes.append(_share(summary, case))
    notes.append(suspicion(case.notes))
    return Cell(
        estimate(latency, "s"),
        tuple(note for note in notes if note),
        sort=latency.value,
        tone=verdict_tone(case.verdict),
        case=case.case.id,
    )
