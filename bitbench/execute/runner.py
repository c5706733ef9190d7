"""From a plan to a run folder: starts workers, survives their deaths, writes every outcome.

The runner is the single writer. Whatever ends a worker (an abort, a hang, the kernel's memory
killer) costs the case in flight; a new worker carries on with the rest of its job.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitbench.errors import ToolError, UserError
from bitbench.execute import jobs, outcome
from bitbench.execute.identity import check_same_run, describe
from bitbench.execute.jobs import Job, Pair, Setting
from bitbench.execute.process import Hang, Worker
from bitbench.execute.progress import Sink
from bitbench.measure import host
from bitbench.measure.telemetry import Telemetry
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, Record, Status
from bitbench.store.writer import RunWriter, utc_now
from bitbench.suite.expand import SHARED, Plan

LOGS = "logs"
CACHE = "cache"

NOT_ACCURACY = frozenset({"training.seconds"})


@dataclass(frozen=True)
class Limits:
    """How long a silent worker is waited for, in seconds."""

    start: float = 300.0
    """Until its first sign of life: importing torch from a cold disk."""
    least: float = 120.0
    """Between two signs of life, at least."""
    factor: float = 20.0
    """Between two signs of life: this many times the estimate of all layers at the point."""


@dataclass
class Machine:
    """What a probe found: see :func:`bitbench.execute.probe.facts`."""

    device: str
    threads: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def peaks(self) -> dict[str, Any]:
        peaks: dict[str, Any] = self.facts.get("peaks", {})
        return peaks


def default_threads() -> int:
    """Threads where neither suite nor user names a number: the physical cores available."""
    return host.physical_cores()


def probe(
    device: str, threads: int, logs: Path, *, peaks: bool = True, limits: Limits | None = None
) -> Machine:
    """Ask a worker about the machine: resolved device, torch, kernels and, with ``peaks``, limits.

    ``device`` is ``auto``, ``cpu`` or ``cuda``. Raises :class:`UserError` where CUDA is asked for
    and missing, :class:`ToolError` where no worker can run.
    """
    job = Job(mode="probe", name="probe", seed=0, device=device, threads=threads, measure_peaks=peaks)
    with Worker(job, logs / "probe.log") as worker:
        try:
            event = worker.next_event((limits or Limits()).start)
        except Hang:
            raise ToolError("the worker that looks at the machine does not answer") from None
        if event is None:
            raise ToolError(
                f"the worker that looks at the machine died: {worker.last_words() or 'no message'}",
                "check that torch can be imported: python -c 'import torch'",
            )
        if event["event"] == "refused":
            raise UserError(event["message"], event["remedy"])
    return Machine(event["facts"]["device"], threads, event["facts"])


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
) -> RunData:
    """Run everything of ``plan`` that ``run_dir`` lacks, and return the run.

    A new run folder is given its head first. With ``resume`` the folder holds a run already,
    which must be of the same plan, machine and code (:class:`UserError` otherwise).
    KeyboardInterrupt passes through after everything measured is on the disk.
    """
    if resume:
        stored = load_run(run_dir)
        check_same_run(stored, plan, machine)
        machine.facts["peaks"] = stored.info.environment.get("peaks", {})
        writer = RunWriter.reopen(run_dir)
        records = stored.records
    else:
        writer = RunWriter.create(run_dir, describe(plan, machine, run_dir.name, suite_path), plan.cases)
        records = []
    with writer:
        cache = run_dir / CACHE
        cache.mkdir(exist_ok=True)
        runner = _Runner(plan, run_dir, writer, sink, machine, limits or Limits(), records)
        runner.run(telemetry_period)
        shutil.rmtree(cache, ignore_errors=True)
        for log in (run_dir / LOGS).glob("*.log"):
            if not log.stat().st_size:
                log.unlink()
    return load_run(run_dir)


class _Runner:
    def __init__(
        self,
        plan: Plan,
        run_dir: Path,
        writer: RunWriter,
        sink: Sink,
        machine: Machine,
        limits: Limits,
        records: Iterable[Record],
    ) -> None:
        self.plan = plan
        self.logs = run_dir / LOGS
        self.writer = writer
        self.sink = sink
        self.limits = limits
        self.cases = {case.id: case for case in plan.cases}
        self.records: dict[Pair, Record] = {(r.case, r.launch): r for r in records}
        self.setting = Setting(
            machine.device, machine.threads, str((run_dir / CACHE).resolve()), machine.peaks
        )
        self.point_seconds: dict[str, float] = {}
        """Estimate of a point, one record of each of its cases."""
        self.seconds: dict[str, float] = {}
        """Estimate of one record of a case, its part in opening the point included."""
        for point in plan.points:
            cases, opening = plan.case_seconds(point), plan.open_seconds(point)
            self.point_seconds[point.id] = opening + sum(cases.values())
            opened = opening * plan.processes_at(point) / (point.launches * len(cases))
            self.seconds |= {case: seconds + opened for case, seconds in cases.items()}
        self.telemetry: Telemetry

    def run(self, telemetry_period: float) -> None:
        missing = self._missing()
        self.sink.started(len(missing), sum(self.seconds[case] for case, _ in missing))
        self.telemetry = Telemetry(self.writer.telemetry, period=telemetry_period).start()
        try:
            self._once()
            self._launches()
        finally:
            self.telemetry.stop()
            self.sink.finished()
        if self.telemetry.error is not None:
            raise self.telemetry.error

    def _missing(self) -> set[Pair]:
        wanted = {(case.id, n) for case in self.plan.cases for n in range(case.launches)}
        return wanted - set(self.records)

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
                    self._store([_copy(source, case)])

    def _computed(self, case: Case, launch: int) -> Record | None:
        for other in self.plan.cases:
            if other.point == case.point and other.numerics == case.numerics and other.id != case.id:
                record = self.records.get((other.id, launch))
                if record is not None and record.status is Status.OK and not record.shared_from:
                    return record
        return None

    def _launches(self) -> None:
        timed = [point.launches for point in self.plan.points if point.phase == "timed"]
        for launch in range(max(timed, default=0)):
            job = jobs.timed_job(self.plan, self.setting, launch, self._missing())
            if job.visits:
                self._do(job)

    def _do(self, job: Job) -> None:
        """Run ``job`` to its end, with as many workers as it takes."""
        while job.visits:
            death = self._attempt(job)
            if death:
                self._store(death)
                self.sink.note(f"{job.name}: {death[0].reason}; a new worker carries on with the rest")
            job = jobs.without(job, self.records)
        self.writer.sync()

    def _attempt(self, job: Job) -> list[Record] | None:
        """One worker's try at ``job``: None when it ends well, else records of what died with it."""
        log = self.logs / f"{job.name}.log"
        killed_before = host.oom_kills()
        at: dict[str, Any] = {}
        with Worker(job, log) as worker:
            self.telemetry.watch(job.name, worker.process.pid)
            try:
                while (event := worker.next_event(self._patience(at), self._tick)) is not None:
                    if event["event"] == "at":
                        at = event
                        case = self.cases[event["case"] or self._first_case(event["point"])]
                        self.sink.at(job.name, case, event["stage"])
                    elif event["event"] == "record":
                        self._store([Record.model_validate(event["record"])])
                    elif event["event"] == "done":
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
        visit = next(v for v in job.visits if v.point == at["point"] and at["launch"] in v.launches)
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
        if not at:
            return self.limits.start
        return max(self.limits.least, self.limits.factor * self.point_seconds[at["point"]])

    def _tick(self) -> None:
        if self.telemetry.error is not None:
            raise self.telemetry.error

    def _first_case(self, point: str) -> str:
        return next(case.id for case in self.plan.cases if case.point == point)

    def _store(self, records: list[Record]) -> None:
        self.writer.records(records)
        for record in records:
            self.records[record.case, record.launch] = record
            self.sink.recorded(self.cases[record.case], record, self.seconds[record.case])


def _copy(source: Record, case: Case) -> Record:
    """The accuracy of ``source`` as the record of an equal case. Bytes and seconds stay behind:
    they belong to the layer that was measured."""
    return Record(
        case=case.id,
        launch=source.launch,
        status=source.status,
        metrics=_accuracy(source.metrics),
        replicates=_accuracy(source.replicates),
        shared_from=source.case,
        started=utc_now(),
    )


def _accuracy(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith(("quality.", "training.")) and name not in NOT_ACCURACY
    }
