"""Two sides as tables: what differs, how fast the head is, which exact figures moved.

Used by ``bitbench compare``, by the gate's comment and by the report of a paired run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitbench.analysis.compare import PROOF_WORKLOAD
from bitbench.analysis.comparison import Compared, Comparison
from bitbench.analysis.gate import GateResult, GateRow, Role
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.verdicts import JUDGE_CONFIDENCE, Word
from bitbench.report.numbers import estimate, interval, plain
from bitbench.report.tables import Cell, Column, Section, Table, absent, name_cell, without_empty
from bitbench.store.metrics import METRICS

if TYPE_CHECKING:
    from rich.console import Console

_TONES = {
    Word.FASTER.value: "good",
    "better": "good",
    Word.SLOWER.value: "bad",
    "worse": "bad",
    Word.SAME.value: "",
    Word.INCONCLUSIVE.value: "muted",
}
_STYLES = {"good": "green", "bad": "red", "warn": "yellow", "muted": "dim"}
TITLE = "Head against base"
SHOWN_ON_TERMINAL = 60
"""Rows of *same* beyond this many are counted instead of listed."""


def word(result: Compared) -> str:
    """``slower``, ``same``, ...; of exact and accuracy figures that moved ``better`` or ``worse``."""
    if result.verdict.word is Word.NOT_COMPARABLE:
        return result.verdict.word.value
    return result.moved or result.verdict.word.value


def verdict_cell(result: Compared) -> Cell:
    """The word as a badge, with what qualifies it below."""
    said = word(result)
    notes = [result.verdict.reason] if result.verdict.reason else []
    if result.verdict.rounds > 1:
        notes.append(f"{result.verdict.rounds} rounds")
    tone = "bad" if result.regressed else _TONES.get(said, "warn")
    return Cell(said, tuple(notes), tone=tone, badge=True)


def share(value: float | None) -> str:
    """``0.0312`` -> ``3.1 %``; empty for None."""
    return "" if value is None else f"{plain(100 * value, 2)} %"


def time_change(effect: Estimate | None) -> str:
    """A speed-up told as time: ``takes 7.4 % longer``, ``takes 4.8 % less time``."""
    if effect is None or effect.value <= 0:
        return ""
    change = 1 / effect.value - 1
    if abs(change) < 5e-4:
        return "takes as long"
    return f"takes {share(abs(change))} {'longer' if change > 0 else 'less time'}"


def case_name(result: Compared) -> str:
    """The label of the case; with the metric where that is not the obvious one."""
    return (
        result.case.label
        if result.metric == "time.latency"
        else f"{result.case.label} {result.metric.partition('.')[2] or result.metric}"
    )


def times(results: Sequence[Compared]) -> list[Compared]:
    return [result for result in results if result.kind == "time"]


def figures(results: Sequence[Compared]) -> list[Compared]:
    """Those that are judged by equality or within a tolerance."""
    return [result for result in results if result.kind != "time"]


def time_table(
    results: Sequence[Compared],
    rows: Mapping[tuple[str, str], GateRow] | None = None,
    *,
    table_id: str = "compared-times",
    title: str = "Times",
) -> Table | None:
    """Times of both sides and the verdict on the head; None without any.

    ``rows``: as the gate sees them, by case id and metric (see :func:`by_figure`); adds the column
    that says what each counts for.
    """
    found = times(results)
    if not found:
        return None
    confidence = share(JUDGE_CONFIDENCE)
    columns = [
        Column("Head is", "verdict on the head, at the level it was decided", numeric=False),
        Column("Case", numeric=False),
        Column("Speed of head", f"time of base / time of head, with its {confidence} interval"),
        Column("Base"),
        Column("Head"),
        Column("Spread", "standard deviation over launches of the logarithm of the ratio"),
        Column("Detectable", "smallest change that these launches would have shown, 80 % of the time"),
    ]
    if rows is not None:
        columns.append(Column("Counts for", "and beyond which slowdown it fails", numeric=False))
    lines = []
    for result in found:
        line = [
            verdict_cell(result),
            _case_cell(result),
            _effect_cell(result),
            _side_cell(result.base, result),
            _side_cell(result.head, result),
            _share_cell(result.spread),
            _share_cell(result.verdict.detectable),
        ]
        if rows is not None:
            line.append(_role_cell(rows.get((result.case.id, result.metric))))
        lines.append(line)
    return without_empty(Table(table_id, title, columns, lines, filterable=len(lines) > 20))


def figure_table(
    results: Sequence[Compared],
    rows: Mapping[tuple[str, str], GateRow] | None = None,
    *,
    table_id: str = "compared-figures",
    title: str = "Bytes and accuracy",
) -> Table | None:
    """Exact and accuracy figures of both sides; None without any."""
    found = figures(results)
    if not found:
        return None
    columns = [
        Column("Head is", numeric=False),
        Column("Case", numeric=False),
        Column("Figure", numeric=False),
        Column("Base"),
        Column("Head"),
        Column("Change"),
    ]
    if rows is not None:
        columns.append(Column("Counts for", numeric=False))
    lines = []
    for result in found:
        line = [
            verdict_cell(result),
            name_cell(result.case.label),
            Cell(result.metric),
            _side_cell(result.base, result),
            _side_cell(result.head, result),
            _change_cell(result),
        ]
        if rows is not None:
            line.append(_role_cell(rows.get((result.case.id, result.metric))))
        lines.append(line)
    return Table(table_id, title, columns, lines, filterable=len(lines) > 20)


def difference_table(comparison: Comparison) -> Table | None:
    """What is not the same on both sides besides the code; None where nothing is known."""
    if not comparison.differences:
        return None
    columns = [Column(name, numeric=False) for name in ("What", "Base", "Head", "Weight")]
    lines = []
    for found in comparison.differences:
        hard = found.weight == "hard"
        subject = {"time": "times", "accuracy": "accuracy", "all": "figures"}[found.affects]
        meaning = f"{subject} cannot be compared" if hard else f"{subject} compared with this in mind"
        weight = Cell(found.weight, (meaning,), tone="bad" if hard else "muted")
        lines.append([Cell(found.what), Cell(found.base), Cell(found.head), weight])
    return Table("compared-differences", "What differs between the sides", columns, lines)


def by_figure(rows: Sequence[GateRow]) -> dict[tuple[str, str], GateRow]:
    """Rows of a gate by (case id, metric)."""
    return {(row.compared.case.id, row.compared.metric): row for row in rows}


def headline(comparison: Comparison) -> list[str]:
    """Sentences that say what was compared and how it came out, the outcome first."""
    judged = (r for r in comparison.results if not r.control and r.case.workload != PROOF_WORKLOAD)
    counts = Counter(word(result) for result in judged)
    order = ["slower", "worse", "faster", "better", "same", "inconclusive", "not comparable"]
    told = ", ".join(f"**{counts[name]} {name}**" for name in order if counts[name])
    how = "measured in turns on one machine" if comparison.paired else "two stored runs"
    said = [f"`{comparison.head}` against `{comparison.base}` ({how}): {told or 'nothing was compared'}."]
    if comparison.contaminated:
        said.append(f"**The session cannot be trusted:** {comparison.contaminated}.")
    for side, labels in (("base", comparison.only_base), ("head", comparison.only_head)):
        if labels:
            listed = ", ".join(f"`{label}`" for label in labels[:5])
            more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
            said.append(f"Only the {side} has {listed}{more}.")
    return [*said, *comparison.notes]


def section(comparison: Comparison) -> Section:
    """The comparison as a section of a report."""
    tables = [
        difference_table(comparison),
        time_table(comparison.results),
        figure_table(comparison.results),
    ]
    return Section(
        "compared",
        TITLE,
        headline(comparison),
        [table for table in tables if table is not None],
    )


def empty_section(why: str) -> Section:
    """In place of :func:`section` where nothing could be compared."""
    return Section("compared", TITLE, [f"**Nothing was compared:** {why}."])


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown document of its own (``bitbench compare --markdown``)."""
    from bitbench.report.markdown import prose, table

    told = section(comparison)
    parts = [f"# {told.title}", *(prose(text) for text in told.prose)]
    for data in told.tables:
        parts += [f"## {data.title}", table(data)]
    return "\n\n".join(parts) + "\n"


