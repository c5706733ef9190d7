"""What the commands that measure two sides in turns share: compare, gate, calibrate and rates."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.execute.machine import Machine
    from bitbench.execute.sides import SideCode
    from bitbench.store.reader import RunData
    from bitbench.store.schema import Purpose
    from bitbench.suite.expand import Plan
    from bitbench.suite.schema import Suite

SUITE = Path("suites/gate.yaml")
"""What is measured where no suite is named."""

Sides = tuple["SideCode", "SideCode"]


def say(console: Console, text: str) -> None:
    """One plain line."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Ready:
    """A suite ready to be measured in turns on this machine."""

    suite_path: Path
    plan: Plan
    """All timed points make ``plan.launches`` launches: what comes after them is the second round."""
    machine: Machine
    results: Path


def make_ready(
    console: Console,
    suite: Suite,
    suite_path: Path,
    *,
    results: Path,
    launches: int | None,
    only: list[str] | None,
    threads: int | None = None,
) -> Ready:
    """Look at the machine, expand the suite for it, fetch what it needs. What can be refused is refused
    before anything runs."""
    import tempfile

    from bitbench.execute.machine import default_threads, probe
    from bitbench.measure.host import usable_cpus
    from bitbench.store.writer import check_writable
    from bitbench.suite.expand import expand

    check_writable(results, "--results")
    planned = expand(suite, only=only, launches=launches)
    rounds = max((p.launches for p in planned.points if p.phase == "timed"), default=planned.launches)
    wanted = threads or suite.threads or default_threads()
    if wanted > (usable := len(usable_cpus())):
        raise UserError(
            f"{wanted} threads are more than the {usable} processors that can be used here",
            f"give --threads {usable} or less"
            if threads
            else "write `threads: 1` in the suite: times gate on one thread",
        )
    with tempfile.TemporaryDirectory() as logs:
        machine = probe(suite.device, wanted, Path(logs), peaks=False)
    device: Literal["cpu", "cuda"] = "cuda" if machine.device == "cuda" else "cpu"
    plan = expand(suite, only=only, launches=rounds, device=device)
    if names := plan.data():
        from bitbench.data.progress import fetch_shown

        fetch_shown(names, console)
    return Ready(suite_path, plan, machine, results)


def make_side(
    console: Console,
    side: Literal["base", "head"],
    ref: str | None,
    *,
    packages: Sequence[str] | None,
    build_command: str | None,
) -> SideCode:
    """A version built in a folder of its own; None is the working tree, and no ``packages`` are impl."""
    from bitbench.execute.sides import OWN_PACKAGE, prepare_side

    return prepare_side(
        side,
        ref,
        repo=Path.cwd(),
        packages=packages or [OWN_PACKAGE],
        build_command=build_command,
        note=lambda text: say(console, text),
    )


def make_sides(
    console: Console,
    base: str,
    head: str | None,
    *,
    packages: Sequence[str] | None,
    build_command: str | None,
) -> Sides:
    """Both versions; says so where they hold the same code."""
    first = make_side(console, "base", base, packages=packages, build_command=build_command)
    second = make_side(console, "head", head, packages=packages, build_command=build_command)
    if first.root == second.root:
        say(console, "both versions hold the same code: every difference below is noise")
    return first, second


@contextlib.contextmanager
def alone(console: Console, machine: Machine, *, wait: bool) -> Iterator[None]:
    """The device held from the first build to the last launch: nothing of ours disturbs a measurement,
    ours or another bitbench's. Other programs at work are named."""
    from bitbench.measure.foreign import busy_processes
    from bitbench.measure.lock import device_lock

    with device_lock(machine.device, wait=wait, note=lambda text: say(console, text)):
        if others := busy_processes():
            say(console, f"other processes are at work, which results will show: {', '.join(others)}")
        yield


def first_round(
    console: Console,
    ready: Ready,
    sides: Sides,
    purpose: Purpose,
    *,
    plan: Plan | None = None,
    slowdown: Mapping[str, float] | None = None,
    name: str = "",
) -> RunData:
    """All launches of ``plan`` (default: what is ready) into a run folder of its own, which is called
    after ``name`` (default: the purpose)."""
    from bitbench.execute.paired import execute_paired
    from bitbench.execute.progress import sink_for
    from bitbench.store.writer import RUN_FILE, new_run_dir

    wanted = plan or ready.plan
    run_dir = new_run_dir(ready.results, f"{wanted.suite.name}-{name or purpose}")
    say(console, f"{sides[1].label} against {sides[0].label}: {wanted.counts()}; kept in {run_dir}")
    try:
        return execute_paired(
            wanted,
            run_dir,
            sides,
            sink=sink_for(console),
            machine=ready.machine,
            purpose=purpose,
            suite_path=str(ready.suite_path),
            slowdown=slowdown,
        )
    except BaseException:
        if not (run_dir / RUN_FILE).exists():
            shutil.rmtree(run_dir, ignore_errors=True)  # nothing was measured: leave nothing behind
        raise


def second_round(
    console: Console,
    ready: Ready,
    sides: Sides,
    run: RunData,
    cases: set[str],
    *,
    slowdown: Mapping[str, float] | None = None,
) -> RunData:
    """As many fresh launches again of ``cases``, all orders reversed, into the folder of ``run``."""
    from bitbench.execute.paired import execute_paired
    from bitbench.execute.progress import sink_for

    plan = ready.plan
    timed = sum(case.phase == "timed" for case in plan.cases)
    say(console, f"confirming {len(cases)} of {timed} times by fresh launches in reversed order ...")
    return execute_paired(
        plan,
        run.path,
        sides,
        sink=sink_for(console),
        machine=ready.machine,
        purpose=run.info.purpose,
        suite_path=str(ready.suite_path),
        launches=range(plan.launches, 2 * plan.launches),
        only=cases,
        reverse=True,
        slowdown=slowdown,
        append=True,
    )
