"""From a plan to a run folder: starts workers, survives their deaths, writes every outcome.

The runner is the single writer. Whatever ends a worker (an abort, a hang, the kernel's memory
killer) costs the case in flight; a new worker carries on with the rest of its job.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from bitbench.errors import ToolError
from bitbench.execute import jobs, outcome
from bitbench.execute.backstop import Backstop
from bitbench.execute.identity import check_same_run, describe
from bitbench.execute.jobs import Job, Pair, Setting, Visit
from bitbench.execute.machine import Machine
from bitbench.execute.observed import Observer
from bitbench.execute.patience import Limits, Patience
from bitbench.execute.process import Hang, Worker
from bitbench.execute.progress import Sink
from bitbench.execute.shared import copied
from bitbench.execute.stages import IDLE, START, Stages
from bitbench.execute.stopping import Allowance, Standing, by_case, next_launch, reason, sound, standings
from bitbench.measure import host
from bitbench.measure.lock import device_lock
from bitbench.measure.telemetry import Telemetry
from bitbench.store.earlier import set_aside
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, Record, RunEnd, Status
from bitbench.store.writer import RunWriter, utc_now
from bitbench.suite.expand import PROCESS_SECONDS, SHARED, Plan, counted

LOGS = "logs"
CACHE = "cache"


def execute(
    plan: Plan,
    run_dir: Path,
    *,
    sink: Sink,
    machine: Machine,
    suite_path: str = "",
    resume: bool = False,
    limits: Limits | None = None,
    telemetry_period: float = 1.0,
    allowance: Allowance | None = None,
    wait: bool = False,
    again: Collection[Status] = (),
    anew: bool = False,
) -> RunData:
    """Run everything of ``plan`` that ``run_dir`` lacks, and return the run.

    A new run folder is given its head first. With ``resume`` the folder holds a run already,
    which must be of the same plan, machine and code (:class:`UserError` otherwise).
    Of what it holds, records with a status in ``again`` are measured again and replaced one by one.
    With ``anew`` the folder holds a run already that is to be measured again, all of it, as the code
    is now; what it holds is kept (:func:`bitbench.store.earlier.set_aside`).
    ``allowance`` lets further launches follow where intervals are wide. KeyboardInterrupt passes
    through after everything measured is on the disk.

    The device is locked meanwhile; where another bitbench holds it, ``wait`` says whether to wait
    or to raise :class:`UserError`.
    """
    with device_lock(machine.device, wait=wait, note=sink.note):
        if resume:
            stored = load_run(run_dir)
            check_same_run(stored, plan, machine)
            machine.take_peaks(stored.info.environment)
            writer = RunWriter.reopen(run_dir)
            records = [record for record in stored.records if record.status not in again]
            repeated = {(r.case, r.launch) for r in stored.records if r.status in again}
        else:
            if anew:
                kept = set_aside(run_dir)
                sink.note(f"the earlier results are kept in {kept}")
            writer = RunWriter.create(run_dir, describe(plan, machine, run_dir.name, suite_path), plan.cases)
            records, repeated = [], set()
        with writer:
            cache = run_dir / CACHE
            cache.mkdir(exist_ok=True)
            runner = Runner(
                plan, run_dir, writer, sink, machine, limits or Limits(), records, repeated=repeated
            )
            runner.run(telemetry_period, allowance)
            writer.end(runner.end(allowance))
            shutil.rmtree(cache, ignore_errors=True)
            for log in (run_dir / LOGS).glob("*.log"):
                if not log.stat().st_size:
                    log.unlink()
        return load_run(run_dir)


class Runner:
    """Measures what a run lacks and stores it. One for each time a run is worked on."""

    def __init__(
        self,
        plan: Plan,
        run_dir: Path,
        writer: RunWriter,
        sink: Sink,
        machine: Machine,
        limits: Limits,
        records: Iterable[Record],
        setting: Setting | None = None,
        repeated: Collection[Pair] = (),
    ) -> None:
        self.plan = plan
        self.logs = run_dir / LOGS
        self.writer = writer
        self.sink = sink
        self.patience = Patience(plan, limits)
        self.backstop = Backstop(plan)
        self.cases = {case.id: case for case in plan.cases}
        self.records: dict[Pair, Record] = {(r.case, r.launch): r for r in records}
        for record in self.records.values():
            self.backstop.saw(record)
        self.setting = setting or Setting(
            machine.device,
            machine.threads,
            str((run_dir / CACHE).resolve()),
            machine.peaks,
            machine.peaks_at,
        )
        self.seconds: dict[str, float] = {}
        """Estimate of one record of a case, its part in opening the point included."""
        for point in plan.points:
            cases, opening = plan.case_seconds(point), plan.open_seconds(point)
            opened = opening * plan.processes_at(point) / (point.launches * len(cases))
            self.seconds |= {case: seconds + opened for case, seconds in cases.items()}
        self.repeated = set(repeated)
        """Wanted whether or not the suite asks for them: launches that a budget had added."""
        self.stages = Stages()
        self.telemetry: Telemetry

    def run(self, telemetry_period: float, allowance: Allowance | None = None) -> None:
        missing = self._missing()
        self.sink.started(len(missing), sum(self.seconds[case] for case, _ in missing))
        self.telemetry = Telemetry(self.writer.telemetry, period=telemetry_period).start()
        try:
            self._once()
            self._launches()
            if allowance is not None:
                self._further(allowance)
        finally:
            self.telemetry.stop()
            self.sink.finished()
        if self.telemetry.error is not None:
            raise self.telemetry.error

    def once(self, telemetry: Telemetry, stages: Stages) -> None:
        """Only what is measured once, for a run that watches the machine and its time itself."""
        self.telemetry, self.stages = telemetry, stages
        self._once()

    def _missing(self) -> set[Pair]:
        wanted = {(case.id, n) for case in self.plan.cases for n in range(case.launches)}
        return (wanted | self.repeated) - set(self.records)

    def _once(self) -> None:
        for number, group in enumerate(jobs.once_groups(self.plan)):
            # Again where the case that was to compute an accuracy for others failed: the next tries.
            while (job := self._once_job(number, group)).visits:
                self._do(job)

    def _once_job(self, number: int, group: list[Case]) -> Job:
        self._share(group)
        return jobs.once_job(self.plan, self.setting, number, group, self._missing())

    def _share(self, cases: Iterable[Case]) -> None:
        """Accuracy that an equal case has computed is copied, naming its source."""
        missing = self._missing()
        for case in cases:
            if case.replicate not in SHARED:
                continue
            for launch in range(case.launches):
                source = self._computed(case, launch) if (case.id, launch) in missing else None
                if source is not None:
                    self._store([copied(source, case)])

    def _computed(self, case: Case, launch: int) -> Record | None:
        for other in self.plan.cases:
            if other.point == case.point and other.numerics == case.numerics and other.id != case.id:
                record = self.records.get((other.id, launch))
                if record is not None and record.status is Status.OK and not record.shared_from:
                    return record
        return None

    def _launches(self) -> None:
        for launch in sorted({n for case, n in self._missing() if self.cases[case].phase == "timed"}):
            self._do(jobs.timed_job(self.plan, self.setting, launch, self._missing()))

    def _further(self, allowance: Allowance) -> None:
        """Launches beyond the suite's, of the points with the widest intervals."""
        timed = [n for case, n in self.records if self.cases[case].phase == "timed"]
        launch = max(timed, default=-1) + 1
        while chosen := self._widest(allowance):
            self.sink.note(f"launch-{launch}: {self._told(chosen[0])}; {counted(len(chosen), 'point')}")
            of_case = by_case(self.records.values())
            points = {one.point for one in chosen}
            cases = [case for case in self.plan.cases if case.point in points]
            wanted = {(case.id, launch) for case in cases if sound(of_case.get(case.id, []))}
            self.sink.extended(len(wanted), sum(self.seconds[case] for case, _ in wanted))
            self._do(jobs.timed_job(self.plan, self.setting, launch, wanted))
            launch += 1

    def _widest(self, allowance: Allowance) -> list[Standing]:
        stands = standings(self.plan, self.records.values()).values()
        return next_launch(
            (one for one in stands if one is not None),
            allowance.width,
            allowance.seconds - self.stages.wall_s,
            self.stages.start_seconds or PROCESS_SECONDS,
        )

    def _told(self, widest: Standing) -> str:
        label = next(point.label for point in self.plan.points if point.id == widest.point)
        width = f"within {widest.width:.1%}" if math.isfinite(widest.width) else "without an interval"
        return f"widest so far {label}, {width}"

    def end(self, allowance: Allowance | None = None) -> RunEnd:
        """How the run ended, for the store."""
        stands = standings(self.plan, self.records.values())
        return RunEnd(
            finished=utc_now(),
            wall_s=round(self.stages.wall_s, 3),
            stages_s=self.stages.seconds(),
            stops={point: reason(one, allowance) for point, one in stands.items()},
        )

    def _do(self, job: Job) -> None:
        """Run ``job`` to its end, with as many workers as it takes."""
        while (job := self._without_spared(job)).visits:
            death = self._attempt(job)
            self.stages.enter(IDLE)
            if death:
                self._store(death)
                self.sink.note(f"{job.name}: {death[0].reason}; a new worker carries on with the rest")
        self.writer.sync()

    def _without_spared(self, job: Job) -> Job:
        """What is left of ``job``, without what need not be tried: that is recorded as such."""
        job = jobs.without(job, self.records)
        for case, launch in list(jobs.pairs(job)):
            if spared := self.backstop.spares(case, job.side):
                status, reason = spared
                self._store(
                    [Record(case=case, launch=launch, status=status, reason=reason, started=utc_now())]
                )
        return jobs.without(job, self.records)

    def _comes_to_spared(self, job: Job, event: dict[str, Any]) -> bool:
        """Whether the worker has come to a case that need not be tried any more: its visit is left
        to a new worker, which never had its memory run out."""
        visit = _visit_of(job, event)
        here = [event["case"]] if event["case"] else visit.cases.values()
        return any(
            (case, event["launch"]) not in self.records and self.backstop.spares(case, job.side)
            for case in here
        )

    def _attempt(self, job: Job) -> list[Record] | None:
        """One worker's try at ``job``: None when it ends well, else records of what died with it."""
        log = self.logs / f"{job.name}.log"
        killed_before = host.oom_kills()
        at: dict[str, Any] = {}
        observer = Observer(self.telemetry)
        self.stages.starting()
        with Worker(job, log) as worker:
            self.telemetry.watch(job.name, worker.process.pid)
            try:
                while (event := worker.next_event(self._patience(at), self._tick)) is not None:
                    if event["event"] == "at":
                        if self._comes_to_spared(job, event):
                            return None
                        at = event
                        observer.at(event)
                        case = self.cases[event["case"] or self._first_case(event["point"])]
                        self.sink.at(job.name, case, event["stage"])
                        self.stages.enter(event["stage"])
                    elif event["event"] == "record":
                        self._store([observer.add(Record.model_validate(event["record"]))])
                    elif event["event"] == "peaks":
                        self.setting = self.setting.with_peaks(event["peaks"])
                    elif event["event"] == "done":
                        self.stages.enter(START)
                        worker.wait()
                        missing = [pair for pair in jobs.pairs(job) if pair not in self.records]
                        if missing:
                            raise ToolError(
                                f"the worker of {job.name} ended without a record of case {missing[0][0]}",
                                f"see {log}",
                            )
                        return None
            except Hang:
                worker.kill()
                seconds = self._patience(at)
                what = f"no sign of life for {seconds:.0f} s while in stage {at.get('stage', 'start')!r}"
                return self._casualties(job, at, Status.TIMEOUT, what, worker)
            code = worker.wait()
            short = host.oom_kills() > killed_before or self.telemetry.memory_was_short()
        return self._casualties(job, at, *outcome.of_death(code, short, f"{LOGS}/{log.name}"), worker)

    def _casualties(
        self, job: Job, at: dict[str, Any], status: Status, reason: str, worker: Worker
    ) -> list[Record]:
        """Records of the case in flight; of the whole point where it died while being opened."""
        if not at:
            raise ToolError(
                f"the worker of {job.name} could not start ({reason}): {worker.last_words() or 'no message'}",
                f"see {worker.log}",
            )
        visit = _visit_of(job, at)
        dead = [at["case"]] if at["case"] else list(visit.cases.values())
        lost = [(case, at["launch"]) for case in dead if (case, at["launch"]) not in self.records]
        if not lost:
            # It died just after a record. What comes next in the point is to blame, so that a new
            # worker cannot die of the same again and again; after the last record, nothing is lost.
            here = ((c, n) for c in visit.cases.values() for n in visit.launches)
            lost = [pair for pair in here if pair not in self.records][:1]
        return [
            Record(
                case=case,
                launch=launch,
                status=status,
                reason=f"{reason} (stage {at['stage']})" if status is not Status.TIMEOUT else reason,
                started=utc_now(),
            )
            for case, launch in lost
        ]

    def _patience(self, at: dict[str, Any]) -> float:
        return self.patience.of(at.get("point", ""), at.get("case", ""))

    def _tick(self) -> None:
        if self.telemetry.error is not None:
            raise self.telemetry.error

    def _first_case(self, point: str) -> str:
        return next(case.id for case in self.plan.cases if case.point == point)

    def _store(self, records: list[Record]) -> None:
        if self.setting.side:
            records = [record.model_copy(update={"side": self.setting.side}) for record in records]
        self.writer.records(records)
        for record in records:
            self.backstop.saw(record)
            self.records[record.case, record.launch] = record
            self.stages.recorded(record)
            self.sink.recorded(self.cases[record.case], record, self.seconds[record.case])


def _visit_of(job: Job, at: dict[str, Any]) -> Visit:
    """The visit that an event of ``job``'s worker is about."""
    here = [v for v in job.visits if v.point == at["point"] and at["launch"] in v.launches]
    return next((v for v in here if at["case"] in v.cases.values()), here[0])
