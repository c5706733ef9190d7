"""The machine's measured limits, and what share of them a result reached.

A call can be no faster than its weight bytes over the memory's read bandwidth, and no faster than
its operations over the arithmetic peak; the larger of the two times is the limit that binds.
Both limits are measured on the machine at the start of a run (:mod:`bitbench.measure.peaks`). A share is
stated only where the limit that binds was measured:

* weights read from memory (cold): the bandwidth limit counts. Where the arithmetic peak of ``bit``
  was not measured, the int8 peak stands in for it, since a CPU that multiplies bytes at a rate works
  on single bits at no lower rate; if bandwidth binds even so, it binds.
* weights in a cache (hot): the cache's bandwidth is no less than the memory's. So if arithmetic
  binds against memory bandwidth, it binds; else no share is stated.

A result above a limit is held against it once more: :meth:`Ruler.level` calls it suspicious or
impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

MARGIN = 1.10
"""A cold result faster than this many times the memory's limit cannot have been cold."""
HOT_MARGIN = 1.5
"""The same for weights in a cache, against the rate of a cache: wider, since where in the caches the
weights lie is not known to the byte."""
CACHE_READ = 1024**2
"""The rate of a cache is that of reading so many bytes again and again. A smaller layer may lie nearer to
the core, so it is not judged."""


@dataclass(frozen=True)
class Work:
    """What one call must do at least."""

    weight_bytes: int
    operations: int
    """Two for each multiply-accumulate."""
    compute: str
    """``fp32``, ``bf16``, ``int8`` or ``bit``: see :class:`bitbench.layers.base.LayerCost`."""
    from_memory: bool
    """The weights come from memory on every call, not from a cache."""
    isa: str = ""
    """Instruction set that the layer is held to; empty means the best."""


@dataclass(frozen=True)
class Peaks:
    """Measured limits; 0 means: not measured."""

    read_bytes_per_s: float = 0.0
    fp32_per_s: float = 0.0
    bf16_per_s: float = 0.0
    int8_per_s: float = 0.0
    bit_per_s: float = 0.0
    """Operations on signs: two for each of the 512 bits that an exclusive or and a population count
    of AVX-512 multiply."""
    threads: int = 0
    cache_bytes_per_s: float = 0.0
    """All threads reading :data:`CACHE_READ` bytes each, again and again: no larger weight is read
    faster."""
    isas: dict[str, dict[str, float]] = field(default_factory=dict)
    """Rates of ``int8`` and ``bit`` arithmetic by the instruction sets that native kernels can be held
    to; none for one without loops of its own (``portable``)."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def best(self, other: Peaks) -> Peaks:
        """The higher of each limit: interference only ever makes a machine look slower."""
        mine, its = asdict(self), asdict(other)
        isas, others = mine.pop("isas"), its.pop("isas")
        for isa, rates in others.items():
            own = isas.setdefault(isa, {})
            own.update({kind: max(rate, own.get(kind, 0.0)) for kind, rate in rates.items()})
        return Peaks(**{name: max(mine[name], its[name]) for name in mine}, isas=isas)

    def compute(self, kind: str, isa: str = "") -> float:
        """Measured operations per second of ``kind``, with the instructions of ``isa`` alone where
        one is named; 0 where not measured."""
        if isa:
            return self.isas.get(isa, {}).get(kind, 0.0)
        rates = {
            "fp32": self.fp32_per_s,
            "bf16": self.bf16_per_s,
            "int8": self.int8_per_s,
            "bit": self.bit_per_s,
        }
        return rates.get(kind, 0.0)


@dataclass(frozen=True)
class Bound:
    """The least time a call can take, and which limit sets it: ``memory`` or ``compute``."""

    seconds: float
    limit: str


def bound(work: Work, peaks: Peaks) -> Bound | None:
    """The limit that binds ``work``, or None where that limit was not measured."""
    if not peaks.read_bytes_per_s:
        return None
    memory = work.weight_bytes / peaks.read_bytes_per_s
    exact = peaks.compute(work.compute, work.isa)
    rate = exact or (peaks.compute("int8", work.isa) if work.compute == "bit" else 0.0)
    if not rate:
        return None
    arithmetic = work.operations / rate
    if arithmetic >= memory:
        return Bound(arithmetic, "compute") if exact else None
    return Bound(memory, "memory") if work.from_memory else None


def share(work: Work, peaks: Peaks, seconds: float) -> float | None:
    """Reached share of the limit that binds (1.0 = at the limit), or None where it is unknown."""
    limit = bound(work, peaks)
    return None if limit is None else limit.seconds / seconds


@dataclass(frozen=True)
class Level:
    """How a result stands to the machine's limits."""

    word: Literal["ok", "suspicious", "impossible"]
    """``suspicious``: above a limit, by no more than the limit itself may be wrong, or above one
    that a kernel may honestly beat. ``impossible``: what was timed is not what the point says."""
    why: str = ""
    """Empty where ``ok``."""


