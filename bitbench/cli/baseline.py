"""``bitbench baseline``: accept figures into the repository, and look at what was accepted."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bitbench.errors import Exit, ToolError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.store.baseline import Baseline
    from bitbench.store.figures import FigureSet
    from bitbench.store.schema import Case

ACTIONS = ("accept", "show")
SHOWN = 20
"""Moved figures that are listed on the terminal; the file has all."""


def baseline(
    action: str = typer.Argument(..., metavar="accept|show", help="What to do.", show_default=False),
    source: Path = typer.Argument(
        None, metavar="[SOURCE]", help="Run folder or benchmark JSON; `show` also takes a suite.",
        show_default=False,
    ),
    why: str = typer.Option(None, "--why", metavar="TEXT", help="Why these figures are right; it is kept."),
    who: str = typer.Option(None, "--who", metavar="NAME", help="Who says so; default: git's user name."),
    file: Path = typer.Option(
        None, "--baseline", metavar="FILE", help="The baseline; default: beside the suite that was measured."
    ),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
) -> int:  # fmt: skip
    """Keep the figures that `bitbench gate` holds later measurements against.

    `accept SOURCE --why TEXT` writes the figures of a finished run, or of a file that pytest-benchmark
    wrote, and logs who accepted them, why, and what moved. `show` prints figures and log.
    """
    from rich.console import Console

    console = Console()
    if action not in ACTIONS:
        raise UserError(f"unknown action {action!r}", f"one of: {', '.join(ACTIONS)}")
    if action == "show":
        _show(console, file or _place(source, results))
    else:
        _accept(console, source, why, who, file, results)
    return Exit.OK


@dataclass(frozen=True)
class Measured:
    """Figures of a stored measurement, and where their baseline lies by default."""

    name: str
    figures: FigureSet
    baseline: Path
    cases: Mapping[str, Case] = field(default_factory=dict)
    """By label, what was to be measured; empty for a file of another tool."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """By label, why a case has no figures."""
    commit: str = ""
    objections: Sequence[str] = ()
    """Why these figures should not be accepted."""
    warnings: Sequence[str] = ()
    """What was left out when it was read."""


def measured(source: Path, results: Path) -> Measured:
    """Read ``source``: a run folder (by path, or by name under ``results``) or benchmark JSON.

    Raises :class:`UserError` where it is neither, :class:`ToolError` where it holds nothing to judge.
    """
    from bitbench.store.baseline import BENCHMARK_BASELINE
    from bitbench.store.writer import RUN_FILE

    for folder in (source, results / source):
        if (folder / RUN_FILE).exists():
            return _measured_run(folder)
    if source.is_dir():
        raise UserError(f"{source} is not a run: it has no {RUN_FILE}", "give a folder under results/")
    if not source.exists():
        raise UserError(
            f"there is no {source}", "give a run folder, or a file written by pytest --benchmark-json FILE"
        )
    from bitbench.pytest_plugin.exchange import read_benchmark

    file = read_benchmark(source)
    figures = file.figures()
    if not figures.figures:
        raise ToolError(
            f"{source} holds nothing that can be judged: no benchmark in it was timed beside a baseline",
            "let its tests ask for the fixture side_by_side, with a baseline",
        )
    return Measured(source.name, figures, BENCHMARK_BASELINE, warnings=file.unjudged())


def _measured_run(folder: Path) -> Measured:
    from bitbench.analysis.figures import figures_of_summary, head_of, lost
    from bitbench.analysis.summary import MISSING, summarise
    from bitbench.store.baseline import baseline_beside
    from bitbench.store.reader import load_run

    run = load_run(folder)
    if not run.records:
        raise ToolError(f"run {run.info.run} holds no measurement", "finish it with: bitbench run --resume")
    summary = summarise(head_of(run), judged=False)
    failed = lost(summary)
    objections = [f"{label}: {why}" for label, why in failed.items() if not why.startswith("unsupported")]
    objections += [
        f"{found.case.label} has {found.done} of {found.case.launches} launches"
        for found in summary.cases
        if found.status != MISSING and not found.complete
    ]
    if run.info.quick:
        objections.insert(0, "it is a quick run, which measures a small part")
    if run.info.slowdown:
        objections.insert(0, "it was slowed down on purpose (--inject)")
    path = run.info.suite_path or f"suites/{run.info.suite['name']}.yaml"
    return Measured(
        name=run.info.run,
        figures=figures_of_summary(summary),
        baseline=baseline_beside(path),
        cases={case.label: case for case in run.cases},
        lost=failed,
        commit=run.info.code.commit + ("+" if run.info.code.dirty else ""),
        objections=objections,
        warnings=run.warnings,
    )


def _accept(
    console: Console, source: Path | None, why: str | None, who: str | None, file: Path | None, results: Path
) -> None:
    from bitbench.store.baseline import accept, load_baseline, save_baseline

    if source is None:
        raise UserError("nothing to accept", "name a run folder or a benchmark JSON: baseline accept SOURCE")
    if why is None or not why.strip():
        raise UserError(
            "a baseline is not moved without a reason", 'say it: --why "two_bit rows are padded to 64 bytes"'
        )
    found = measured(source, results)
    if found.objections:
        more = f"; and {len(found.objections) - 3} more" if len(found.objections) > 3 else ""
        raise UserError(
            f"{found.name} cannot be accepted: {'; '.join(found.objections[:3])}{more}",
            "a baseline is made of a whole run in which every case ended ok",
        )
    if not found.figures.figures:
        raise UserError(f"{found.name} holds no figure that a baseline could keep", "measure bytes or times")
    for text in found.warnings:
        console.print(f"warning {text}", soft_wrap=True, highlight=False, markup=False)
    path = file or found.baseline
    earlier = load_baseline(path) if path.exists() else None
    made = accept(
        earlier,
        found.figures,
        who=who or _git_user(),
        why=why.strip(),
        source=found.name,
        commit=found.commit,
    )
    save_baseline(path, made)
    _show_entry(console, made, len(made.log) - 1)
    console.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)


def _git_user() -> str:
    try:
        done = subprocess.run(
            ["git", "config", "user.name"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        name = ""
    else:
        name = done.stdout.strip()
    if not name:
        raise UserError("git knows no user name to sign with", "give one: --who NAME")
    return name


def _place(source: Path | None, results: Path) -> Path:
    """The baseline that belongs to a suite, a run, or a file of benchmarks."""
    from bitbench.cli.in_turns import SUITE
    from bitbench.store.baseline import baseline_beside

    suite = source or SUITE
    if suite.suffix in (".yaml", ".yml"):
        return baseline_beside(suite)
    if suite.name.endswith("baseline.json"):
        return suite
    return measured(suite, results).baseline


def _show(console: Console, path: Path) -> None:
    from collections import Counter

    from bitbench.store.baseline import load_baseline

    found = load_baseline(path)
    kinds = Counter(figure.kind for own in found.figures.figures.values() for figure in own.values())
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no figures"
    lines = [f"{path}: figures of {found.figures.source} ({told})"]
    machine = {key: value for key, value in found.figures.machine.items() if value not in ("", None, [])}
    if machine:
        lines.append("measured on " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for index in range(len(found.log)):
        _show_entry(console, found, index)


def _show_entry(console: Console, found: Baseline, index: int) -> None:
    entry = found.log[index]
    head = f"{entry.when}  {entry.who}: {entry.why}"
    source = f" [{entry.source}]" if entry.source else ""
    lines = [head + source]
    if entry.added:
        lines.append(f"  {entry.added} figures added")
    for moved in entry.moved[:SHOWN]:
        values = ["none" if value is None else f"{value:.9g}" for value in (moved.before, moved.after)]
        lines.append(f"  {moved.label} {moved.metric}: {values[0]} -> {values[1]}")
    if len(entry.moved) > SHOWN:
        lines.append(f"  and {len(entry.moved) - SHOWN} more that moved")
    if not entry.added and not entry.moved:
        lines.append("  nothing moved")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
