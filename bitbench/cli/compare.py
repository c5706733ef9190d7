"""``bitbench compare``: two stored runs, or two versions of the library measured in turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bitbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.analysis.comparison import Comparison
    from bitbench.store.reader import RunData


def compare(
    things: list[Path] = typer.Argument(
        None, metavar="[RUN RUN | SUITE]", help="Two stored runs; with --base a suite.", show_default=False
    ),
    base: str = typer.Option(None, "--base", metavar="REF", help="Version to compare with: any git ref."),
    head: str = typer.Option(
        None, "--head", metavar="REF", help="Version to judge; default: the working tree as it is."
    ),
    launches: int = typer.Option(None, "--launches", min=1, help="Launches in place of the suite's."),
    threads: int = typer.Option(None, "--threads", min=1, help="Threads in place of the suite's."),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
    package: list[str] = typer.Option(
        None, "--package", metavar="NAME", help="Packages that make up a version; default: impl."
    ),
    build_command: str = typer.Option(
        None, "--build-command", metavar="CMD", help="Builds them, run in a copy of the repository."
    ),
    wait: bool = typer.Option(False, "--wait", help="Wait while another bitbench measures here."),
    markdown: Path = typer.Option(None, "--markdown", metavar="FILE", help="Also write it as Markdown."),
    as_json: Path = typer.Option(None, "--json", metavar="FILE", help="Also write it as JSON."),
) -> int:
    """Hold two versions, or two stored runs, against each other.

    With --base, both versions are built and measured in turns in fresh pairs of processes (default
    suite: suites/gate.yaml); what looks slower is measured again before it is called slower. Two
    stored runs are compared by what survives a change of session: exact figures, accuracy, and times
    relative to the baseline layer measured beside them.

    Ends with 0 when nothing is worse, 1 when something is, 2 on wrong usage, 3 when nothing could be
    compared, 130 when interrupted (what was measured is kept). Where nn.Linear itself moved, no time
    counts as worse.
    """
    from rich.console import Console

    from bitbench.cli.run import terminate_as_interrupt
    from bitbench.report.compared import show
    from bitbench.store.writer import check_file

    console = Console()
    for file, option in ((markdown, "--markdown"), (as_json, "--json")):
        if file is not None:
            check_file(file, option)
    with terminate_as_interrupt():
        try:
            if not base:
                refuse_without_base(head, launches, threads, only, package, build_command, wait)
                found = _stored(things or [], results)
            else:
                wish = Wish(
                    base, head, launches, threads, only or None, results, package, build_command, wait
                )
                found = _measured(console, things or [], wish)
        except KeyboardInterrupt:
            console.print("interrupted: nothing was judged; what was measured is kept", highlight=False)
            return Exit.INTERRUPTED
    try:
        show(found, console)
    finally:  # a reader who leaves (`| head`) must not cost the files
        write_files(found, markdown, as_json)
    return exit_code(found)


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; None where it is silent."""

    base: str
    head: str | None
    launches: int | None
    threads: int | None
    only: list[str] | None
    results: Path
    packages: list[str] | None
    build_command: str | None
    wait: bool


def refuse_without_base(*given: object) -> None:
    """Options that only mean something where versions are measured."""
    if any(given):
        raise UserError(
            "--head, --launches, --threads, --only, --package, --build-command and --wait need --base",
            "give the version to compare with: bitbench compare --base main",
        )


def exit_code(found: Comparison) -> Exit:
    """1 where something is worse, 3 where nothing was compared, else 0.

    Where a control moved, no time that was called slower counts: the session is not to be trusted.
    """
    from bitbench.analysis.verdicts import Word

    worse = [
        result
        for result in found.regressions()
        if not (found.contaminated and result.verdict.word is Word.SLOWER)
    ]
    if worse:
        return Exit.FAILED
    return Exit.OK if found.measured else Exit.TOOL


def write_files(found: Comparison, markdown: Path | None, as_json: Path | None) -> None:
    """The comparison as files, where they are asked for."""
    from bitbench.report.compared import markdown as rendered
    from bitbench.report.exported import comparison_data, to_json
    from bitbench.store.writer import write_file

    if markdown is not None:
        write_file(markdown, rendered(found))
    if as_json is not None:
        write_file(as_json, to_json(comparison_data(found)))


def _stored(things: list[Path], results: Path) -> Comparison:
    from bitbench.analysis.stored import compare_runs

    if len(things) != 2:
        raise UserError(
            f"two runs are needed, {len(things)} given",
            "name two run folders, or give a version to measure against: bitbench compare --base main",
        )
    first, second = (_load(thing, results) for thing in things)
    return compare_runs(first, second)


def _load(named: Path, results: Path) -> RunData:
    """A run by its folder, or by its name under ``results``."""
    from bitbench.store.reader import load_run

    return load_run(named if named.exists() or not (results / named).exists() else results / named)


def _measured(console: Console, things: list[Path], wish: Wish) -> Comparison:
    """Build both versions, measure them in turns, and measure again what needs it."""
    from bitbench.analysis.compare import compare_sides, needs_confirmation
    from bitbench.cli.in_turns import SUITE, alone, first_round, make_ready, make_sides, second_round
    from bitbench.suite.load import load_suite

    if len(things) > 1:
        raise UserError(f"one suite at most goes with --base, {len(things)} given", "name one suite file")
    suite = things[0] if things else SUITE
    ready = make_ready(
        console,
        load_suite(suite),
        suite,
        results=wish.results,
        launches=wish.launches,
        only=wish.only,
        threads=wish.threads,
    )
    with alone(console, ready.machine, wait=wish.wait):
        sides = make_sides(
            console, wish.base, wish.head, packages=wish.packages, build_command=wish.build_command
        )
        run = first_round(console, ready, sides, "compare")
        found = compare_sides(run)
        if again := needs_confirmation(found):
            found = compare_sides(second_round(console, ready, sides, run, again))
        return found
