"""How long a worker may stay silent before it counts as hung. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from bitbench.suite.expand import Plan


@dataclass(frozen=True)
class Limits:
    """How long a silent worker is waited for, in seconds."""

    start: float = 300.0
    """Until its first sign of life: importing torch from a cold disk."""
    least: float = 120.0
    """Between two signs of life, at least."""
    factor: float = 20.0
    """Between two signs of life: this many times the estimate of all layers at the point."""


class Patience:
    """Seconds between two signs of life, by point and case.

    A ``timeout`` of the suite holds in place of the estimate: the layer's own, else that of the
    workload entry. Opening a point is work for all its layers: there only the entry's counts.
    """

    def __init__(self, plan: Plan, limits: Limits) -> None:
        self.start = limits.start
        self._points: dict[str, float] = {}
        self._cases: dict[str, float] = {}
        for point in plan.points:
            seconds = point.spec.timeout
            if seconds is None:
                estimate = plan.open_seconds(point) + sum(plan.case_seconds(point).values())
                seconds = max(limits.least, limits.factor * estimate)
            self._points[point.id] = seconds
            for case in plan.cases_at(point):
                own = plan.suite.layers[case.layer].timeout
                self._cases[case.id] = seconds if own is None else own

    def of(self, point: str = "", case: str = "") -> float:
        """For work on ``case``, for opening ``point`` where it is empty, for the start of the worker
        where both are."""
        if case:
            return self._cases[case]
        return self._points[point] if point else self.start