def show(
    comparison: Comparison, console: Console, rows: Mapping[tuple[str, str], GateRow] | None = None
) -> None:
    """Print differences, table and outcome. Of many cases that are *same* only the first are listed."""
    from rich.markup import escape

    for found in comparison.differences:
        style = "red" if found.weight == "hard" else "yellow"
        text = f"{found.what}: {found.base} -> {found.head}"
        console.print(f"[{style}]differs ({found.weight})[/] {escape(text)}", soft_wrap=True)
    listed = _listed(comparison.results)
    for data in (time_table(listed, rows), figure_table(listed, rows)):
        if data is not None:
            console.print(rich_table(data))
    if hidden := len(comparison.results) - len(listed):
        console.print(f"{hidden} more that are the same are not listed")
    for text in headline(comparison):
        console.print(escape(text.replace("**", "").replace("`", "")), soft_wrap=True, highlight=False)


def show_gate(result: GateResult, console: Console) -> None:
    """Print the comparison as the gate sees it, what fails, the self-proof, warnings and the outcome."""
    from rich.markup import escape

    show(result.comparison, console, by_figure(result.rows))
    for row in result.rows:
        if row.fails:
            console.print(f"[red]fails[/] {escape(failure(row))}", soft_wrap=True, highlight=False)
    if result.proof is not None:
        console.print(escape(proof_line(result).replace("*", "")), soft_wrap=True, highlight=False)
    for text in result.warnings:
        console.print(f"[yellow]warning[/] {escape(text)}", soft_wrap=True, highlight=False)
    style = {"passed": "green", "failed": "red", "inconclusive": "yellow", "broken": "red"}[result.outcome]
    console.print(f"[{style}]gate {result.outcome}[/]: {escape(result.reason)}", soft_wrap=True)


