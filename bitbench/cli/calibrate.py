"""``bitbench calibrate``: what this machine can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.store.calibration import Calibration


def calibrate(
    suite: Path = typer.Argument(Path("suites/gate.yaml"), metavar="[SUITE]", help="Suite file."),
    launches: int = typer.Option(
        None, "--launches", min=3, max=1000, help="In place of the suite's; a gate has to make as many."
    ),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    ref: str = typer.Option(
        None, "--ref", metavar="REF", help="Version to measure; default: the working tree."
    ),
    calibration: Path = typer.Option(
        None, "--calibration", metavar="FILE", help="Where to keep it; default: the user's cache."
    ),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
    package: list[str] = typer.Option(
        None, "--package", metavar="NAME", help="Packages of the library; default: impl."
    ),
    build_command: str = typer.Option(
        None, "--build-command", metavar="COMMAND", help="Builds them in a copy of the repository."
    ),
    wait: bool = typer.Option(False, "--wait", help="Wait while another bitbench measures here."),
) -> int:
    """Hold one version against itself (A/A): learn which cases are quiet enough to gate, and from
    which slowdown on the gate sees it.

    The answer is kept for this machine, device, number of threads and launches, torch and driver; it
    expires where one of them, or a case of the suite, changes.
    """
    from rich.console import Console

    from bitbench.cli.gate_session import measure_calibration, open_session
    from bitbench.cli.in_turns import alone, make_side, say
    from bitbench.cli.run import terminate_as_interrupt
    from bitbench.errors import Exit
    from bitbench.store.calibration import calibration_path
    from bitbench.store.writer import check_file

    console = Console()
    if calibration is not None:
        check_file(calibration, "--calibration")
    with terminate_as_interrupt():
        try:
            session = open_session(console, suite, results=results, launches=launches, only=only or None)
            path = calibration or calibration_path(session.name, session.facts, session.launches)
            with alone(console, session.ready.machine, wait=wait):
                side = make_side(console, "base", ref, packages=package, build_command=build_command)
                made = measure_calibration(console, session, side, path)
        except KeyboardInterrupt:
            say(console, "interrupted: nothing was calibrated")
            return Exit.INTERRUPTED
    show_calibration(made, console)
    say(
        console,
        f"kept in {path}; it expires with a change of machine, threads, launches, torch, driver or suite",
    )
    return Exit.OK


def show_calibration(found: Calibration, console: Console) -> None:
    """One row a case, quiet ones first; below it what holds for all."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("case", overflow="fold")
    for name in ("spread", "offset", "floor", "sees 80 %", "sees 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("gates", overflow="fold")
    for case in sorted(found.cases.values(), key=lambda case: (not case.admitted, case.spread or 0.0)):
        table.add_row(
            escape(case.label),
            _percent(case.spread),
            _percent(case.mean if case.spread is not None else None, signed=True),
            _percent(case.floor),
            _percent(case.sees_80),
            _percent(case.sees_95),
            "[green]yes[/]" if case.admitted else f"[yellow]no[/]: {escape(case.why)}",
        )
    console.print(table)
    admitted = sum(case.admitted for case in found.cases.values())
    said = [f"{admitted} of {len(found.cases)} cases are quiet enough ({found.launches} launches)"]
    if found.bias:
        said.append(f"the two sides differ by {100 * found.bias:.2f} % (sd over cases) without cause")
    if found.autocorrelation is not None and found.autocorrelation > SERIAL:
        said.append(
            f"neighbouring launches are alike (correlation {found.autocorrelation:.2f}): "
            "the machine changes its speed over minutes, intervals are a little short"
        )
    for line in said:
        console.print(line, highlight=False, soft_wrap=True)


SERIAL = 0.3
"""Mean correlation of neighbouring launches from which a reader is told. Independent launches give
-0.1 on average with ten of them, and 0.3 for single cases by chance."""


def _percent(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.2f} %" if signed else f"{100 * value:.2f} %"
