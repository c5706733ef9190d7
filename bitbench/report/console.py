"""The end of a run on the terminal: what a person wants to know, at 100 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bitbench.analysis.aggregate import Total, headline_points, totals
from bitbench.analysis.claims import ClaimResult, ClaimStatus, describe_bound, evaluate
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.summary import Summary, summarise
from bitbench.analysis.verdicts import Word
from bitbench.report.answer import caveats
from bitbench.report.numbers import ABSENT, estimate, quantity, with_interval
from bitbench.report.overview import case_with, ledger_case
from bitbench.store.metrics import METRICS
from bitbench.store.reader import load_run

_CLAIM_STYLE = {ClaimStatus.PASS: "green", ClaimStatus.FAIL: "red", ClaimStatus.INCONCLUSIVE: "yellow"}
# A mark beside each colour: the table must be readable without one.
_MARKS = {Word.FASTER: "+", Word.SLOWER: "-", Word.SAME: "=", Word.INCONCLUSIVE: "?"}
_WIDE = 1000
"""Columns that any table fits into."""
_FIGURES = (
    ("decode", "decode.tokens_per_second", "tokens/s"),
    ("perplexity", "quality.perplexity", "perplexity"),
    ("image_accuracy", "quality.accuracy", "converted accuracy"),
    ("pretrain", "training.bits_per_byte", "bits/byte"),
    ("classify", "training.accuracy", "accuracy"),
)
"""Workload, its headline metric, and the column's head."""
_STYLES = {Word.FASTER: "green", Word.SLOWER: "red"}


def show(run_dir: Path, console: Console, report: Path | None = None) -> None:
    """Print the table of layers, the claims and, where given, the place of the report."""
    summary = summarise(load_run(run_dir))
    info = summary.run.info
    console.print(f"[italic]{escape(info.suite['name'])}: {escape(info.run)}[/]", highlight=False)
    tables = [layer_table(summary)]
    if console.measure(tables[0], options=console.options.update(width=_WIDE)).maximum > console.width:
        tables = [layer_table(summary, speeds=False), layer_table(summary, others=False)]
    for table in tables:
        console.print(table)
    for note in caveats(summary):
        console.print(f"[yellow]note[/] {escape(note)}")
    show_claims(evaluate(summary), console, grouped=True)
    console.print(f"samples  {run_dir}", soft_wrap=True, highlight=False, markup=False)
    if report is not None:
        console.print(f"report   {report / 'index.html'}", soft_wrap=True, highlight=False, markup=False)


def show_claims(results: Sequence[ClaimResult], console: Console, *, grouped: bool = False) -> None:
    """A claim a line: verdict, id, what was measured, the bound; below it why it does not pass.
    ``grouped``: those that a quick run leaves open share one line."""
    if not results:
        console.print("The suite makes no claims.")
        return
    left_open = [result for result in results if grouped and result.excused]
    grid = Table(title="Claims", title_justify="left", box=None, pad_edge=False, show_header=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for result in results:
        if result in left_open:
            continue
        style = _CLAIM_STYLE.get(result.status, "dim")
        gate = " (gating)" if result.claim.gating else ""
        text = f"{result.claim.id}{gate}: {_measured(result)}{describe_bound(result.claim)}"
        if result.reason and result.status is not ClaimStatus.PASS:
            text += f"\n{result.reason}"
        grid.add_row(f"[{style}]{result.status.value}[/]", escape(text))
    if left_open:
        ids = ", ".join(result.claim.id for result in left_open)
        grid.add_row("[dim]not evaluated[/]", escape(f"{len(left_open)} left open by a quick run: {ids}"))
    console.print(grid, highlight=False)


def _measured(result: ClaimResult) -> str:
    deciding = result.deciding
    if deciding is None or deciding.value is None:
        return ""
    unit = METRICS[result.claim.metric].unit if result.claim.of is None else "x"
    return f"{with_interval(deciding.value, unit)}, "


def layer_table(summary: Summary, *, speeds: bool = True, others: bool = True) -> Table:
    """Bits, memory, speed-ups, tokens per second, perplexity and bits per byte: those of them that
    the run measured, one row a layer. A narrow terminal gets ``speeds`` and ``others`` apart."""
    points = headline_points(summary) if speeds else []
    found = [totals(summary, point) for point in points]
    figures = [column for column in _FIGURES if others and summary.select(column[0])]
    weighed = others and any(ledger_case(summary, layer) for layer in summary.layers)
    caption = f"Speed-up over {summary.baseline}; + faster, - slower, = same, ? inconclusive (99 %)"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption = caption if points and not summary.quick else None
    table.caption_justify = "left"
    table.add_column("layer", no_wrap=True)
    for name in ("bits", "vs fp32") if weighed else ():
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        table.add_column("\n".join(point.title.split(" ", 1)), justify="right", no_wrap=True)
    for _, _, name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    for layer in summary.layers:
        row = [
            escape(layer),
            *(_memory(summary, layer) if weighed else ()),
            *(_speed(total.get(layer), layer, summary) for total in found),
            *(_figure(summary, workload, layer, metric) for workload, metric, _ in figures),
        ]
        table.add_row(*row)
    return table


def _memory(summary: Summary, layer: str) -> list[str]:
    case = ledger_case(summary, layer)
    if case is None:
        return [ABSENT, ABSENT]
    return [estimate(case.value("memory.bits_per_weight")), estimate(case.value("memory.weight_ratio"), "x")]


def _figure(summary: Summary, workload: str, layer: str, metric: str) -> str:
    case = case_with(summary, workload, layer, metric)
    return ABSENT if case is None else estimate(case.value(metric))


def _short(found: Estimate, unit: str) -> str:
    """Three digits: the report has the rest, and the interval."""
    return quantity(found.value, unit, 3)


def _speed(total: Total | None, layer: str, summary: Summary) -> str:
    if total is None or total.speedup is None:
        return ABSENT
    if layer == summary.baseline:
        return _short(total.latency.estimate(), "s")
    text = _short(total.speedup.estimate(), "x")
    if total.verdict is None:
        return text
    style = _STYLES.get(total.verdict.word, "default")
    return f"[{style}]{text} {_MARKS.get(total.verdict.word, ' ')}[/]"
