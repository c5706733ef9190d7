"""What one launch says of one benchmark, and what all launches say together. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bitbench.analysis.statistics import DISPLAY_CONFIDENCE, Estimate, log_mean

SCHEMA_VERSION = 1
KEY = "bitbench"
"""Where :class:`Measured` lies in an entry's ``extra_info``."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Launched(_Record):
    """One benchmark in one launch: a fresh process that built and timed both sides."""

    launch: int = Field(ge=0)
    seconds: float = Field(gt=0, allow_inf_nan=False)
    """Time of one call of the target: the median over timed blocks."""
    calls: int = Field(default=1, ge=1)
    """Calls of the target in each timed block."""
    baseline_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Time of one call of the baseline, its blocks taken in turns with the target's."""
    first: str = ""
    """The side that was built first; empty where that is not known."""
    beside: list[str] = Field(default_factory=list)
    """Other processes at work when the launch began; names only."""
    notes: list[str] = Field(default_factory=list)
    """What else a reader should know of this launch."""

    @property
    def ratio(self) -> float | None:
        """Time of the baseline / time of the target: above 1 means that the target is faster."""
        return None if self.baseline_seconds is None else self.baseline_seconds / self.seconds


class Interval(_Record):
    """An estimate as it is stored: geometric mean over launches, and Student's interval of it."""

    value: float
    low: float | None = None
    high: float | None = None
    launches: int
    confidence: float = DISPLAY_CONFIDENCE

    @classmethod
    def of(cls, found: Estimate) -> Interval:
        return cls(
            value=found.value, low=found.low, high=found.high, launches=found.n, confidence=found.confidence
        )


class Measured(_Record):
    """``extra_info["bitbench"]`` of an entry in a pytest-benchmark file."""

    schema_version: int = SCHEMA_VERSION
    launches: list[Launched] = Field(min_length=1)
    speedup: Interval | None = None
    """Time of the baseline / time of the target; None without a baseline."""
    kernel: str = ""
    """The kernel that served the target, as the benchmark's ``extra`` names it."""
    timer: str = ""
    """The clock that served."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """What times depend on: see :func:`bitbench.store.figures.machine_of`."""
    exact: dict[str, float] = Field(default_factory=dict)
    """Counted figures, judged by equality: names of :data:`bitbench.store.metrics.METRICS`."""

    def ratios(self) -> list[float]:
        """One ratio a launch; empty without a baseline."""
        return [ratio for launch in self.launches if (ratio := launch.ratio) is not None]


def measured(launches: Sequence[Launched], **facts: Any) -> Measured:
    """All launches of one benchmark, with the speed-up over them. ``facts`` are further fields."""
    found = Measured(launches=list(launches), **facts)
    ratios = found.ratios()
    return found.model_copy(update={"speedup": Interval.of(log_mean(ratios))}) if ratios else found


def log_spread(ratios: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation of the ratios' logarithms; no deviation of a single one."""
    logs = [math.log(ratio) for ratio in ratios]
    mean = math.fsum(logs) / len(logs)
    if len(logs) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / (len(logs) - 1))


class Outcome(_Record):
    """A line of a launch's file: what happened to one benchmark."""

    nodeid: str
    event: str
    """``start``, ``measured``, ``failed``, ``skipped`` or ``end``."""
    measured: Measured | None = None
    reason: str = ""


def join(found: Mapping[int, Measured]) -> Measured:
    """One :class:`Measured` out of those that the launches made, by number of the launch.

    Raises ValueError where launches did not measure the same thing: another kernel served, the
    machine changed, a counted figure differs.
    """
    parts = [found[launch] for launch in sorted(found)]
    first = parts[0]
    for part in parts[1:]:
        for what in ("kernel", "timer", "machine", "exact"):
            before, now = getattr(first, what), getattr(part, what)
            if before != now:
                numbers = first.launches[0].launch + 1, part.launches[0].launch + 1
                raise ValueError(
                    f"{what} is {before!r} in launch {numbers[0]}, {now!r} in launch {numbers[1]}"
                )
    return measured(
        [launch for part in parts for launch in part.launches],
        kernel=first.kernel,
        timer=first.timer,
        machine=first.machine,
        exact=first.exact,
    )
