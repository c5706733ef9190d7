"""What ``gate`` and ``calibrate`` share: a suite made ready with its self-proof, and the A/A launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitbench.errors import ToolError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.cli.in_turns import Ready
    from bitbench.execute.sides import SideCode
    from bitbench.store.calibration import Calibration
    from bitbench.store.schema import Case
    from bitbench.suite.expand import Plan


@dataclass(frozen=True)
class Session:
    """A suite ready to be measured in turns on this machine, and which of its cases count for what."""

    ready: Ready
    """With the self-proof."""
    facts: Mapping[str, Any]
    """The machine as calibrations know it: see :func:`bitbench.store.figures.machine_of`."""

    @property
    def plan(self) -> Plan:
        return self.ready.plan

    @property
    def name(self) -> str:
        return self.plan.suite.name

    @property
    def launches(self) -> int:
        return self.plan.launches

    @property
    def threads(self) -> int:
        return self.ready.machine.threads

    def timed(self) -> list[Case]:
        return [case for case in self.plan.cases if case.phase == "timed"]

    def calibrated(self) -> list[Case]:
        """The timed cases that are held against themselves: all but the slowed one of the proof."""
        from bitbench.workloads.self_proof import SLOWER

        return [case for case in self.timed() if case.layer != SLOWER]

    def same(self) -> list[str]:
        """Ids of the timed cases that have to come out *same*: controls and the null pair."""
        gateable = self.gateable()
        return [case.id for case in self.calibrated() if case.id not in gateable]

    def gateable(self) -> set[str]:
        """Ids of the timed cases that a change can affect."""
        from bitbench.analysis.compare import is_control
        from bitbench.workloads.self_proof import KIND

        layers = self.plan.suite.resolved()["layers"]
        return {c.id for c in self.timed() if c.workload != KIND and not is_control(c, layers)}


def open_session(
    console: Console, suite_path: Path, *, results: Path, launches: int | None, only: list[str] | None
) -> Session:
    """Look at the machine, expand the suite, fetch what it needs, add the self-proof."""
    from bitbench.cli.in_turns import make_ready
    from bitbench.execute.identity import describe
    from bitbench.store.figures import machine_of
    from bitbench.suite.load import load_suite
    from bitbench.workloads.self_proof import with_proof

    suite = load_suite(suite_path)
    ready = make_ready(console, suite, suite_path, results=results, launches=launches, only=only)
    if not any(point.phase == "timed" for point in ready.plan.points):
        raise UserError(
            f"suite {suite.name!r} times nothing" + (f" that matches {', '.join(only)}" if only else ""),
            "two versions are held against each other by time; bytes alone are judged with: "
            "bitbench run SUITE, then bitbench gate RUN",
        )
    ready = replace(ready, plan=with_proof(ready.plan))
    info = describe(ready.plan, ready.machine, suite.name, str(suite_path))
    return Session(ready, machine_of(info.environment, info.threads, info.code.native))


def measure_calibration(console: Console, session: Session, side: SideCode, path: Path) -> Calibration:
    """Hold ``side`` against itself, launch by launch, and store at ``path`` what that says."""
    from bitbench.analysis.calibration import calibrate_run
    from bitbench.cli.in_turns import first_round
    from bitbench.execute.jobs import narrowed
    from bitbench.store.calibration import save_calibration

    sides = replace(side, side="base"), replace(side, side="head")
    plan = narrowed(session.plan, session.timed())
    run = first_round(console, session.ready, sides, "calibrate", plan=plan)
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
