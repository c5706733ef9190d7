"""What ``gate`` and ``calibrate`` share: machine, plan and self-proof made ready, and the A/A launches."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitbench.errors import ToolError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.execute.runner import Machine
    from bitbench.execute.sides import SideCode
    from bitbench.store.calibration import Calibration
    from bitbench.store.reader import RunData
    from bitbench.store.schema import Case, Purpose
    from bitbench.suite.expand import Plan

GATE_SUITE = Path("suites/gate.yaml")


@dataclass(frozen=True)
class Session:
    """A suite ready to be measured in turns on this machine."""

    suite_path: Path
    plan: Plan
    """With the self-proof."""
    machine: Machine
    results: Path
    launches: int
    facts: Mapping[str, Any]
    """The machine as calibrations know it: see :func:`bitbench.store.figures.machine_of`."""

    @property
    def name(self) -> str:
        return self.plan.suite.name

    def timed(self) -> list[Case]:
        return [case for case in self.plan.cases if case.phase == "timed"]

    def calibrated(self) -> list[Case]:
        """The timed cases that are held against themselves: all but the slowed one of the proof."""
        from bitbench.workloads.self_proof import SLOWER

        return [case for case in self.timed() if case.layer != SLOWER]

    def same(self) -> list[str]:
        """Ids of the timed cases that have to come out *same*: controls and the null pair."""
        gateable = self.gateable()
        return [case.id for case in self.timed() if case.id not in gateable]

    def gateable(self) -> set[str]:
        """Ids of the timed cases that a change can affect."""
        from bitbench.analysis.compare import is_control
        from bitbench.workloads.self_proof import KIND

        layers = self.plan.suite.resolved()["layers"]
        return {c.id for c in self.timed() if c.workload != KIND and not is_control(c, layers)}


def open_session(
    console: Console, suite_path: Path, *, results: Path, launches: int | None, only: list[str] | None
) -> Session:
    """Look at the machine, expand the suite, add the self-proof, fetch what it needs."""
    import tempfile

    from bitbench.execute.identity import describe
    from bitbench.execute.runner import default_threads, probe
    from bitbench.measure.host import usable_cpus
    from bitbench.store.figures import machine_of
    from bitbench.store.writer import check_writable
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite
    from bitbench.workloads.self_proof import with_proof

    check_writable(results, "--results")
    loaded = load_suite(suite_path)
    expand(loaded, only=only, launches=launches)  # what can be refused is refused before anything runs
    threads = loaded.threads or default_threads()
    if threads > (usable := len(usable_cpus())):
        raise UserError(
            f"{threads} threads are more than the {usable} processors that can be used here",
            "write `threads: 1` in the suite: times gate on one thread",
        )
    with tempfile.TemporaryDirectory() as logs:
        machine = probe(loaded.device, threads, Path(logs), peaks=False)
    device: Literal["cpu", "cuda"] = "cuda" if machine.device == "cuda" else "cpu"
    plan = expand(loaded, only=only, launches=launches or loaded.launches, device=device)
    if not any(point.phase == "timed" for point in plan.points):
        raise UserError(
            f"suite {loaded.name!r} times nothing" + (f" that matches {', '.join(only)}" if only else ""),
            "two versions are held against each other by time; bytes alone are judged with: "
            "bitbench run SUITE, then bitbench gate RUN",
        )
    plan = with_proof(plan)
    _fetch(console, plan)
    info = describe(plan, machine, loaded.name, str(suite_path))
    facts = machine_of(info.environment, info.threads, info.code.native)
    return Session(suite_path, plan, machine, results, plan.launches, facts)


@contextlib.contextmanager
def alone(console: Console, session: Session, *, wait: bool) -> Iterator[None]:
    """The device held for the whole of a gate, builds included: nothing of ours disturbs a measurement,
    ours or another bitbench's. Other programs at work are named."""
    from bitbench.measure.foreign import busy_processes
    from bitbench.measure.lock import device_lock

    with device_lock(session.machine.device, wait=wait, note=lambda text: say(console, text)):
        if others := busy_processes():
            say(console, f"other processes are at work, which results will show: {', '.join(others)}")
        yield


def measure(
    console: Console,
    session: Session,
    sides: tuple[SideCode, SideCode],
    purpose: Purpose,
    *,
    plan: Plan | None = None,
    slowdown: Mapping[str, float] | None = None,
) -> RunData:
    """The first round: all launches of ``plan`` (default: the session's) into a run folder of its own."""
    from bitbench.execute.paired import execute_paired
    from bitbench.execute.progress import sink_for
    from bitbench.store.writer import RUN_FILE, new_run_dir

    wanted = plan or session.plan
    run_dir = new_run_dir(session.results, f"{session.name}-{purpose}")
    say(console, f"{sides[1].label} against {sides[0].label}: {wanted.counts()}; kept in {run_dir}")
    try:
        return execute_paired(
            wanted,
            run_dir,
            sides,
            sink=sink_for(console),
            machine=session.machine,
            purpose=purpose,
            suite_path=str(session.suite_path),
            slowdown=slowdown,
        )
    except BaseException:
        if not (run_dir / RUN_FILE).exists():
            shutil.rmtree(run_dir, ignore_errors=True)  # nothing was measured: leave nothing behind
        raise


def confirm(
    console: Console,
    session: Session,
    sides: tuple[SideCode, SideCode],
    run: RunData,
    cases: set[str],
    slowdown: Mapping[str, float] | None = None,
) -> RunData:
    """The second round: as many fresh launches again of ``cases``, all orders reversed."""
    from bitbench.execute.paired import execute_paired
    from bitbench.execute.progress import sink_for

    say(console, f"confirming {len(cases)} of {len(session.timed())} times by fresh launches ...")
    return execute_paired(
        session.plan,
        run.path,
        sides,
        sink=sink_for(console),
        machine=session.machine,
        purpose=run.info.purpose,
        suite_path=str(session.suite_path),
        launches=range(session.launches, 2 * session.launches),
        only=cases,
        reverse=True,
        slowdown=slowdown,
        append=True,
    )


def measure_calibration(console: Console, session: Session, side: SideCode, path: Path) -> Calibration:
    """Hold ``side`` against itself, launch by launch, and store at ``path`` what that says."""
    from bitbench.analysis.calibration import calibrate_run
    from bitbench.execute.jobs import narrowed
    from bitbench.store.calibration import save_calibration

    sides = replace(side, side="base"), replace(side, side="head")
    plan = narrowed(session.plan, session.timed())
    run = measure(console, session, sides, "calibrate", plan=plan)
    calibration = calibrate_run(
        run,
        cases=session.calibrated(),
        gateable=session.gateable(),
        machine=dict(session.facts),
        launches=session.launches,
    )
    if not any(found.spread is not None for found in calibration.cases.values()):
        whys = {found.why for found in calibration.cases.values()}
        raise ToolError(
            "nothing could be calibrated: " + "; ".join(sorted(whys)[:3]),
            f"see the records in {run.path}; with fewer than 3 launches there is no spread",
        )
    save_calibration(path, calibration)
    return calibration


def say(console: Console, text: str) -> None:
    """One plain line."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _fetch(console: Console, plan: Plan) -> None:
    names = plan.data()
    if names:
        from bitbench.data.progress import fetch_shown

        fetch_shown(names, console)
