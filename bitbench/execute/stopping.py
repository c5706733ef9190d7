"""When a point has been launched often enough, and which one to launch next. Pure and torch-free.

A suite says how many launches each point gets. With a budget (``bitbench run --budget 10m``)
further launches follow, always of the points whose intervals are widest, until all are narrow
enough or the time is used up.

The rule looks at the *width* of intervals alone, never at where they lie. Stopping once a difference
is significant finds one in the end, whatever the truth; stopping once an interval is narrow does
not move it. It is not quite free either: an interval is narrow too early where the spread happened
to come out small, and a 95 % interval stopped at the first such moment covers the truth in 92 % of
cases. So a point has to be narrow enough twice: with its last launch and without it. The tests
simulate the coverage of this rule: 93 % or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bitbench.analysis.statistics import launch_latency, linear_mean
from bitbench.store.schema import Record, Status
from bitbench.suite.expand import Plan

DEFAULT_WIDTH = 0.01
"""Half an interval, as a part of its value: what the verdicts take as the least difference worth
calling one."""

START_SHARE = 0.25
"""Points are added to a further launch, widest first, until starting its process is at most this
part of it: a process of a second for a point of half a second would be mostly start."""

Reason = Literal["launches", "width", "budget"]


@dataclass(frozen=True)
class Allowance:
    """How far a run may go beyond the suite's launches."""

    seconds: float
    """Wall time of the whole run, the suite's own launches included."""
    width: float = DEFAULT_WIDTH
    """Half width of the 95 % interval, as a part of the value, at which a point is done."""


@dataclass(frozen=True)
class Standing:
    """Where a point stands after its launches so far."""

    point: str
    width: float
    """Half width of its widest interval, as a part of the value; infinite where none can be given."""
    width_before: float
    """The same without the last launch."""
    seconds: float
    """What one more launch takes here, the start of its process apart."""

    def narrow(self, width: float) -> bool:
        return max(self.width, self.width_before) <= width


def standings(plan: Plan, records: Iterable[Record]) -> dict[str, Standing | None]:
    """Standing of every timed point of ``plan``, by its id. A case with a record that is not ``ok``
    keeps that status whatever follows, so it has no say."""
    of_case = by_case(records)
    found: dict[str, Standing | None] = {}
    for point in (point for point in plan.points if point.phase == "timed"):
        latencies: dict[str, dict[int, float]] = {}
        walls: dict[int, float] = {}
        for case in plan.cases_at(point):
            beside = of_case.get(case.id, [])
            if not sound(beside):
                continue
            latencies[case.layer] = {r.launch: launch_latency(r.samples_ns, r.calls) for r in beside}
            for record in beside:
                walls[record.launch] = max(walls.get(record.launch, 0.0), record.wall_s)
        seconds = median(walls.values()) if walls else 0.0
        found[point.id] = standing(point.id, latencies, plan.suite.baseline, seconds)
    return found


def by_case(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by the id of their case."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.case, []).append(record)
    return found


def sound(records: Sequence[Record]) -> bool:
    """Whether further launches of a case with these records can narrow anything."""
    return bool(records) and all(r.status is Status.OK and r.samples_ns for r in records)


def standing(
    point: str, latencies: Mapping[str, Mapping[int, float]], baseline: str, seconds: float
) -> Standing | None:
    """Standing of a point from the latency of each layer in each launch, where it was measured.

    What is judged of a layer is its ratio to the baseline of the same launch; where there is no
    baseline, and of the baseline alone, its latency. None where no layer has a latency: further
    launches would not help.
    """
    beside = latencies.get(baseline, {})
    others = [values for layer, values in latencies.items() if layer != baseline and values]
    figures = [_ratios(values, beside) or values for values in others] if beside else others
    figures = figures or ([beside] if beside else [])
    if not figures:
        return None
    last = max(launch for values in figures for launch in values)
    earlier = [[v for launch, v in values.items() if launch != last] for values in figures]
    return Standing(
        point,
        width=max(half_width(list(values.values())) for values in figures),
        width_before=max(half_width(values) for values in earlier),
        seconds=seconds,
    )


def _ratios(values: Mapping[int, float], beside: Mapping[int, float]) -> dict[int, float]:
    return {launch: value / beside[launch] for launch, value in values.items() if launch in beside}


def half_width(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the geometric mean of positive ``values``, as a part of it:
    0.01 where the upper bound is 1 % above. Infinite below the least number for an interval."""
    if not values:
        return math.inf
    logs = linear_mean([math.log(value) for value in values])
    return math.inf if logs.high is None else math.expm1(logs.high - logs.value)


def next_launch(
    standings: Iterable[Standing], width: float, seconds_left: float, start_seconds: float
) -> list[Standing]:
    """Points to visit in one more launch, widest first; empty where all are narrow or no time is left."""
    waiting = sorted((s for s in standings if not s.narrow(width)), key=lambda s: -s.width)
    chosen: list[Standing] = []
    work = 0.0
    for one in waiting:
        if chosen and start_seconds <= START_SHARE * (start_seconds + work):
            break
        if start_seconds + work + one.seconds <= seconds_left:
            chosen.append(one)
            work += one.seconds
    return chosen


def reason(one: Standing | None, allowance: Allowance | None) -> Reason:
    """Why a point was not launched once more."""
    if allowance is None or one is None:
        return "launches"
    return "width" if one.narrow(allowance.width) else "budget"


def stopped(stops: Mapping[str, str], allowance: Allowance) -> str:
    """``intervals within 1.0 %: 12 of 14 points; 2 stopped by the budget of 600 s``."""
    narrow = sum(why == "width" for why in stops.values())
    cut = sum(why == "budget" for why in stops.values())
    line = f"intervals within {allowance.width:.1%}: {narrow} of {narrow + cut} points"
    return line if not cut else f"{line}; {cut} stopped by the budget of {allowance.seconds:.0f} s"