def proof_line(result: GateResult) -> str:
    """Whether the gate saw what it had to see in this very run, as one sentence."""
    proof = result.proof
    if proof is None:
        return "No self-proof: nothing was timed in turns."
    if proof.failure:
        return f"**The gate could not prove itself:** {proof.failure}."
    seen = ""
    if proof.slowed is not None and (change := time_change(proof.slowed.verdict.effect)):
        seen = f" ({change})"
    return (
        f"The gate proved itself in this run: a pair of equals was found *same*, "
        f"a slowdown of {share(proof.slowdown)} put in on purpose was found *slower*{seen}."
    )


def failure(row: GateRow) -> str:
    """What failed and by how much, as one line."""
    result = row.compared
    if result.verdict.word is Word.NOT_COMPARABLE:
        return f"{case_name(result)}: {result.verdict.reason or 'not comparable'}"
    if result.kind == "time":
        effect = result.verdict.effect
        beside = f", speed of head {estimate(effect, 'x')} {interval(effect, 'x')}".rstrip()
        return f"{case_name(result)}: {time_change(effect)}{beside} (allowed: {share(row.threshold)})"
    unit = METRICS[result.metric].unit
    return f"{case_name(result)}: {estimate(result.base, unit)} → {estimate(result.head, unit)}"


def rich_table(data: Table) -> Any:
    """A :class:`rich.table.Table` of ours: badges coloured, smaller lines dim below the text."""
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(title=data.title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in data.columns:
        made.add_column(column.title, justify="right" if column.numeric else "left", overflow="fold")
    for row in data.rows:
        cells = []
        for cell in row:
            text = Text(cell.text, style=_STYLES.get(cell.tone, ""))
            for note in cell.notes:
                text.append(f"\n{note}", style="dim")
            cells.append(text)
        made.add_row(*cells)
    return made


def _listed(results: Sequence[Compared]) -> list[Compared]:
    """All that is not *same*, and as much of the rest as a terminal takes, in their order."""
    room = SHOWN_ON_TERMINAL - sum(word(result) != Word.SAME for result in results)
    kept = []
    for result in results:
        if word(result) == Word.SAME:
            room -= 1
            if room < 0:
                continue
        kept.append(result)
    return kept


def _case_cell(result: Compared) -> Cell:
    return name_cell(case_name(result), "control: the change cannot affect it" if result.control else "")


def _effect_cell(result: Compared) -> Cell:
    effect = result.verdict.effect
    if effect is None:
        return absent("not known")
    notes = tuple(text for text in (interval(effect, "x"), time_change(effect)) if text)
    return Cell(estimate(effect, "x"), notes, sort=float(effect.value), case=result.case.id)


def _side_cell(found: Estimate | None, result: Compared) -> Cell:
    if found is None:
        return absent("not measured")
    return Cell(estimate(found, METRICS[result.metric].unit), sort=float(found.value), case=result.case.id)


def _share_cell(value: float | None) -> Cell:
    return absent() if value is None else Cell(share(value), sort=float(value))


def _change_cell(result: Compared) -> Cell:
    if result.base is None or result.head is None:
        return absent()
    before, after = result.base.value, result.head.value
    if before == after:
        return Cell("none", sort=0.0, tone="muted")
    if before == 0:
        return Cell("from zero", sort=float("inf"))
    change = after / before - 1
    if not math.isfinite(change):
        return absent()
    return Cell(f"{'+' if change > 0 else ''}{plain(100 * change, 2)} %", sort=change)


def _role_cell(row: GateRow | None) -> Cell:
    if row is None:
        return absent("not part of the gate")
    if row.role is Role.GATING:
        allowed = f"fails beyond {share(row.threshold)}" if row.threshold else "fails when it gets worse"
        return Cell(row.role.value, (allowed,), tone="bad" if row.fails else "")
    return Cell(row.role.value, (row.why,) if row.why else (), tone="muted")
