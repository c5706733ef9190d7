"""``bitbench rates``: how often the gate errs on this machine, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from bitbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.store.launches import LaunchPool
    from bitbench.suite.schema import Suite

RATES_JSON, RATES_PAGE = "rates.json", "rates.md"


def rates(
    source: Path = typer.Argument(
        Path("suites/gate.yaml"), metavar="[SUITE|RUN]", help="Suite to measure, or a run of this command."
    ),
    launches: int = typer.Option(200, "--launches", min=9, max=1000, help="Launches to measure."),
    rounds: int = typer.Option(10, "--round", min=3, help="Launches in a round of a resampled gate."),
    gates: int = typer.Option(1000, "--gates", min=10, help="Gates to resample."),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
    package: list[str] = typer.Option(
        None, "--package", metavar="NAME", help="Packages of the library; default: impl."
    ),
    build_command: str = typer.Option(
        None, "--build-command", metavar="COMMAND", help="Builds them in a copy of the repository."
    ),
    wait: bool = typer.Option(False, "--wait", help="Wait while another bitbench measures here."),
) -> int:
    """Measure many launches of the working tree against itself, as it is and slowed down by 5 and
    10 %, and resample them into gates: how many alarm falsely, how many see a slowdown?

    Kept as a run, with launches.json (one time a launch and side), rates.json and rates.md beside its
    records. Give that folder to judge it again without measuring; launches.json alone is enough.
    """
    from rich.console import Console

    from bitbench.cli.run import terminate_as_interrupt

    console = Console()
    wish = Wish(source, launches, only or None, results, package, build_command, wait)
    with terminate_as_interrupt():
        try:
            folder = source
            if not source.is_dir():
                refuse_too_few(launches, rounds)
                folder = _measure(console, wish)
            _conclude(console, folder, rounds, gates)
        except KeyboardInterrupt:
            console.print("interrupted: what was measured is kept; judge it with: bitbench rates RUN")
            return Exit.INTERRUPTED
    return Exit.OK


@dataclass(frozen=True)
class Wish:
    """What the command line asks to be measured."""

    suite: Path
    launches: int
    only: list[str] | None
    results: Path
    packages: list[str] | None
    build_command: str | None
    wait: bool


def refuse_too_few(launches: int, rounds: int) -> None:
    """:class:`UserError` where these launches do not make one gate."""
    if launches < 3 * rounds:
        raise UserError(
            f"{launches} launches are fewer than the {3 * rounds} of a calibration and two rounds",
            "measure more with --launches, or make rounds smaller with --round",
        )


def tripled(suite: Suite, slowdowns: Sequence[float] | None = None) -> tuple[Suite, dict[str, float]]:
    """``suite`` with every quantised layer measured as it is and once for each slowdown, and the
    slowdown of each added layer. What is measured once (bytes, accuracy) is left out."""
    from bitbench.analysis.launches import SLOWDOWNS, twin
    from bitbench.suite.schema import Suite as Model

    put_in = SLOWDOWNS if slowdowns is None else slowdowns
    resolved = suite.resolved()
    added = {
        twin(layer, slowdown): slowdown
        for layer, spec in resolved["layers"].items()
        if spec["kind"] != "linear"
        for slowdown in put_in
    }
    layers: dict[str, Any] = {}
    for layer, spec in resolved["layers"].items():
        layers[layer] = spec
        layers |= {twin(layer, s): spec for s in put_in if twin(layer, s) in added}
    workloads = []
    for entry in resolved["workloads"]:
        if entry["kind"] != "linear":
            continue
        named = entry["layers"] if entry["layers"] is not None else list(resolved["layers"])
        here = [name for n in named for name in (n, *(twin(n, s) for s in put_in)) if name in layers]
        workloads.append({**entry, "layers": here, "memory": False})
    if not workloads:
        raise UserError(f"suite {suite.name!r} times no single layers", "give one such as suites/gate.yaml")
    return Model.model_validate({**resolved, "layers": layers, "workloads": workloads, "claims": []}), added


def _measure(console: Console, wish: Wish) -> Path:
    """Measure, and return the run's folder."""
    from bitbench.cli.in_turns import alone, first_round, make_ready, make_side
    from bitbench.suite.load import load_suite
    from bitbench.workloads.self_proof import with_proof

    suite, slowdown = tripled(load_suite(wish.suite))
    ready = make_ready(
        console, suite, wish.suite, results=wish.results, launches=wish.launches, only=wish.only
    )
    ready = replace(ready, plan=with_proof(ready.plan))
    with alone(console, ready.machine, wait=wish.wait):
        side = make_side(console, "base", None, packages=wish.packages, build_command=wish.build_command)
        sides = replace(side, side="base"), replace(side, side="head")
        return first_round(console, ready, sides, "calibrate", slowdown=slowdown, name="rates").path


def _launches(console: Console, folder: Path) -> LaunchPool:
    """The launches of a run of this command, kept beside it; or those that were published without it."""
    from bitbench.analysis.launches import launches_of
    from bitbench.cli.in_turns import say
    from bitbench.store.figures import machine_of
    from bitbench.store.launches import load_launches, save_launches
    from bitbench.store.reader import load_run
    from bitbench.store.writer import RUN_FILE

    if not (folder / RUN_FILE).exists():
        return load_launches(folder)
    run = load_run(folder)
    for text in run.warnings:
        say(console, f"warning {text}")
    machine = machine_of(run.info.environment, run.info.threads, run.info.code.native)
    launches = launches_of(run, machine)
    save_launches(folder, launches)
    return launches


def _conclude(console: Console, folder: Path, rounds: int, gates: int) -> None:
    import json
    from dataclasses import asdict

    from bitbench.analysis.launches import pool_of
    from bitbench.analysis.rates import resample
    from bitbench.cli.in_turns import say
    from bitbench.report.rates import page
    from bitbench.store.writer import write_atomically

    launches = _launches(console, folder)
    for label in launches.left_out:
        say(console, f"left out, it failed or one of its slowed twins did: {label}")
    refuse_too_few(launches.launches, rounds)
    pool = pool_of(launches)
    say(console, f"resampling {launches.launches} launches into gates")
    found = [resample(pool, launches=rounds, gates=gates, draw=d) for d in ("consecutive", "scattered")]
    text = page(found, launches=launches.launches, source=launches.suite, machine=launches.machine)
    write_atomically(folder / RATES_PAGE, text)
    data = {"launches": launches.launches, "rates": [asdict(item) for item in found]}
    write_atomically(folder / RATES_JSON, json.dumps(data, indent=1, sort_keys=True) + "\n")
    say(console, text)
