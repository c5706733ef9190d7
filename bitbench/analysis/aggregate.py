"""Several shapes taken together: one call of each, launch by launch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitbench.analysis.statistics import Series
from bitbench.analysis.summary import Summary
from bitbench.analysis.verdicts import Verdict, correct, judge
from bitbench.suite.expand import counted


class Point(NamedTuple):
    """Where single layers are timed."""

    tokens: int
    cache: str
    threads: int | None = None
    """Where the suite's entry names a number of its own; None stands for the run's."""
    neighbours: int | str | None = None
    """Busy neighbours, where the suite's entry names them."""

    @property
    def call(self) -> str:
        """``M=16 hot``."""
        return f"M={self.tokens} {self.cache}"

    @property
    def title(self) -> str:
        """``M=16 hot``, ``M=16 hot, 1 thread, all cores busy``."""
        return ", ".join([self.call, *conditions(self.threads, self.neighbours)])


def conditions(threads: int | None, neighbours: int | str | None) -> list[str]:
    """What a point names beside the call, in words: ``1 thread``, ``2 busy neighbours``."""
    busy = "all cores busy" if neighbours == "all" else counted(int(neighbours or 0), "busy neighbour")
    return [
        *([] if threads is None else [counted(threads, "thread")]),
        *([] if neighbours is None else [busy]),
    ]


@dataclass(frozen=True)
class Total:
    """One call of every shape at one point, for one layer."""

    latency: Series
    speedup: Series | None
    """Against the suite's baseline."""
    best_float: str
    """The float layer that is fastest over these shapes; empty where there is none."""
    speedup_best_float: Series | None
    verdict: Verdict | None


def linear_points(summary: Summary) -> list[Point]:
    """Where single layers were timed: on a quiet machine first, with the run's threads first, then by
    tokens, hot first."""
    found = {
        Point(int(params["tokens"]), str(params["cache"]), params.get("threads"), params.get("neighbours"))
        for params in (case.case.params for case in summary.select("linear") if case.case.phase == "timed")
    }
    return sorted(
        found,
        key=lambda point: (
            point.neighbours is not None,
            str(point.neighbours),
            -(point.threads or math.inf),
            point.tokens,
            point.cache != "hot",
            point.cache,
        ),
    )


def headline_points(summary: Summary) -> list[Point]:
    """Those of :func:`linear_points` that the whole run stands for: on a quiet machine, and with its own
    number of threads, where single layers were timed so at all."""
    points = linear_points(summary)
    points = [point for point in points if point.neighbours is None] or points
    return [point for point in points if point.threads is None] or points


def linear_shapes(summary: Summary) -> list[list[int]]:
    """Shapes of the single layers timed, in plan order."""
    shapes: list[list[int]] = []
    for case in summary.cases:
        if case.case.workload == "linear" and case.case.phase == "timed":
            shape: Any = case.case.params["shape"]
            if shape not in shapes:
                shapes.append(shape)
    return shapes


def common_shapes(summary: Summary, point: Point) -> list[list[int]]:
    """The shapes at which every layer timed at this point was to be timed. Where there is none, those
    of the layers that meet at the shape where most do. What was planned counts, not what succeeded: a
    layer that failed at a shape must not make it vanish for the others."""
    planned: dict[str, list[list[int]]] = {}
    for case in summary.select("linear", **point._asdict()):
        planned.setdefault(case.case.layer, []).append(case.case.params["shape"])
    at_all = [shape for shape in linear_shapes(summary) if any(shape in own for own in planned.values())]
    meeting = [[own for own in planned.values() if shape in own] for shape in at_all]
    most = max(meeting, key=len, default=[])
    return [shape for shape in at_all if all(shape in own for own in most)]


def totals(summary: Summary, point: Point) -> dict[str, Total]:
    """Per layer that has every shape of this point; a layer with a gap is left out.

    Notes
    -----
    Times are added within a launch before any ratio is taken, so the figure is that of running
    each shape once: large shapes weigh as much as they do in a model.
    """
    wanted = common_shapes(summary, point)
    sums = {
        layer: total for layer in summary.layers if (total := _sum(summary, layer, point, wanted)) is not None
    }
    floats = {
        layer: series.estimate().value
        for layer, series in sums.items()
        if summary.layers[layer].get("kind") == "linear"
    }
    best = min(floats, key=lambda layer: floats[layer]) if floats else ""
    base = sums.get(summary.baseline)
    speedups = {
        layer: base.ratio_to(latency) if base is not None else None for layer, latency in sums.items()
    }
    verdicts = {} if summary.quick else _verdicts(speedups, summary.baseline)
    return {
        layer: Total(
            latency,
            speedups[layer],
            best,
            sums[best].ratio_to(latency) if best else None,
            verdicts.get(layer),
        )
        for layer, latency in sums.items()
    }


def _verdicts(speedups: Mapping[str, Series | None], baseline: str) -> dict[str, Verdict]:
    """Verdicts by layer, judged as one family. Variances are not pooled: all ratios share the noise
    of one layer in the same few launches, so that together they know no more than each alone."""
    rivals = {name: s for name, s in speedups.items() if s is not None and name != baseline}
    verdicts = correct([judge(series, baseline) for series in rivals.values()])
    return dict(zip(rivals, verdicts, strict=True))


def _sum(summary: Summary, layer: str, point: Point, shapes: list[list[int]]) -> Series | None:
    parts = []
    for shape in shapes:
        case = summary.one("linear", layer, shape=shape, **point._asdict())
        if case is None or "time.latency" not in case.series:
            return None
        parts.append(case.series["time.latency"].values)
    if not parts:
        return None
    shared = set.intersection(*(set(part) for part in parts))
    if not shared:
        return None
    return Series({launch: sum(part[launch] for part in parts) for launch in sorted(shared)}, "log")
