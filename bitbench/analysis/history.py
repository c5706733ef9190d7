"""One figure over the stored runs of a suite: like machines joined, steps found, accepted ones marked.

A history never joins what cannot be compared: runs on another processor, with another torch or
another number of threads form a history of their own, and so does a case whose identity changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from bitbench.analysis import steps
from bitbench.analysis.comparability import Affects, differences, hard
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.summary import Summary
from bitbench.store.baseline import Baseline, Entry
from bitbench.store.figures import machine_of
from bitbench.store.metrics import MEASURED_BYTES, METRICS
from bitbench.store.schema import RunInfo
from bitbench.workloads.self_proof import KIND as PROOF


@dataclass(frozen=True)
class Point:
    """One figure of one run."""

    run: str
    created: str
    commit: str
    value: Estimate


@dataclass(frozen=True)
class Change:
    """A step, and whether somebody accepted it."""

    step: steps.Step
    run: str
    """The first run on the new level."""
    created: str
    direction: str
    """``better``, ``worse``, or empty where the metric has no better side."""
    accepted: Entry | None = None
    """The entry of the baseline's log that moved this figure the same way."""


@dataclass(frozen=True)
class History:
    """One figure of one case over runs, oldest first."""

    case: str
    label: str
    metric: str
    points: tuple[Point, ...]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Machine:
    """Histories of one machine."""

    facts: dict[str, Any]
    """As :func:`bitbench.store.figures.machine_of` describes the newest run."""
    runs: tuple[str, ...]
    histories: tuple[History, ...]
    ended: tuple[str, ...] = ()
    """Labels that older runs have and the newest lacks."""


@dataclass(frozen=True)
class RunFigures:
    """What one run contributes."""

    info: RunInfo
    values: dict[str, tuple[str, Estimate]] = field(default_factory=dict)
    """By case id: label and value."""


def affected(metric: str) -> Affects:
    """What a difference between two machines must touch to matter to this metric: times and rates
    are ``time``, bytes only ``all``."""
    if metric.startswith(("quality.", "training.")) and metric != "training.seconds":
        return "accuracy"
    return "all" if metric.startswith("memory.") and metric not in MEASURED_BYTES else "time"


def figures_of(summary: Summary, metric: str, pattern: str = "*") -> RunFigures:
    """The metric of every case of a run whose label matches ``pattern`` (a shell's wild cards); what is not
    finite is left out."""
    found = {}
    for case in summary.cases:
        label = case.case.label
        if case.case.workload == PROOF or not fnmatchcase(label, pattern):
            continue
        value = case.value(metric)
        if value is not None and math.isfinite(value.value):
            found[case.case.id] = label, value
    return RunFigures(summary.run.info, found)


def histories(runs: Iterable[RunFigures], metric: str, baseline: Baseline | None = None) -> list[Machine]:
    """Histories by machine, the machine of the newest run first.

    ``baseline``: accepted level changes are taken from its log.
    """
    ordered = sorted(runs, key=lambda run: (_moment(run.info.created), run.info.run))
    groups: list[list[RunFigures]] = []
    for run in ordered:
        for group in groups:
            if not hard(differences(group[-1].info, run.info), affected(metric)):
                group.append(run)
                break
        else:
            groups.append([run])
    groups.sort(key=lambda group: _moment(group[-1].info.created), reverse=True)
    return [_machine(group, metric, baseline) for group in groups]


def _machine(group: Sequence[RunFigures], metric: str, baseline: Baseline | None) -> Machine:
    newest = group[-1]
    found = []
    for case, (label, _) in newest.values.items():
        having = [run for run in group if case in run.values]
        points = tuple(
            Point(run.info.run, run.info.created, run.info.code.commit, run.values[case][1]) for run in having
        )
        found.append(History(case, label, metric, points, _changes(label, metric, points, baseline)))
    older = {case: label for run in group[:-1] for case, (label, _) in run.values.items()}
    info = newest.info
    return Machine(
        facts=machine_of(info.environment, info.threads, info.code.native),
        runs=tuple(run.info.run for run in group),
        histories=tuple(found),
        ended=tuple(label for case, label in older.items() if case not in newest.values),
    )


def _changes(
    label: str, metric: str, points: Sequence[Point], baseline: Baseline | None
) -> tuple[Change, ...]:
    values = [point.value.value for point in points]
    if all(point.value.exact for point in points):
        found = steps.changes(values)
    else:
        found = steps.steps(values, noise=_noise([point.value for point in points]))
    ends = [*(points[step.at].created for step in found[1:]), ""][: len(found)]
    return tuple(
        Change(
            step,
            points[step.at].run,
            points[step.at].created,
            _direction(metric, step),
            _accepted(label, metric, step, points[step.at - 1].created, until, baseline),
        )
        for step, until in zip(found, ends, strict=True)
    )


def _noise(values: Sequence[Estimate]) -> float:
    """Typical relative standard error inside a run: runs scatter by at least that much.

    Half a 95 % interval is about two standard errors (more of them with few replicates, which makes
    this the larger: the safe side)."""
    halves = sorted(
        (value.high - value.low) / 4 / abs(value.value)
        for value in values
        if value.low is not None and value.high is not None and value.value
    )
    return halves[len(halves) // 2] if halves else 0.0


def _direction(metric: str, step: steps.Step) -> str:
    better = METRICS[metric].better
    if better == "neither":
        return ""
    return "better" if (step.after > step.before) == (better == "higher") else "worse"


def _accepted(
    label: str, metric: str, step: steps.Step, since: str, until: str, baseline: Baseline | None
) -> Entry | None:
    """The acceptance of this step: made after the last run on the old level and, where the level
    changed again, before that; it moved this figure the same way."""
    for entry in baseline.log if baseline else ():
        if _moment(entry.when) < _moment(since) or (until and _moment(entry.when) > _moment(until)):
            continue
        for moved in entry.moved:
            if (moved.label, moved.metric) != (label, metric):
                continue
            if moved.before is None or moved.after is None:
                continue
            if (moved.after > moved.before) == (step.after > step.before):
                return entry
    return None


def _moment(stamp: str) -> float:
    """Seconds of a UTC stamp; what cannot be read counts as the oldest."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return 0.0
