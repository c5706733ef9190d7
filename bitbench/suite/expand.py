"""A suite becomes a plan: points to visit, and the cases measured there. Torch-free and pure."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from bitbench.errors import UserError
from bitbench.layers import registry as layer_registry
from bitbench.layers.base import CONDITIONS
from bitbench.plugins import join_names
from bitbench.store.schema import Case, Phase, Replicate, all_params
from bitbench.suite.schema import Suite
from bitbench.suite.select import holds
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import PointPlan, WorkloadSpec

QUICK_LAUNCHES = 2
"""Launches under ``--quick``: the least that shows any spread between processes."""

PROCESS_SECONDS = 1.2
"""Start of a worker on a two-core machine: interpreter, torch, kernels, and its orderly end."""

NEIGHBOURS_COST = 2.0
"""Beside busy neighbours a layer takes this many times as long: its untimed calls wait for a core too."""

SHARED: frozenset[Replicate] = frozenset({"documents", "images", "seeds"})
"""Accuracy: computed once for all cases of a point whose numerics are equal."""


@dataclass(frozen=True)
class Point:
    """One place in a workload; all its layers are measured together."""

    id: str
    workload: str
    """Workload kind."""
    entry: int
    """Position of the workload in the suite's list."""
    phase: Phase
    replicate: Replicate
    launches: int
    """Records each case of this point needs."""
    params: dict[str, Any]
    layers: list[str]
    """Names in suite order."""
    spec: WorkloadSpec
    """The entry as it applies here (variants and ``--quick`` resolved): what
    :meth:`bitbench.workloads.base.WorkloadKind.open` takes."""

    @property
    def label(self) -> str:
        """Readable name: ``linear/2048x2048/tokens=1/cache=hot``."""
        return self._case("").label.removesuffix("/")

    def _case(self, layer: str) -> Case:
        return Case(
            id="",
            point=self.id,
            workload=self.workload,
            entry=self.entry,
            phase=self.phase,
            replicate=self.replicate,
            launches=self.launches,
            layer=layer,
            params=self.params,
            numerics="",
        )


@dataclass(frozen=True)
class Plan:
    """Everything one run will do, in the order written."""

    suite: Suite
    quick: bool
    launches: int
    """Launches of timed points that do not ask for a number of their own."""
    seed: int
    points: list[Point]
    cases: list[Case]
    device: str | None = None
    """``cpu`` or ``cuda`` where that is known, to estimate times by."""

    def cases_at(self, point: Point) -> list[Case]:
        """The cases of one point, in suite order."""
        return [case for case in self.cases if case.point == point.id]

    def data(self) -> list[str]:
        """Catalog names of the weights and texts needed, each once."""
        names = (n for p in self.points for n in workload_registry.get(p.workload).data(p.spec))
        return list(dict.fromkeys(names))

    def counts(self) -> str:
        """``8 points, 10 layers, 68 cases, 2 launches``; launches only where something is timed."""
        parts = [
            counted(len(self.points), "point"),
            counted(len({case.layer for case in self.cases}), "layer"),
            counted(len(self.cases), "case"),
        ]
        launches = max((p.launches for p in self.points if p.phase == "timed"), default=0)
        return ", ".join([*parts, counted(launches, "launch")] if launches else parts)

    def case_seconds(self, point: Point) -> dict[str, float]:
        """Estimated seconds of one record of each case of ``point``, by case id; 0 where its accuracy
        is copied. Neither opening the point nor starting its process is in it."""
        kind = workload_registry.get(point.workload)
        estimate = kind.estimate_on_gpu if self.device == "cuda" else kind.estimate
        seconds: dict[str, float] = {}
        computed: set[str] = set()
        for case in self.cases_at(point):
            copied = point.replicate in SHARED and case.numerics in computed
            computed.add(case.numerics)
            layer = self.suite.layers[case.layer]
            seconds[case.id] = 0.0 if copied else estimate(point.spec, _plan(point), layer)
        if "neighbours" in point.params:
            return {case: NEIGHBOURS_COST * alone for case, alone in seconds.items()}
        return seconds

    def open_seconds(self, point: Point) -> float:
        """Estimated seconds to open ``point`` in one process."""
        return workload_registry.get(point.workload).estimate_open(point.spec, _plan(point))

    def processes_at(self, point: Point) -> int:
        """How many processes open ``point``."""
        if point.phase == "timed":
            return point.launches
        return len({process_of(case) for case in self.cases_at(point)})

    def point_seconds(self, point: Point) -> float:
        """Estimated seconds of all launches of ``point``, without the start of processes."""
        work = point.launches * sum(self.case_seconds(point).values())
        return work + self.processes_at(point) * self.open_seconds(point)

    def estimate_seconds(self) -> float:
        """Estimated seconds of the whole run on an idle machine. Timed points share a process per
        launch; what is measured once shares processes as :func:`process_of` says."""
        launches = max((p.launches for p in self.points if p.phase == "timed"), default=0)
        once = {process_of(case) for case in self.cases if case.phase == "once"}
        return sum(map(self.point_seconds, self.points)) + (launches + len(once)) * PROCESS_SECONDS


