"""The machine's measured limits, and what share of them a result reached.

A call can be no faster than its weight bytes over the memory's read bandwidth, and no faster than
its operations over the arithmetic peak; the larger of the two times is the limit that binds.
Both limits are measured on the machine at the start of a run: fp32 and bf16 arithmetic by torch's
matrix product, int8 and bit arithmetic by loops that repeat the kernels' innermost instructions on
registers, bandwidth by loops that only read. A share is stated only where the limit that binds was
measured:

* weights read from memory (cold): the bandwidth limit counts. Where the arithmetic peak of ``bit``
  was not measured, the int8 peak stands in for it, since a CPU that multiplies bytes at a rate works
  on single bits at no lower rate; if bandwidth binds even so, it binds.
* weights in a cache (hot): the cache's bandwidth is no less than the memory's. So if arithmetic
  binds against memory bandwidth, it binds; else no share is stated.

A result above a limit is held against it once more: :meth:`Ruler.level` calls it suspicious or
impossible.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

GIB = 1024**3
READ_CACHES = 8
"""The buffer read for the bandwidth is this many last-level caches (within the limits below)."""
READ_MIN, READ_MAX = 128 * 1024**2, GIB
MM_SIZE = 1024
SECONDS_EACH = 0.4
CACHE_SECONDS_EACH = 0.05
"""Less where thousands of calls fit."""
MARGIN = 1.10
"""A cold result faster than this many times the memory's limit cannot have been cold."""
HOT_MARGIN = 1.5
"""The same for weights in a cache, against the rate of a cache: wider, since where in the caches the
weights lie is not known to the byte."""
PEAK_TURNS = 20_000
"""Turns of the native loops: about a tenth of a millisecond, less than a time slice."""
CACHE_READ, CACHE_LESS = 1024**2, 64 * 1024
"""The rate of a cache is the difference of reading so many bytes and so few again and again: what a
call costs by itself drops out. A smaller layer may lie nearer to the core, so it is not judged."""


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
    bit_per_s: float = 0.0
    """Operations on signs: two for each of the 512 bits that an exclusive or and a population count
    of AVX-512 multiply."""
    threads: int = 0
    cache_bytes_per_s: float = 0.0
    """All threads reading :data:`CACHE_READ` bytes each, again and again: no larger weight is read
    faster."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def best(self, other: Peaks) -> Peaks:
        """The higher of each limit: interference only ever makes a machine look slower."""
        mine, its = asdict(self), asdict(other)
        return Peaks(**{name: max(mine[name], its[name]) for name in mine})

    def compute(self, kind: str) -> float:
        """Measured operations per second of ``kind``, 0 where not measured."""
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
    peak = peaks.compute(work.compute)
    if found is OK and peak and work.operations / seconds > peak:
        times = work.operations / seconds / peak
        found = Level("suspicious", f"{times:.2f} times the measured rate of {work.compute} arithmetic")
    return found


class Ruler:
    """Judges results against the limits, and measures those again before believing that one was
    broken: the first measurement may have met a busy moment. At most once a process."""

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


def measure_peaks(device: str, threads: int, cache_bytes: int) -> Peaks:
    """Measure the limits of ``device``: about two seconds. Imports torch.

    fp32 and bf16 by ``torch.mm``, int8 by the better of ``torch._int_mm`` and the native loop, bits by
    the native loop; a type that nothing here can multiply is left unmeasured.
    """
    rates = {kind: _multiply(device, kind) for kind in ("float32", "bfloat16", "int8")}
    return Peaks(
        read_bytes_per_s=read_bandwidth(device, cache_bytes),
        fp32_per_s=rates["float32"],
        bf16_per_s=rates["bfloat16"],
        int8_per_s=max(rates["int8"], _native_rate(device, 8)),
        bit_per_s=_native_rate(device, 1),
        threads=threads,
        cache_bytes_per_s=cache_bandwidth(device, threads),
    )


def read_bandwidth(device: str, cache_bytes: int) -> float:
    """Bytes a second read from a buffer much larger than the caches.

    The best of torch's reductions and, on the CPU, a native loop that only reads, with prefetch:
    the reductions alone were seen to stay below the rate at which weights streamed.
    """
    import torch

    size = min(max(READ_CACHES * cache_bytes, READ_MIN), READ_MAX)
    buffer = torch.ones(size // 4, dtype=torch.float32, device=device)
    return size / min(_fastest(reader, device) for reader in _readers(buffer))


def cache_bandwidth(device: str, threads: int) -> float:
    """Bytes a second that ``threads`` cores read, each from :data:`CACHE_READ` bytes that stay in its
    caches; 0 on a GPU, where it is not measured.

    Measured with one thread and multiplied: together they are no faster, and on a busy machine the
    threads of so short a call wait for each other longer than they read. The best of the readers of
    :func:`read_bandwidth`; here torch's sum is, which was seen to read twice as fast as the native
    loop, whose additions bind where memory does not.
    """
    import torch

    if device != "cpu":
        return 0.0
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for size in (CACHE_READ, CACHE_LESS):
            readers = _readers(torch.ones(size // 4, dtype=torch.float32))
            times.append([_fastest(reader, device, CACHE_SECONDS_EACH) for reader in readers])
    finally:
        torch.set_num_threads(before)
    least = min(long - short for long, short in zip(*times, strict=True))
    return threads * (CACHE_READ - CACHE_LESS) / least if least > 0 else 0.0


def _readers(buffer: torch.Tensor) -> list[Callable[[], Any]]:
    """Calls that read all of ``buffer`` and do little else."""
    from impl import native

    readers: list[Callable[[], Any]] = [buffer.sum, buffer.amax]
    if buffer.device.type == "cpu" and native.available():
        readers.append(lambda: native.read_bytes(buffer.data_ptr(), buffer.nbytes))
    return readers


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


def _native_rate(device: str, activation_bits: int) -> float:
    """Operations per second of the kernels' innermost instructions, 0 where there are none."""
    from impl import native

    if device != "cpu" or not native.available():
        return 0.0
    done = native.multiply_accumulate(activation_bits, PEAK_TURNS)
    seconds = _fastest(lambda: native.multiply_accumulate(activation_bits, PEAK_TURNS), device)
    return 2.0 * done / seconds


def _fastest(call: Callable[[], Any], device: str, seconds: float | None = None) -> float:
    """Shortest of the calls that fit in a fixed time, after one to warm up."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    best, stop = once(), time.perf_counter() + (SECONDS_EACH if seconds is None else seconds)
    while time.perf_counter() < stop:
        best = min(best, once())
    return best