OK = Level("ok")


def level(work: Work, peaks: Peaks, seconds: float) -> Level:
    """The worst level over the limits that apply to ``work`` and were measured.

    Nothing reads weights from memory faster than memory is read, nor from a cache faster than a
    cache. An arithmetic rate is no such law, torch's matrix product least of all: a kernel that beats
    it is pointed at, not refused.
    """
    found = OK
    ceiling, margin, source, where, perhaps = (
        (peaks.read_bytes_per_s, MARGIN, "memory", "came from a cache", "a cache effect")
        if work.from_memory
        else (peaks.cache_bytes_per_s, HOT_MARGIN, "cache", "cannot all have been read", "a limit too low")
    )
    rate = work.weight_bytes / seconds
    large = work.from_memory or work.weight_bytes >= CACHE_READ * max(1, peaks.threads)
    if ceiling and rate > ceiling and large:
        told = (
            f"weights read at {rate / 1e9:.1f} GB/s, above the measured {source} bandwidth of "
            f"{ceiling / 1e9:.1f} GB/s"
        )
        if rate > margin * ceiling:
            return Level("impossible", f"{told}: they {where}")
        found = Level("suspicious", f"{told}: possibly {perhaps}")
    peak = peaks.compute(work.compute, work.isa)
    if found is OK and peak and work.operations / seconds > peak:
        times = work.operations / seconds / peak
        found = Level("suspicious", f"{times:.2f} times the measured rate of {work.compute} arithmetic")
    return found


class Ruler:
    """Judges results against the limits, and measures those again before believing that one was
    broken: the first measurement may have met a busy moment. At most once: a process
    has one ruler for each number of threads."""

    def __init__(self, peaks: Peaks, remeasure: Callable[[], Peaks]) -> None:
        self.peaks = peaks
        self._remeasure: Callable[[], Peaks] | None = remeasure

    def share(self, work: Work, seconds: float) -> float | None:
        """As :func:`share`. A value above 1 says that a kernel does better than what set the arithmetic
        peak, or that the peak was measured in a busy moment."""
        reached = share(work, self.peaks, seconds)
        if reached is not None and reached > MARGIN and self._again():
            reached = share(work, self.peaks, seconds)
        return reached

    def level(self, work: Work, seconds: float) -> Level:
        """As :func:`level`, by limits that were measured again where a result beat the first ones
        by more than :data:`MARGIN`."""
        found = level(work, self.peaks, seconds)
        if found.word == "ok" or level(work, self.peaks, seconds * MARGIN).word == "ok":
            return found
        return level(work, self.peaks, seconds) if self._again() else found

    def _again(self) -> bool:
        if self._remeasure is None:
            return False
        self.peaks = self.peaks.best(self._remeasure())
        self._remeasure = None
        return True


class Rulers:
    """A ruler for each number of threads that points are measured with."""

    def __init__(self, peaks: Mapping[int, Peaks], remeasure: Callable[[int], Peaks]) -> None:
        self._known = dict(peaks)
        self._remeasure = remeasure
        self._rulers: dict[int, Ruler] = {}

    def of(self, threads: int) -> Ruler:
        """The ruler for calls of ``threads`` threads; of limits that nobody measured it knows none."""
        if threads not in self._rulers:
            known = self._known.get(threads, Peaks())
            self._rulers[threads] = Ruler(known, lambda: self._remeasure(threads))
        return self._rulers[threads]

    def changed(self) -> list[Peaks]:
        """Limits that were measured again, and are higher."""
        return [
            ruler.peaks
            for threads, ruler in self._rulers.items()
            if ruler.peaks != self._known.get(threads, Peaks())
        ]
