"""What the runner tells a worker to do, and what the worker answers. Torch-free.

A job goes to the worker's standard input as one JSON document. Events come back on a pipe of
their own, one JSON object a line, so that nothing a library prints can be mistaken for one:

``{"event": "at", "point": ..., "case": ..., "launch": n, "stage": ...}``
    sent before work on a case starts: what dies next, died there (``case`` is empty while a
    point is being opened)
``{"event": "record", "record": {...}}``   one outcome
``{"event": "facts", "facts": {...}}``     the answer to a probe
``{"event": "refused", "message": ..., "remedy": ...}``  a probe asked for what is not there
``{"event": "peaks", "peaks": {...}}``     limits of the machine, for the number of threads they
    name, that a result made the worker measure again, and that were higher: later workers start from them
``{"event": "done"}``                      the job is finished
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.clock import shuffled
from bitbench.store.schema import Case, Side
from bitbench.suite.expand import SHARED, Plan, Point, process_of

Pair = tuple[str, int]
"""A case id and a launch (or seed): what one record is the outcome of."""


class Visit(BaseModel):
    """One point as a worker needs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    point: str
    workload: str
    spec: dict[str, Any]
    params: dict[str, Any]
    cases: dict[str, str]
    """Case ids by layer, in suite order: the layers to measure."""
    launches: list[int]
    """Launches to record of each of them: one when timed, the missing seeds when not."""


class Job(BaseModel):
    """One worker process's work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["probe", "timed", "once", "steered"]
    """``steered``: the runner says each step (:mod:`bitbench.execute.steered`)."""
    name: str
    """``launch-0``, ``once-3``: names the log file and the telemetry."""
    seed: int
    device: str
    """``cpu`` or ``cuda``; a probe also takes ``auto``."""
    threads: int
    cache_dir: str = ""
    baseline: str = ""
    layers: dict[str, dict[str, Any]] = {}
    visits: list[Visit] = []
    peaks: dict[str, Any] = {}
    """Measured limits of the machine (:class:`bitbench.measure.roofline.Peaks`)."""
    peaks_at: dict[int, dict[str, Any]] = {}
    """The same for other numbers of threads that entries of the suite name."""
    measure_peaks: bool = True
    """Whether a probe measures them."""
    measure_peaks_at: list[int] = []
    """Numbers of threads for which a probe measures them besides."""
    side: Side = ""
    """``base`` or ``head`` where two versions of the library are compared; else empty."""
    side_root: str = ""
    """Folder from which ``side_packages`` are imported; empty means the installed ones. bitbench
    itself is always the measuring one, so that both sides are held against the same ruler."""
    side_packages: list[str] = ["impl"]
    slowdown: dict[str, float] = {}
    """By layer, extra work to put in so that it shows: 0.1 means 110 calls where 100 are booked."""


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run share."""

    device: str
    threads: int
    cache_dir: str
    peaks: dict[str, Any]
    peaks_at: dict[int, dict[str, Any]] = field(default_factory=dict)
    side: Side = ""
    side_root: str = ""
    side_packages: tuple[str, ...] = ()

    def with_peaks(self, peaks: dict[str, Any]) -> Setting:
        """The same with newer limits for the number of threads that they name."""
        if peaks["threads"] == self.threads:
            return replace(self, peaks=peaks)
        return replace(self, peaks_at={**self.peaks_at, peaks["threads"]: peaks})


def layer_spec(job: Job, layer: str) -> LayerSpec:
    """The job's layer of that name as its kind describes it."""
    spec = job.layers[layer]
    return layer_registry.get(str(spec["kind"])).spec.model_validate_json(json.dumps(spec))


def threads_at(job: Job, visit: Visit) -> int:
    """Threads that the point is measured with: its entry's number, else the run's."""
    return int(visit.spec.get("threads") or job.threads)


