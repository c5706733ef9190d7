"""The machine's measured limits, and what share of them a result reached.

A call can be no faster than its weight bytes over the memory's read bandwidth, and no faster than
its operations over the arithmetic peak; the larger of the two times is the limit that binds.
Both limits are measured on the machine at the start of a run, by torch operators that do nothing
else. A share is stated only where the limit that binds was measured:

* weights read from memory (cold): the bandwidth limit counts. Where the arithmetic peak of the
  layer's kind was not measured (``bit``), the int8 peak stands in for it, since a CPU that
  multiplies bytes at a rate works on single bits at no lower rate; if bandwidth binds even so, it
  binds.
* weights in a cache (hot): the cache's bandwidth was not measured, but it is no less than the
  memory's. So if arithmetic binds against memory bandwidth, it binds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

GIB = 1024**3
READ_CACHES = 8
"""The buffer read for the bandwidth is this many last-level caches (within the limits below)."""
READ_MIN, READ_MAX = 128 * 1024**2, GIB
MM_SIZE = 1024
SECONDS_EACH = 0.4
MARGIN = 1.10
"""A cold result faster than this many times the memory's limit cannot have been cold."""


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


@dataclass(frozen=True)
class Peaks:
    """Measured limits; 0 means: not measured."""

    read_bytes_per_s: float = 0.0
    fp32_per_s: float = 0.0
    bf16_per_s: float = 0.0
    int8_per_s: float = 0.0
    threads: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def best(self, other: Peaks) -> Peaks:
        """The higher of each limit: interference only ever makes a machine look slower."""
        mine, its = asdict(self), asdict(other)
        return Peaks(**{name: max(mine[name], its[name]) for name in mine})

    def compute(self, kind: str) -> float:
        """Measured operations per second of ``kind``, 0 where not measured."""
        return {"fp32": self.fp32_per_s, "bf16": self.bf16_per_s, "int8": self.int8_per_s}.get(kind, 0.0)


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
    exact = peaks.compute(work.compute)
    rate = exact or (peaks.int8_per_s if work.compute == "bit" else 0.0)
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


class Ruler:
    """Judges results against the limits, and measures those again before believing that one was
    broken: the first measurement may have met a busy moment. At most once a process."""

    def __init__(self, peaks: Peaks, remeasure: Callable[[], Peaks]) -> None:
        self.peaks = peaks
        self._remeasure: Callable[[], Peaks] | None = remeasure

    def share(self, work: Work, seconds: float) -> float | None:
        """As :func:`share`. A value above 1 says that a kernel does better than torch's matrix
        product, which sets the arithmetic peaks."""
        reached = share(work, self.peaks, seconds)
        if reached is not None and reached > MARGIN and self._again():
            reached = share(work, self.peaks, seconds)
        return reached

    def impossible(self, work: Work, seconds: float) -> str | None:
        """Why a cold result cannot be true, or None.

        Only the memory limit is used: a kernel may honestly beat torch's matrix product, but
        nothing reads memory faster than memory.
        """
        if not work.from_memory or not self.peaks.read_bytes_per_s:
            return None
        rate = work.weight_bytes / seconds
        if rate <= MARGIN * self.peaks.read_bytes_per_s:
            return None
        if self._again() and rate <= MARGIN * self.peaks.read_bytes_per_s:
            return None
        return (
            f"weights read at {rate / 1e9:.1f} GB/s, above the measured memory bandwidth of "
            f"{self.peaks.read_bytes_per_s / 1e9:.1f} GB/s: they came from a cache"
        )

    def _again(self) -> bool:
        if self._remeasure is None:
            return False
        self.peaks = self.peaks.best(self._remeasure())
        self._remeasure = None
        return True


def measure_peaks(device: str, threads: int, cache_bytes: int) -> Peaks:
    """Measure the limits of ``device``: about two seconds. Imports torch.

    fp32 and bf16 by ``torch.mm``, int8 by ``torch._int_mm``; a type that this device's torch
    cannot multiply is left unmeasured.
    """
    rates = {kind: _multiply(device, kind) for kind in ("float32", "bfloat16", "int8")}
    return Peaks(
        read_bytes_per_s=read_bandwidth(device, cache_bytes),
        fp32_per_s=rates["float32"],
        bf16_per_s=rates["bfloat16"],
        int8_per_s=rates["int8"],
        threads=threads,
    )


def read_bandwidth(device: str, cache_bytes: int) -> float:
    """Bytes a second read from a buffer much larger than the caches.

    The best of torch's reductions and, on the CPU, a native loop that only reads, with prefetch:
    the reductions alone were seen to stay below the rate at which weights streamed.
    """
    import torch

    from impl import native

    size = min(max(READ_CACHES * cache_bytes, READ_MIN), READ_MAX)
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    readers: list[Callable[[], Any]] = [buffer.sum, buffer.amax]
    if device == "cpu" and native.available():
        readers.append(lambda: native.read_bytes(buffer.data_ptr(), buffer.nbytes))
    return size / min(_fastest(reader, device) for reader in readers)


def _multiply(device: str, kind: str) -> float:
    import torch

    dtype: torch.dtype = getattr(torch, kind)
    try:
        if kind == "int8":
            a = torch.ones(MM_SIZE, MM_SIZE, dtype=dtype, device=device)
            seconds = _fastest(lambda: torch._int_mm(a, a), device)
        else:
            a = torch.full((MM_SIZE, MM_SIZE), 0.5, dtype=dtype, device=device)
            seconds = _fastest(lambda: torch.mm(a, a), device)
    except RuntimeError:
        return 0.0
    return 2.0 * MM_SIZE**3 / seconds


def _fastest(call: Callable[[], Any], device: str) -> float:
    """Shortest of the calls that fit in a fixed time, after one to warm up."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    best, stop = once(), time.perf_counter() + SECONDS_EACH
    while time.perf_counter() < stop:
        best = min(best, once())
    return best
