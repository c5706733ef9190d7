"""``bitbench history``: a figure over the stored runs of a suite, and when it changed its level."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bitbench.errors import UserError

if TYPE_CHECKING:
    from bitbench.analysis.history import Change, History, Machine, RunFigures
    from bitbench.store.baseline import Baseline
    from bitbench.store.schema import RunInfo

_BARS = "▁▂▃▄▅▆▇█"
_BARS_SHOWN = 24
_LISTED = 3
"""Histories up to which every single value is printed."""


def history(
    suite: str = typer.Argument(
        None, metavar="[SUITE]", help="A suite's file or name; default: that of the newest run."
    ),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
    metric: str = typer.Option("time.speedup", "--metric", help="The figure to follow."),
    case: str = typer.Option("*", "--case", metavar="GLOB", help="Cases whose label matches."),
    baseline: Path = typer.Option(
        None, "--baseline", metavar="FILE", help="Whose log marks accepted changes; default: the suite's."
    ),
    as_json: bool = typer.Option(False, "--json", help="The histories as JSON."),
) -> None:
    """Follow a figure over stored runs, oldest first, and find the steps in it.

    Only runs that can be compared are joined; each machine has histories of its own. Quick runs and
    runs slowed down on purpose are left out. Of a comparison or a gate the head side counts. A step
    that `bitbench baseline accept` recorded is marked with who accepted it and why.
    """
    from bitbench.analysis.history import histories
    from bitbench.store.metrics import METRICS

    if metric not in METRICS:
        from bitbench.plugins import advice

        raise UserError(f"unknown metric {metric!r}", advice(metric, METRICS))
    name = _suite_name(suite, results)
    infos, notes = _runs(results, name)
    if not infos:
        more = "".join(f"\n  {note}" for note in notes)
        raise UserError(
            f"no run of suite {name!r} under {results} can be followed{more}",
            "make one with: bitbench run SUITE, or give --results DIR",
        )
    runs, available, unread = _figures(infos, metric, case)
    notes += unread
    if not any(run.values for run in runs):
        known = ", ".join(sorted(available)) or "none"
        raise UserError(
            f"no case that matches {case!r} has {metric} in the {len(infos)} runs of suite {name!r}",
            f"figures that such cases have: {known}",
        )
    accepted = _baseline(baseline, max(infos, key=lambda pair: pair[1].created)[1])
    machines = [machine for machine in histories(runs, metric, accepted) if machine.histories]
    if as_json:
        import json

        typer.echo(json.dumps(_data(name, metric, machines, notes), indent=1, ensure_ascii=False))
    else:
        _show(name, metric, machines, notes)


def _suite_name(suite: str | None, results: Path) -> str:
    from bitbench.store.reader import latest_run, load_info

    if suite is None:
        return str(load_info(latest_run(results)).suite["name"])
    if suite.endswith((".yaml", ".yml")) or Path(suite).is_file():
        from bitbench.suite.load import load_suite

        return load_suite(Path(suite)).name
    return suite


def _runs(results: Path, name: str) -> tuple[list[tuple[Path, RunInfo]], list[str]]:
    """Runs of the suite that tell something of its course, and why others were left out."""
    from bitbench.store.reader import load_info
    from bitbench.store.writer import RUN_FILE

    found, notes = [], []
    for head in sorted(results.glob(f"*/{RUN_FILE}")):
        try:
            info = load_info(head.parent)
        except UserError as error:
            notes.append(f"{head.parent.name} is left out: {error.message}")
            continue
        if info.suite.get("name") != name:
            continue
        if info.quick:
            notes.append(f"{info.run} is left out: a quick run")
        elif info.slowdown:
            notes.append(f"{info.run} is left out: slowed down by {100 * info.slowdown:g} % on purpose")
        else:
            found.append((head.parent, info))
    return found, notes


def _figures(
    infos: list[tuple[Path, RunInfo]], metric: str, pattern: str
) -> tuple[list[RunFigures], set[str], list[str]]:
    """The figures of each run, the metrics that matching cases have, and what could not be read.
    One run is in memory at a time."""
    from fnmatch import fnmatchcase

    from bitbench.analysis.history import figures_of
    from bitbench.analysis.summary import summarise
    from bitbench.store.reader import load_run

    runs: list[RunFigures] = []
    available: set[str] = set()
    notes = []
    for path, info in infos:
        try:
            summary = summarise(load_run(path), judged=False)
        except UserError as error:
            notes.append(f"{info.run} is left out: {error.message}")
            continue
        notes += summary.run.warnings
        runs.append(figures_of(summary, metric, pattern))
        for case in summary.cases:
            if fnmatchcase(case.case.label, pattern):
                available.update(case.series)
    return runs, available, notes


def _baseline(path: Path | None, newest: RunInfo) -> Baseline | None:
    """The baseline named, or the one beside the suite where there is one."""
    from bitbench.store.baseline import baseline_beside, load_baseline

    if path is not None:
        return load_baseline(path)
    beside = baseline_beside(newest.suite_path) if newest.suite_path else None
    return load_baseline(beside) if beside is not None and beside.is_file() else None


def _show(name: str, metric: str, machines: list[Machine], notes: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from bitbench.report.numbers import estimate, with_interval
    from bitbench.store.metrics import METRICS

    unit = METRICS[metric].unit
    console = Console()
    for machine in machines:
        facts = machine.facts
        where = f"{facts['processor'] or 'unknown processor'}, {facts['device']}, {_threads(facts)}"
        count = len(machine.runs)
        head = f"{name}: {metric}; {count} run{'s' if count != 1 else ''} on {where}, torch {facts['torch']}"
        console.print(Text(head, style="bold"), soft_wrap=True)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for title, justify in (("case", "left"), ("runs", "right"), ("course", "left"), ("newest", "right")):
            table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for found in machine.histories:
            values = [point.value.value for point in found.points]
            newest = estimate(found.points[-1].value, unit)
            table.add_row(Text(found.label), str(len(values)), course(values), newest)
        console.print(table)
        for found in machine.histories:
            if len(machine.histories) <= _LISTED:
                for point in found.points:
                    commit = f" {point.commit[:7]}" if point.commit else ""
                    line = f"  {point.created} {point.run}{commit}: {with_interval(point.value, unit)}"
                    console.print(Text(line), soft_wrap=True)
            for change in found.changes:
                console.print(_step_line(found, change, unit), soft_wrap=True)
        if machine.ended:
            console.print(f"{len(machine.ended)} cases of older runs are not in the newest", highlight=False)
    for note in notes:
        console.print(Text(f"note {note}", style="yellow"), soft_wrap=True)


def _threads(facts: dict[str, Any]) -> str:
    return "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"


def _step_line(found: History, change: Change, unit: str) -> Any:
    from rich.text import Text

    from bitbench.report.numbers import quantity

    step = change.step
    style = {"worse": "red", "better": "green"}.get(change.direction, "")
    moved = f"{quantity(step.before, unit, 4)} -> {quantity(step.after, unit, 4)}"
    text = f"step {found.label}: {moved} ({100 * step.change:+.2g} %"
    text += f", {change.direction})" if change.direction else ")"
    text += f" since {change.run} ({change.created})"
    if change.accepted is not None:
        text += f"; accepted by {change.accepted.who}: {change.accepted.why}"
        style = "dim"
    return Text(text, style=style)


def course(values: list[float]) -> str:
    """The last values as bars from the least to the largest of them; level where all are equal."""
    shown = values[-_BARS_SHOWN:]
    least, most = min(shown), max(shown)
    if least == most:
        return _BARS[len(_BARS) // 2] * len(shown)
    scale = (len(_BARS) - 1) / (most - least)
    return "".join(_BARS[round((value - least) * scale)] for value in shown)


def _data(name: str, metric: str, machines: list[Machine], notes: list[str]) -> dict[str, Any]:
    return {
        "schema": 1,
        "suite": name,
        "metric": metric,
        "machines": [
            {
                "machine": machine.facts,
                "runs": list(machine.runs),
                "ended": list(machine.ended),
                "cases": [_history_data(found) for found in machine.histories],
            }
            for machine in machines
        ],
        "notes": notes,
    }


def _history_data(found: History) -> dict[str, Any]:
    return {
        "case": found.case,
        "label": found.label,
        "points": [
            {
                "run": point.run,
                "created": point.created,
                "commit": point.commit,
                "value": point.value.value,
                "low": point.value.low,
                "high": point.value.high,
            }
            for point in found.points
        ],
        "steps": [
            {
                "at": change.step.at,
                "run": change.run,
                "created": change.created,
                "before": change.step.before,
                "after": change.step.after,
                "direction": change.direction,
                "accepted": None
                if change.accepted is None
                else {name: getattr(change.accepted, name) for name in ("when", "who", "why")},
            }
            for change in found.changes
        ],
    }
