"""What the machine did while a case was measured, added to its record. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from bitbench.store.schema import Record

TIMED, ONCE, LOADED = "time", "measure", "load"
"""Stages whose length is what is measured (:mod:`bitbench.execute.jobs`, event ``at``)."""


class Beside(Protocol):
    """What is asked of :class:`bitbench.measure.telemetry.Telemetry`."""

    def over(self, started: float, ended: float, *, calls: int = 0) -> dict[str, float]: ...

    def notes(self, started: float, ended: float) -> list[str]: ...


class Observer:
    """Follows a worker's events and keeps the window in which its present point was measured.

    The layers of a timed point take turns of a few milliseconds, far below what a device's counters
    resolve: they share one window, and its figures stand for all of them. A layer that was kept at work
    alone is given the figures of that; only it, and one that was timed alone, the energy of a call.
    """

    def __init__(self, beside: Beside, clock: Callable[[], float] = time.monotonic) -> None:
        self._beside = beside
        self._clock = clock
        self._stage = ""
        self._started = self._ended = 0.0
        self._timed: set[str] = set()
        self._loaded: dict[str, tuple[float, float]] = {}
        """When each case was kept at work alone."""
        self._case = ""

    def at(self, event: dict[str, Any]) -> None:
        """The worker says where it is."""
        stage, now = event["stage"], self._clock()
        if stage == ONCE or (stage == TIMED and self._stage != TIMED):
            self._started, self._timed, self._loaded = now, set(), {}
        if stage == TIMED:
            self._timed.add(event["case"])
        if self._stage == TIMED and stage != TIMED:
            self._ended = now
        if self._stage == LOADED:
            self._loaded[self._case] = (self._loaded[self._case][0], now)
        if stage == LOADED:
            self._loaded[event["case"]] = (now, now)
        self._stage, self._case = stage, event["case"]

    def add(self, record: Record) -> Record:
        """``record``, which has just come, with figures of the GPU and notes on what disturbed."""
        timed = bool(record.samples_ns)
        if not timed and self._stage != ONCE:
            return record  # it failed before anything was measured
        ended = self._ended if timed else self._clock()
        alone = timed and self._timed == {record.case}
        calls = record.calls * len(record.samples_ns) if alone else 0
        figures = self._beside.over(self._started, ended, calls=calls)
        if record.case in self._loaded:
            begun, done = self._loaded[record.case]
            made = round(record.metrics.get("gpu.calls_per_s", 0.0) * (done - begun))
            figures |= self._beside.over(begun, done, calls=made)
        notes = self._beside.notes(self._started, ended) if timed else []
        if not figures and not notes:
            return record
        return record.model_copy(
            update={"metrics": {**record.metrics, **figures}, "notes": [*record.notes, *notes]}
        )