def counted(count: int, noun: str) -> str:
    """``1 launch``, ``2 launches``, ``3 cases``."""
    ending = "" if count == 1 else "es" if noun.endswith("ch") else "s"
    return f"{count} {noun}{ending}"


def process_of(case: Case) -> tuple[Any, ...]:
    """Key of the process that a ``once`` case is measured in: equal keys, one process.

    All exact figures of a run share one, the accuracy of a workload entry has one of its own (the
    model is loaded once for all layers), and each layer that is trained has one.
    """
    if case.replicate == "exact":
        return (case.replicate,)
    if case.replicate in ("documents", "images"):
        return (case.replicate, case.entry)
    return (case.replicate, case.entry, case.layer)


def _plan(point: Point) -> PointPlan:
    return PointPlan(point.params, point.phase, point.replicate, point.launches)


def expand(
    suite: Suite,
    *,
    quick: bool = False,
    only: list[str] | None = None,
    launches: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    seed: int | None = None,
) -> Plan:
    """All points and cases of ``suite``.

    ``only`` keeps cases whose id starts with, or whose label contains or matches (``*``, ``?``),
    one of the given patterns; the baseline is kept beside every kept timed or scored case, or
    ratios could not be given. ``launches`` and ``seed`` override the suite. ``device`` leaves out
    entries whose ``when`` asks for another; None keeps them. ``quick`` keeps the first entry of
    each workload kind, cut down as the kind sees fit.

    Raises :class:`UserError` where ``only`` or ``device`` leaves nothing to measure.
    """
    timed_launches = launches or (min(QUICK_LAUNCHES, suite.launches) if quick else suite.launches)
    merged: dict[str, Point] = {}
    for index, entry in enumerate(suite.workloads):
        if _elsewhere(entry, device):
            continue
        if quick and entry.kind in {p.workload for p in merged.values()}:
            continue
        own = timed_launches if launches or quick or entry.launches is None else entry.launches
        for spec, plan in entry_points(entry, suite, quick=quick, device=device):
            names = [n for n in suite.layers if entry_layers(spec, suite, n)]
            point = Point(
                id=_digest("point", entry.kind, settings(spec), plan.params, plan.phase),
                workload=entry.kind,
                entry=index,
                phase=plan.phase,
                replicate=plan.replicate,
                launches=plan.launches or (own if plan.phase == "timed" else 1),
                params=plan.params,
                layers=names,
                spec=spec,
            )
            earlier = merged.get(point.id)
            merged[point.id] = _union(earlier, point, suite) if earlier else point
    points = list(merged.values())
    if not points:
        raise UserError(
            f"suite {suite.name!r} has nothing to measure on {device}",
            "each of its workloads has a `when` that asks for another device",
        )
    cases = [case for point in points for case in _cases(point, suite)]
    if only:
        points, cases = _filter(points, cases, only, suite.baseline)
    known = device or (None if suite.device == "auto" else suite.device)
    return Plan(suite, quick, timed_launches, suite.seed if seed is None else seed, points, cases, known)


def settings(spec: WorkloadSpec) -> dict[str, Any]:
    """The fields of an entry that fix what is measured at each of its points."""
    axes = workload_registry.get(spec.kind).axes
    skipped = set(WorkloadSpec.model_fields) | set(axes)
    return {k: v for k, v in spec.model_dump(mode="json").items() if k not in skipped}


def entry_layers(spec: WorkloadSpec, suite: Suite, layer: str) -> bool:
    """Whether ``layer`` is measured by this entry."""
    return layer in suite.layers and (spec.layers is None or layer in spec.layers)


def entry_points(
    entry: WorkloadSpec, suite: Suite, *, quick: bool = False, device: str | None = None
) -> list[tuple[WorkloadSpec, PointPlan]]:
    """Points of one entry after zip, include and exclude, each with the variant it comes from; where a
    ``device`` is named, without included variants whose ``when`` asks for another.

    Quick runs keep the first variant only, as the workload kind cuts it down. Raises ValueError
    where zip or an included variant is impossible.
    """
    kind = workload_registry.get(entry.kind)
    found: list[tuple[WorkloadSpec, PointPlan]] = []
    for variant in variants(entry, suite, device):
        spec = kind.quick(variant) if quick else variant
        kept = [p for p in _conditioned(kind.points(spec), spec) if not excluded(p, entry)]
        found += [(spec, p) for p in kept if not any(p == q and spec == s for s, q in found)]
        if quick:
            break
    return found


TIMING = ("threads", "neighbours")
"""Fields of an entry that only what is timed depends on. Bytes and accuracy are the same for any value."""


