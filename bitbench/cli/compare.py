"""``bitbench compare``: two stored runs, or two versions of the library measured in turns."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from bitbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.analysis.comparison import Comparison
    from bitbench.execute.runner import Machine
    from bitbench.execute.sides import SideCode
    from bitbench.store.reader import RunData
    from bitbench.suite.expand import Plan

SUITE = Path("suites/gate.yaml")


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
    compared, 130 when interrupted (what was measured is kept).
    """
    from rich.console import Console

    from bitbench.cli.run import terminate_as_interrupt
    from bitbench.report.compared import show
    from bitbench.store.writer import check_writable

    console = Console()
    for file, option in ((markdown, "--markdown"), (as_json, "--json")):
        if file is not None:
            check_writable(file.parent, option)
    with terminate_as_interrupt():
        try:
            if not base:
                refuse_without_base(head, launches, threads, only, package, build_command)
                found = _stored(things or [], results)
            else:
                wish = Wish(
                    base, head, launches, threads, only or None, results, package, build_command, wait
                )
                found = _measured(console, things or [], wish)
        except KeyboardInterrupt:
            console.print("interrupted: nothing was judged; what was measured is kept", highlight=False)
            return Exit.INTERRUPTED
    show(found, console)
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
            "--head, --launches, --threads, --only, --package and --build-command need --base",
            "give the version to compare with: bitbench compare --base main",
        )


def exit_code(found: Comparison) -> Exit:
    """1 where something is worse, 3 where nothing was compared, else 0."""
    from bitbench.analysis.verdicts import Word

    if found.regressions():
        return Exit.FAILED
    if all(result.verdict.word is Word.NOT_COMPARABLE for result in found.results):
        return Exit.TOOL
    return Exit.OK


def write_files(found: Comparison, markdown: Path | None, as_json: Path | None) -> None:
    """The comparison as files, where they are asked for."""
    from bitbench.report.compared import markdown as rendered
    from bitbench.report.exported import comparison_data, to_json
    from bitbench.store.writer import write_atomically

    if markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(markdown, rendered(found))
    if as_json is not None:
        as_json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(as_json, to_json(comparison_data(found)))


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
    from bitbench.execute.paired import execute_paired
    from bitbench.execute.progress import sink_for
    from bitbench.measure.foreign import busy_processes
    from bitbench.measure.lock import device_lock
    from bitbench.store.writer import RUN_FILE, check_writable, new_run_dir
    from bitbench.suite.expand import counted

    if len(things) > 1:
        raise UserError(f"one suite at most goes with --base, {len(things)} given", "name one suite file")
    suite = things[0] if things else SUITE
    check_writable(wish.results, "--results")
    plan, machine = _prepared(console, suite, wish)
    say = functools.partial(_say, console)
    # Held from the first build to the last launch: neither disturbs another bitbench's measurement.
    with device_lock(machine.device, wait=wish.wait, note=say):
        sides = _sides(console, wish)
        if others := busy_processes():
            say(f"other processes are at work, which results will show: {', '.join(others)}")
        run_dir = new_run_dir(wish.results, f"{plan.suite.name}-compare")
        say(f"{sides[1].label} against {sides[0].label}: {plan.counts()}; kept in {run_dir}")
        measure = functools.partial(
            execute_paired,
            plan,
            run_dir,
            sides,
            sink=sink_for(console),
            machine=machine,
            purpose="compare",
            suite_path=str(suite),
        )
        try:
            found = compare_sides(measure())
            again = needs_confirmation(found)
            if not again:
                return found
            launches = max(point.launches for point in plan.points if point.phase == "timed")
            say(f"measuring {counted(len(again), 'case')} again, with fresh launches in reversed order")
            fresh = range(launches, 2 * launches)
            return compare_sides(measure(launches=fresh, only=again, reverse=True, append=True))
        except BaseException:
            if not (run_dir / RUN_FILE).exists():
                shutil.rmtree(run_dir, ignore_errors=True)  # nothing was measured: leave nothing behind
            raise


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _prepared(console: Console, suite: Path, wish: Wish) -> tuple[Plan, Machine]:
    """The plan for this machine; what can be refused is refused before anything is built."""
    import tempfile

    from bitbench.execute.runner import default_threads, probe
    from bitbench.measure.host import usable_cpus
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite

    loaded = load_suite(suite)
    expand(loaded, only=wish.only, launches=wish.launches)
    threads = wish.threads or loaded.threads or default_threads()
    if threads > (usable := len(usable_cpus())):
        raise UserError(
            f"{threads} threads are more than the {usable} processors that can be used here",
            f"give --threads {usable} or less",
        )
    with tempfile.TemporaryDirectory() as logs:
        machine = probe(loaded.device, threads, Path(logs), peaks=False)
    device: Literal["cpu", "cuda"] = "cuda" if machine.device == "cuda" else "cpu"
    plan = expand(loaded, only=wish.only, launches=wish.launches, device=device)
    names = plan.data()
    if names:
        from bitbench.data.progress import fetch_shown

        fetch_shown(names, console)
    return plan, machine


def _sides(console: Console, wish: Wish) -> tuple[SideCode, SideCode]:
    from bitbench.execute.sides import OWN_PACKAGE, prepare_side

    def made(side: Literal["base", "head"], ref: str | None) -> SideCode:
        return prepare_side(
            side,
            ref,
            repo=Path.cwd(),
            packages=wish.packages or [OWN_PACKAGE],
            build_command=wish.build_command,
            note=functools.partial(_say, console),
        )

    base, head = made("base", wish.base), made("head", wish.head)
    if base.root == head.root:
        _say(console, "both versions hold the same code: every difference below is noise")
    return base, head
