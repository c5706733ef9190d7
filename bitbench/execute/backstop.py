"""What need not be tried: larger values along an axis on which a layer ran out of memory or time.

Pure and torch-free. Cases that are spared still get a record each, which says why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bitbench.store.schema import Case, Record, Side, Status
from bitbench.suite.expand import Plan, settings
from bitbench.workloads import registry as workload_registry

ENDS = {Status.OOM: "ran out of memory", Status.TIMEOUT: "took too long"}
NOT_TRIED = "not tried"
"""How the reason of a spared case begins."""


@dataclass(frozen=True)
class Place:
    """Where a case lies: ``family`` is everything that must be equal for sizes to be compared."""

    family: str
    sizes: tuple[float, ...]

    def at_least(self, other: Place) -> bool:
        """Whether this place is as large as ``other`` on every axis."""
        return (
            self.family == other.family
            and len(self.sizes) == len(other.sizes)
            and all(mine >= its for mine, its in zip(self.sizes, other.sizes, strict=True))
        )


class Backstop:
    """Remembers where layers ran out of memory or time.

    A case is spared when the same layer (on the same side of a comparison) ran out at no larger a
    value of any growing axis of its workload, all else equal. The same case in a later launch is as
    large as itself: it is spared too.
    """

    def __init__(self, plan: Plan) -> None:
        self._cases = {case.id: case for case in plan.cases}
        described = {point.id: json.dumps(settings(point.spec), sort_keys=True) for point in plan.points}
        self._places = {case.id: _place(case, described[case.point]) for case in plan.cases}
        self._ends: dict[tuple[str, Side], list[Record]] = {}

    def saw(self, record: Record) -> None:
        """Take note of an outcome; those of cases that were spared themselves teach nothing."""
        place = self._places.get(record.case)
        if place is not None and record.status in ENDS and not record.reason.startswith(NOT_TRIED):
            self._ends.setdefault((place.family, record.side), []).append(record)

    def spares(self, case: str, side: Side = "") -> tuple[Status, str] | None:
        """Status and reason of ``case`` without trying it, or None where it must be tried."""
        place = self._places[case]
        for record in self._ends.get((place.family, side), []):
            if place.at_least(self._places[record.case]):
                where = self._cases[record.case].label
                again = f"in launch {record.launch}" if record.case == case else f"at {where}"
                return record.status, f"{NOT_TRIED}: it {ENDS[record.status]} {again}"
        return None


def _place(case: Case, described: str) -> Place:
    growing = workload_registry.get(case.workload).growing
    fixed = {key: value for key, value in case.params.items() if key not in growing}
    sizes = [number for key in growing if key in case.params for number in _numbers(case.params[key])]
    present = [key for key in growing if key in case.params]
    family = json.dumps([case.workload, described, case.phase, case.layer, present, fixed], sort_keys=True)
    return Place(family, tuple(sizes))


def _numbers(value: Any) -> list[float]:
    return [float(number) for number in (value if isinstance(value, list) else [value])]