def timing_conditions(spec: WorkloadSpec) -> dict[str, Any]:
    """Those of :data:`TIMING` that the entry names."""
    return {name: value for name in TIMING if (value := getattr(spec, name)) is not None}


def _conditioned(plans: list[PointPlan], spec: WorkloadSpec) -> list[PointPlan]:
    """``plans`` with what the entry names of :data:`TIMING` among the params of what is timed."""
    named = timing_conditions(spec)
    return [
        replace(plan, params={**plan.params, **named}) if plan.phase == "timed" else plan for plan in plans
    ]


def thread_counts(suite: Suite, device: str | None = None) -> set[int]:
    """Numbers of threads that entries of ``suite`` name, those of their variants included; on ``device``,
    where one is named."""
    return {
        spec.threads
        for entry in suite.workloads
        if not _elsewhere(entry, device)
        for spec in variants(entry, suite, device)
        if spec.threads is not None
    }


def _elsewhere(spec: WorkloadSpec, device: str | None) -> bool:
    """Whether ``when`` asks for another device than ``device``, where one is named."""
    return bool(spec.when and device and spec.when.device != device)


def variants(entry: WorkloadSpec, suite: Suite, device: str | None = None) -> list[WorkloadSpec]:
    """The entry with zipped lists narrowed, then its included variants (those for ``device``, where one
    is named); none of them carries ``zip``, ``include``, ``exclude`` or ``when`` any more."""
    plain: dict[str, Any] = {"zip": [], "include": [], "exclude": [], "when": None}
    whole = list(_zipped(entry, entry.model_copy(update=plain)))
    fields = entry.model_dump(mode="json") | plain
    for item in entry.include:
        added = type(entry).model_validate({**fields, **item}, context={"shapes": suite.shapes})
        if _elsewhere(added, device):
            continue
        whole += _zipped(added, added.model_copy(update=plain))
    return whole


def _zipped(entry: WorkloadSpec, plain: WorkloadSpec) -> Iterator[WorkloadSpec]:
    choices = []
    for group in entry.zip:
        lists = {name: getattr(entry, name, None) for name in group}
        wrong = [name for name, values in lists.items() if not isinstance(values, list)]
        if wrong:
            raise ValueError(f"zip names {wrong[0]!r}, which is not a list of this workload")
        lengths = {name: len(values) for name, values in lists.items() if values is not None}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} has {n}" for name, n in lengths.items())
            raise ValueError(f"zipped lists must have one length: {told}")
        columns = [[[value] for value in values] for values in lists.values() if values]
        choices.append([dict(zip(lists, row, strict=True)) for row in zip(*columns, strict=True)])
    for combination in product(*choices):
        update: dict[str, Any] = {}
        for part in combination:
            update |= part
        yield plain.model_copy(update=update)


def excluded(plan: PointPlan, entry: WorkloadSpec) -> bool:
    """Whether one of the entry's ``exclude`` items drops this point."""
    params = all_params(entry.kind, plan.params)
    return any(holds(item, params) for item in entry.exclude)


def _union(first: Point, second: Point, suite: Suite) -> Point:
    """Two entries name one point: it is visited once, with the layers of both."""
    names = set(first.layers) | set(second.layers)
    return replace(
        first,
        layers=[n for n in suite.layers if n in names],
        launches=max(first.launches, second.launches),
    )


def _cases(point: Point, suite: Suite) -> Iterator[Case]:
    for name in point.layers:
        layer = suite.layers[name]
        kind = layer_registry.get(layer.kind)
        yield point._case(name).model_copy(
            update={
                "id": _digest("case", point.id, name, layer.model_dump(mode="json", exclude=set(CONDITIONS))),
                "numerics": _digest("numerics", layer.kind, kind.numerics(layer)),
            }
        )


def _filter(
    points: list[Point], cases: list[Case], only: list[str], baseline: str
) -> tuple[list[Point], list[Case]]:
    def wanted(case: Case) -> bool:
        return any(
            case.id.startswith(pattern) or pattern in case.label or fnmatch.fnmatchcase(case.label, pattern)
            for pattern in only
        )

    chosen = {case.id for case in cases if wanted(case)}
    if not chosen:
        raise UserError(
            f"no case matches {join_names(map(repr, only))}",
            f"labels look like {join_names([c.label for c in cases], limit=4)}; `bitbench plan` lists all",
        )
    alive = {case.point for case in cases if case.id in chosen}
    kept = [
        case
        for case in cases
        if case.id in chosen or (case.point in alive and case.layer == baseline and case.replicate != "exact")
    ]
    left = {(case.point, case.layer) for case in kept}
    return [
        replace(point, layers=[n for n in point.layers if (point.id, n) in left])
        for point in points
        if point.id in alive
    ], kept


def _digest(*parts: Any) -> str:
    """Twelve hex digits that change with any of ``parts`` and with nothing else: keys are sorted,
    so re-ordering a file keeps every id. 48 bits: a chance of 2e-9 for two of 1000 cases to meet."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