def derive_seed(*parts: Any) -> int:
    """A seed that depends on all ``parts`` (63 bits): equal parts, equal seed, on any machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def job_for(plan: Plan, setting: Setting, mode: Literal["timed", "once", "steered"], name: str) -> Job:
    """A job without visits yet."""
    return Job(
        mode=mode,
        name=f"{name}-{setting.side}" if setting.side else name,
        seed=plan.seed,
        device=setting.device,
        threads=setting.threads,
        cache_dir=setting.cache_dir,
        baseline=plan.suite.baseline,
        layers={key: spec.model_dump(mode="json") for key, spec in plan.suite.layers.items()},
        peaks=setting.peaks,
        peaks_at=setting.peaks_at,
        side=setting.side,
        side_root=setting.side_root,
        side_packages=list(setting.side_packages),
    )


def timed_job(plan: Plan, setting: Setting, launch: int, missing: Set[Pair]) -> Job:
    """Launch ``launch`` of the timed points: those with missing records, in an order drawn from
    the run's seed and the launch. The order does not depend on what is missing."""
    visits = []
    points = [p for p in plan.points if p.phase == "timed"]
    ids = shuffled([p.id for p in points], random.Random(derive_seed(plan.seed, launch, "points")))
    by_id = {p.id: p for p in points}
    for point in (by_id[i] for i in ids):
        cases = {c.layer: c.id for c in plan.cases_at(point) if (c.id, launch) in missing}
        if cases:
            visits.append(visit_of(point, cases, [launch]))
    return job_for(plan, setting, "timed", f"launch-{launch}").model_copy(update={"visits": visits})


def once_groups(plan: Plan) -> list[list[Case]]:
    """The ``once`` cases that share a process, in the order written
    (see :func:`bitbench.suite.expand.process_of`)."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in plan.cases:
        if case.phase == "once":
            groups.setdefault(process_of(case), []).append(case)
    return list(groups.values())


def once_job(plan: Plan, setting: Setting, number: int, group: list[Case], missing: Set[Pair]) -> Job:
    """The missing records of one group, point by point; of cases whose accuracy is equal, the first."""
    visits = []
    chosen: set[tuple[str, str, int]] = set()
    for point in plan.points:
        wanted: dict[str, list[int]] = {}
        cases = {case.layer: case.id for case in group if case.point == point.id}
        for case in (case for case in group if case.point == point.id):
            launches = [n for n in range(case.launches) if (case.id, n) in missing]
            if point.replicate in SHARED:
                launches = [n for n in launches if (point.id, case.numerics, n) not in chosen]
                chosen.update((point.id, case.numerics, n) for n in launches)
            wanted[case.layer] = launches
        if cases:
            visits += _cut(visit_of(point, cases, []), wanted)
    return job_for(plan, setting, "once", f"once-{number}").model_copy(update={"visits": visits})


def without(job: Job, settled: Iterable[Pair]) -> Job:
    """``job`` without the pairs that have a record."""
    gone = set(settled)
    visits = []
    for visit in job.visits:
        left = {k: [n for n in visit.launches if (c, n) not in gone] for k, c in visit.cases.items()}
        visits += _cut(visit, left)
    return job.model_copy(update={"visits": visits})


def _cut(visit: Visit, wanted: dict[str, list[int]]) -> list[Visit]:
    """``visit`` cut down to the launches ``wanted`` of each layer: one visit as a rule, more where
    layers lack different ones."""
    layers_by_launches: dict[tuple[int, ...], dict[str, str]] = {}
    for layer, launches in wanted.items():
        if launches:
            layers_by_launches.setdefault(tuple(launches), {})[layer] = visit.cases[layer]
    return [
        visit.model_copy(update={"cases": cases, "launches": list(launches)})
        for launches, cases in layers_by_launches.items()
    ]


def pairs(job: Job) -> Iterator[Pair]:
    """Every record ``job`` is to give."""
    for visit in job.visits:
        for case in visit.cases.values():
            for launch in visit.launches:
                yield case, launch


def narrowed(plan: Plan, stored: list[Case]) -> Plan:
    """``plan`` cut down to the cases of a stored run, with that run's numbers of launches."""
    kept = {case.id: case for case in stored}
    cases = [kept[case.id] for case in plan.cases if case.id in kept]
    layers: dict[str, list[str]] = {}
    launches: dict[str, int] = {}
    for case in cases:
        layers.setdefault(case.point, []).append(case.layer)
        launches[case.point] = case.launches
    points = [replace(p, layers=layers[p.id], launches=launches[p.id]) for p in plan.points if p.id in layers]
    timed = [p.launches for p in points if p.phase == "timed"]
    return replace(plan, points=points, cases=cases, launches=max(timed, default=plan.launches))


def visit_of(point: Point, cases: dict[str, str], launches: list[int]) -> Visit:
    """``point`` as a worker needs it; ``cases`` are ids by layer."""
    return Visit(
        point=point.id,
        workload=point.workload,
        spec=point.spec.model_dump(mode="json"),
        params=point.params,
        cases=cases,
        launches=launches,
    )
