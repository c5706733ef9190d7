"""Two versions of a library measured in turns: two live processes a launch, one for each side.

Times of two versions measured one after the other differ by whatever the machine did in between;
times from one process differ by that process's memory layout. So each launch starts a fresh
process for each side, and the two take turns at every layer of every point (A B B A, then B A A B),
while the other one sleeps. A launch gives one ratio, launches give the interval. Torch-free.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bitbench.errors import ToolError
from bitbench.execute import jobs
from bitbench.execute.backstop import Backstop
from bitbench.execute.copies import private_copy
from bitbench.execute.jobs import Setting, Visit
from bitbench.execute.losses import Losses
from bitbench.execute.lots import Lots
from bitbench.execute.machine import Machine
from bitbench.execute.observed import Observer
from bitbench.execute.partner import Lost, Partner
from bitbench.execute.patience import Limits, Patience
from bitbench.execute.placement import cores, seat, seats
from bitbench.execute.progress import Sink
from bitbench.execute.rounds import common
from bitbench.execute.runner import CACHE, LOGS, Runner
from bitbench.execute.sides import SideCode, describe_sides
from bitbench.execute.stages import IDLE, Stages
from bitbench.execute.steered import Command
from bitbench.measure.clock import Budget, turns
from bitbench.measure.lock import device_lock
from bitbench.measure.telemetry import Telemetry
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Purpose, Record, RunEnd, Side, Status
from bitbench.store.writer import RunWriter, utc_now
from bitbench.suite.expand import Plan, Point
from bitbench.workloads.self_proof import slowed_layers

SIDES: tuple[Side, Side] = ("base", "head")

PAIRED_BUDGET = Budget(seconds=0.06)
"""Timed per layer, side and launch. Between launches times differ by more than a longer look at one
of them would take away."""

OPENING = ("open", "close", "start")
"""Stages of a whole point: what dies there takes all its layers along."""


def execute_paired(
    plan: Plan,
    run_dir: Path,
    sides: tuple[SideCode, SideCode],
    *,
    sink: Sink,
    machine: Machine,
    purpose: Purpose,
    suite_path: str,
    launches: range | None = None,
    only: set[str] | None = None,
    reverse: bool = False,
    slowdown: Mapping[str, float] | None = None,
    append: bool = False,
    limits: Limits | None = None,
    telemetry_period: float = 1.0,
    wait: bool = False,
) -> RunData:
    """Measure ``plan`` on both ``sides`` (base, then head) and return the run.

    ``launches`` numbers the launches to make (default: those of the plan), ``only`` narrows them to
    cases by id. ``reverse`` turns the order of points and sides round: the confirmation round, whose
    launches come after the plan's own. ``slowdown`` makes layers of the head side do that much more
    than is booked. With ``append`` the folder holds the run already; else it gets its head first,
    and what is measured once (bytes, accuracy) is measured too.

    A case that fails on one side has its record there, and the other side is measured alone; one
    that kills or hangs its process fails on the other side too, by a record that says so. Every case
    has a record of each side for each launch. KeyboardInterrupt passes through after everything
    measured is on the disk.

    The device is locked meanwhile; where another bitbench holds it, ``wait`` says whether to wait
    or to raise :class:`UserError`.
    """
    if tuple(side.side for side in sides) != SIDES:
        raise ValueError("sides are base, then head")
    slower = {**slowed_layers(plan), **(slowdown or {})}
    with device_lock(machine.device, wait=wait, note=sink.note):
        if append:
            stored = load_run(run_dir)
            machine.take_peaks(stored.info.environment)
            writer, records = RunWriter.reopen(run_dir), stored.records
        else:
            info = describe_sides(plan, machine, run_dir.name, suite_path, sides, purpose, slowdown or {})
            writer, records = RunWriter.create(run_dir, info, plan.cases), []
        with writer:
            run = _PairedRun(plan, run_dir, sides, writer, sink, machine, slower, records, limits or Limits())
            numbers = (
                launches
                if launches is not None
                else range(max((p.launches for p in plan.points if p.phase == "timed"), default=0))
            )
            try:
                run.run(numbers, only, reverse, telemetry_period)
                writer.end(run.end())
            finally:
                shutil.rmtree(run_dir / CACHE, ignore_errors=True)
            for log in (run_dir / LOGS).glob("*.log"):
                if not log.stat().st_size:
                    log.unlink()
        return load_run(run_dir)


class _PairedRun:
    def __init__(
        self,
        plan: Plan,
        run_dir: Path,
        sides: tuple[SideCode, SideCode],
        writer: RunWriter,
        sink: Sink,
        machine: Machine,
        slowdown: Mapping[str, float],
        records: Iterable[Record],
        limits: Limits,
    ) -> None:
        self.plan = plan
        self.run_dir = run_dir
        self.writer = writer
        self.sink = sink
        self.machine = machine
        self.slowdown = dict(slowdown)
        self.limits = limits
        self.patience = Patience(plan, limits)
        self.backstop = Backstop(plan)
        self.stages = Stages()
        self.budget = PAIRED_BUDGET
        self.cores = cores()
        self.cases = {case.id: case for case in plan.cases}
        self.seconds = {case: s for point in plan.points for case, s in plan.case_seconds(point).items()}
        """Estimate of one record of a case."""
        self.settled: set[jobs.Pair] = set()
        """Cases and launches that both sides have a record of."""
        self.stored = list(records)
        for record in self.stored:
            self.backstop.saw(record)
        self.waiting: dict[str, dict[Side, Record]] = {}
        """Records of the point at hand that the other side's is still to come to."""
        self.losses = Losses()
        self.settings = {side.side: self._setting(side) for side in sides}
        self.telemetry: Telemetry
        self.observer: Observer
        self.name = ""

    def _setting(self, side: SideCode) -> Setting:
        # A cache of its own: a conversion by one version must not be measured as the other's.
        cache = self.run_dir / CACHE / side.side
        cache.mkdir(parents=True, exist_ok=True)
        return Setting(
            device=self.machine.device,
            threads=self.machine.threads,
            cache_dir=str(cache.resolve()),
            peaks=self.machine.peaks,
            side=side.side,
            side_root=side.root,
            side_packages=tuple(side.packages),
        )

    def run(self, launches: range, only: set[str] | None, reverse: bool, telemetry_period: float) -> None:
        chosen = [case for case in self.plan.cases if only is None or case.id in only]
        once = jobs.narrowed(self.plan, [case for case in chosen if case.phase == "once"])
        timed = {case.id for case in chosen if case.phase == "timed"}
        counts = {case.id: case.launches for case in once.cases} | dict.fromkeys(timed, len(launches))
        work = sum(count * self.seconds[case] for case, count in counts.items())
        self.sink.started(2 * sum(counts.values()), 2 * work)
        self.telemetry = Telemetry(self.writer.telemetry, period=telemetry_period).start()
        try:
            for side in SIDES:
                self._once(once, side)
            for launch in launches:
                self._launch(launch, timed, launch - launches.start if reverse else None)
        finally:
            self.telemetry.stop()
            self.sink.finished()
        if self.telemetry.error is not None:
            raise self.telemetry.error

    def end(self) -> RunEnd:
        """How the run ended, for the store."""
        return RunEnd(
            finished=utc_now(),
            wall_s=round(self.stages.wall_s, 3),
            stages_s=self.stages.seconds(),
            stops={point.id: "launches" for point in self.plan.points if point.phase == "timed"},
        )

    def _once(self, plan: Plan, side: Side) -> None:
        """Bytes and accuracy of one side, as a plain run measures them."""
        mine = [record for record in self.stored if record.side == side]
        runner = Runner(
            plan, self.run_dir, self.writer, self.sink, self.machine, self.limits, mine, self.settings[side]
        )
        runner.once(self.telemetry, self.stages)

    def _launch(self, launch: int, timed: set[str], mirrored: int | None) -> None:
        """One pair of processes through all points, or as many pairs as it takes. ``mirrored`` is the
        launch whose orders this one reverses."""
        self.name = f"launch-{launch}"
        lots = Lots(self.plan.seed, launch, mirrored)
        points = {point.id: point for point in self.plan.points if point.phase == "timed"}
        order = [points[point] for point in lots.order(list(points), "points")]
        left = [v for v in (self._visit(point, launch, timed) for point in order) if v is not None]
        while left:
            try:
                with ExitStack() as stack:
                    pair = self._start(lots, stack)
                    while left:
                        self._point(pair, left[0], lots)
                        left.pop(0)
            except Lost as lost:
                self._bury(lost, left[0])
                left = [v for v in map(self._rest, left) if v.cases]
        self.stages.enter(IDLE)
        self.writer.sync()

    def _start(self, lots: Lots, stack: ExitStack) -> dict[Side, Partner]:
        """Two fresh processes on the same cores, ready to be told what to do."""
        self.stages.starting()
        pair = {}
        for side in lots.order(SIDES, "start"):
            place = self.run_dir / CACHE / side / self.name
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            root = private_copy(Path(self.settings[side].side_root), self.settings[side].side_packages, place)
            job = jobs.job_for(self.plan, self.settings[side], "steered", self.name)
            slowdown = self.slowdown if side == "head" else {}
            job = job.model_copy(update={"side_root": str(root.resolve()), "slowdown": slowdown})
            partner = Partner(
                job,
                self.run_dir / LOGS / f"{job.name}.log",
                record=self._received,
                at=self._at,
                tick=self._tick,
                memory_was_short=lambda: self.telemetry.memory_was_short(),
            )
            pair[side] = stack.enter_context(partner)
        self.telemetry.watch(self.name, pair["head"].pid)
        self.observer = Observer(self.telemetry)
        for partner in pair.values():
            partner.ready(self.patience.start)
        start = lots.order(range(len(self.cores)), "cores")[0]
        for partner in pair.values():  # only now: starting up, they need not share
            seat(partner.pid, seats(self.machine.threads, self.cores, start))
        return pair

    def _visit(self, point: Point, launch: int, timed: set[str]) -> Visit | None:
        """What is to be measured of ``point``."""
        cases = {case.layer: case.id for case in self.plan.cases_at(point) if case.id in timed}
        left = self._rest(jobs.visit_of(point, cases, [launch]))
        return left if left.cases else None

    def _rest(self, visit: Visit) -> Visit:
        """``visit`` without the cases that are settled."""
        launch = visit.launches[0]
        cases = {layer: c for layer, c in visit.cases.items() if (c, launch) not in self.settled}
        return visit.model_copy(update={"cases": cases})

    def _point(self, pair: dict[Side, Partner], visit: Visit, lots: Lots) -> None:
        """Both sides open the point, take turns at each of its layers, and free it."""
        self.waiting = {}
        ready: dict[Side, dict[str, Any]] = {}
        for side in lots.order(SIDES, visit.point, "open"):
            mine = self._tried(visit, side)
            if mine.cases:
                command = Command(do="open", visit=mine)
                ready[side] = pair[side].ask(command, self.patience, "opened")["layers"]
        timed: dict[str, list[Side]] = {}
        for layer in lots.order(list(self.plan.suite.layers), visit.point, "layers"):
            here = {side: ready[side][layer] for side in ready if layer in ready[side]}
            if here:
                timed[layer] = self._layer({side: pair[side] for side in here}, visit, layer, here, lots)
        # The baseline first: what the others say may refer to its time.
        for layer in sorted(timed, key=lambda name: name != self.plan.suite.baseline):
            for side in timed[layer]:
                command = Command(do="conclude", layer=layer)
                pair[side].ask(command, self.patience, "concluded", case=visit.cases[layer])
        self.stages.enter("close")
        for side in ready:
            pair[side].ask(Command(do="close"), self.patience, "closed")
        left = self._rest(visit).cases
        if left:
            raise ToolError(f"{self.name} ended a point without a record of case {next(iter(left.values()))}")

    def _tried(self, visit: Visit, side: Side) -> Visit:
        """What one side is to try; the rest of ``visit`` has failed there before and gets its record."""
        tried = {}
        for layer, case in visit.cases.items():
            spared = self.backstop.spares(case, side) or self.losses.given_up(case, side)
            if spared is None:
                tried[layer] = case
            else:
                self._received(side, self._failure(case, visit.launches[0], side, *spared))
        return visit.model_copy(update={"cases": tried})

    def _layer(
        self,
        pair: dict[Side, Partner],
        visit: Visit,
        layer: str,
        ready: dict[Side, dict[str, Any]],
        lots: Lots,
    ) -> list[Side]:
        """Turns at one layer; a side that could not open it is absent, one that raises leaves. Returns
        the sides that were timed to the end."""
        case = visit.cases[layer]
        self._at(case, "time")
        facts = list(ready.values())
        rounds = common(facts, self.budget, self.slowdown.get(layer, 0.0) if "head" in pair else 0.0)
        if rounds is None:
            del pair["head"]
            self._received("head", self._not_slowed(visit, layer))
            rounds = common(facts, self.budget)
        if rounds is None or not pair:
            return []
        command = Command(do="time", layer=layer, calls=rounds.calls, blocks=rounds.blocks, stop=rounds.stop)
        for side in turns(lots.order(list(pair), visit.point, "turns", layer), rounds.rounds, 0):
            if side in pair:
                answer = pair[side].ask(command, self.patience, "timed", "left", case=case)
                if answer["event"] == "left":
                    del pair[side]
        return list(pair)

    def _not_slowed(self, visit: Visit, layer: str) -> Record:
        return self._failure(
            visit.cases[layer],
            visit.launches[0],
            "head",
            Status.UNSUPPORTED,
            f"cannot be slowed down by {self.slowdown[layer]:.1%}: its blocks have too few calls for that",
        )

    def _bury(self, lost: Lost, visit: Visit) -> None:
        """A process is gone: records of what it was at, on both sides; the rest is to be measured."""
        launch = visit.launches[0]
        left = list(self._rest(visit).cases.values())
        due = [case for case in left if lost.side not in self.waiting.get(case, {})]
        if lost.case or lost.stage not in OPENING:
            # After its record, what comes next in the point is to blame, so that new processes
            # cannot die of the same again and again; after the last record, nothing is lost.
            due = [lost.case] if lost.case in due else due[:1]
        # Where the lost side has given its records of all that is left, the first: one ends each time.
        for case in due or left[:1]:
            self.losses.add(case, lost.side, lost.status, lost.reason)
            told = f"not measured: the {lost.side} side was lost at this case ({lost.reason})"
            found = self.waiting.pop(case, {})
            if lost.side not in found:
                found[lost.side] = self._failure(case, launch, lost.side, lost.status, lost.reason)
            for side in SIDES:
                if side not in found:
                    found[side] = self._failure(case, launch, side, Status.ERROR, told)
            self._store(case, found)
        self.sink.note(
            f"{self.name}, {lost.side} side: {lost.reason}; two new workers carry on with the rest"
        )

    def _failure(self, case: str, launch: int, side: Side, status: Status, reason: str) -> Record:
        return Record(case=case, launch=launch, side=side, status=status, reason=reason, started=utc_now())

    def _received(self, side: Side, record: Record) -> None:
        found = self.waiting.setdefault(record.case, {})
        found[side] = self.observer.add(record)
        if len(found) == len(SIDES):
            self._store(record.case, self.waiting.pop(record.case))

    def _store(self, case: str, found: Mapping[Side, Record]) -> None:
        """Both records of a case, together: no launch has only one of them."""
        records = [found[side] for side in SIDES]
        self.writer.records(records)
        self.settled.add((case, records[0].launch))
        for record in records:
            self.backstop.saw(record)
            self.stages.recorded(record)
            self.sink.recorded(self.cases[case], record, self.seconds[case])

    def _at(self, case: str, stage: str) -> None:
        self.stages.enter(stage)
        # No case: the turns of two sides share a window, so that neither is booked its energy.
        self.observer.at({"stage": stage, "case": ""})
        if case:
            self.sink.at(self.name, self.cases[case], stage)

    def _tick(self) -> None:
        if self.telemetry.error is not None:
            raise self.telemetry.error
