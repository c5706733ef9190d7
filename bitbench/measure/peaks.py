"""Measuring the machine's limits: fp32 and bf16 arithmetic by torch's matrix product and convolution, int8
and bit arithmetic by loops that repeat the kernels' innermost instructions on registers, bandwidth by loops
that only read. On a GPU by torch's matrix product and copies, with the device's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitbench.measure.roofline import CACHE_READ, Peaks
from bitbench.measure.timers import EventTimer, TorchGpu

if TYPE_CHECKING:
    import torch

GIB = 1024**3
READ_CACHES = 8
"""The buffer read for the bandwidth is this many last-level caches (within the limits below)."""
READ_MIN, READ_MAX = 128 * 1024**2, GIB
MM_SIZE = 1024
GPU_MM_SIZE = 8192
"""A GPU's multiprocessors are all at work in a product of this size, for long enough that its launch does
not count."""
GPU_READ = 2 * GIB
GPU_CALLS = 5
"""Calls between two events: a pair of events costs some microseconds."""
CONVOLUTION = (1, 256, 30, 3)
"""Images, channels in and out, sides of image and kernel."""
SECONDS_EACH = 0.4
CACHE_SECONDS_EACH = 0.05
"""Less where thousands of calls fit."""
LOOP_SECONDS = 0.1
PEAK_TURNS = 20_000
"""Turns of the native loops: about a tenth of a millisecond, less than a time slice."""
CACHE_LESS = 64 * 1024
"""The rate of a cache is the difference of reading :data:`CACHE_READ` bytes and these: what a call costs
by itself drops out."""


def measure_peaks(device: str, threads: int, cache_bytes: int) -> Peaks:
    """Measure the limits of ``device`` with ``threads`` threads: about five seconds. Imports torch,
    whose number of threads is the same afterwards.

    On the CPU, fp32 and bf16 by the better of ``torch.mm`` and ``conv2d`` (other libraries, one of which was
    seen at twice the rate of the other), int8 by the better of ``torch._int_mm`` and the native loop, bits
    by the native loop. On a GPU, ``torch.mm`` and ``torch._int_mm`` on random numbers: on zeros or equal
    ones the chip draws less power, and its clock stays higher than any real product lets it. A type that
    nothing here can multiply is left unmeasured.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measured(device, threads, cache_bytes)
    finally:
        torch.set_num_threads(before)


def _measured(device: str, threads: int, cache_bytes: int) -> Peaks:
    from impl import native

    rates = {kind: _multiply(device, kind) for kind in ("float32", "bfloat16", "int8")}
    if device == "cpu":
        for kind in ("float32", "bfloat16"):
            rates[kind] = max(rates[kind], _convolve(device, kind))
    isas = isa_rates(device)
    own = isas.get(native.isa(), {}) if isas else {}
    return Peaks(
        read_bytes_per_s=read_bandwidth(device, cache_bytes),
        fp32_per_s=rates["float32"],
        bf16_per_s=rates["bfloat16"],
        int8_per_s=max(rates["int8"], own.get("int8", 0.0)),
        bit_per_s=own.get("bit", 0.0),
        threads=threads,
        cache_bytes_per_s=cache_bandwidth(device, threads),
        isas=isas,
    )


def read_bandwidth(device: str, cache_bytes: int) -> float:
    """Bytes a second read from a buffer much larger than the caches.

    The best of torch's reductions and, on the CPU, a native loop that only reads, with prefetch:
    the reductions alone were seen to stay below the rate at which weights streamed. On a GPU also a copy,
    whose bytes count twice, read and written.
    """
    import torch

    if device == "cuda":
        half = torch.ones(GPU_READ // 8, dtype=torch.float32, device=device)
        copy = torch.empty_like(half)
        both = GPU_READ / _fastest(lambda: copy.copy_(half), device)
        return max(both, half.nbytes / min(_fastest(reader, device) for reader in _readers(half)))
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
    """Calls that read all of ``buffer`` and do little else, from huge pages as packed weights are."""
    from impl import native

    readers: list[Callable[[], Any]] = [buffer.sum, buffer.amax]
    if buffer.device.type == "cpu" and native.available():
        native.prefer_huge_pages(buffer)
        readers.append(lambda: native.read_bytes(buffer.data_ptr(), buffer.nbytes))
    return readers


def _multiply(device: str, kind: str) -> float:
    import torch

    size = MM_SIZE if device == "cpu" else GPU_MM_SIZE
    try:
        a = _factor(device, kind, size)
        # A GPU's int8 units want both factors row by row along what is summed.
        b = a if device == "cpu" else _factor(device, kind, size).t()
        multiply = torch._int_mm if kind == "int8" else torch.mm
        seconds = _fastest(lambda: multiply(a, b), device)
    except RuntimeError:
        return 0.0
    return 2.0 * size**3 / seconds


def _factor(device: str, kind: str, size: int) -> torch.Tensor:
    import torch

    dtype: torch.dtype = getattr(torch, kind)
    if device == "cpu":  # whose rates do not depend on the numbers
        return torch.full((size, size), 1 if kind == "int8" else 0.5, dtype=dtype)
    # Not the default generator, which a capture that failed may have left unusable.
    generator = torch.Generator(device).manual_seed(0)
    if kind == "int8":
        return torch.randint(-127, 128, (size, size), dtype=dtype, device=device, generator=generator)
    return torch.randn(size, size, dtype=dtype, device=device, generator=generator)


def _convolve(device: str, kind: str) -> float:
    """Operations per second of torch's convolution, 0 where it has none of this type."""
    import torch

    dtype: torch.dtype = getattr(torch, kind)
    images, channels, size, kernel = CONVOLUTION
    try:
        x = torch.full((images, channels, size, size), 0.5, dtype=dtype, device=device)
        weight = torch.full((channels, channels, kernel, kernel), 0.5, dtype=dtype, device=device)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        with torch.inference_mode():
            seconds = _fastest(lambda: torch.conv2d(x, weight), device)
    except RuntimeError:
        return 0.0
    return 2.0 * images * (channels * kernel * (size - kernel + 1)) ** 2 / seconds


def isa_rates(device: str) -> dict[str, dict[str, float]]:
    """Operations per second of the kernels' innermost instructions by instruction set, those of
    ``int8`` and of ``bit``. An instruction set without loops of its own is left out."""
    from impl import native

    if device != "cpu" or not native.available():
        return {}
    before = native.isa()
    found = {}
    try:
        for isa in native.supported_isas():
            native.select_isa(isa)
            rates = {"int8": _native_rate(8), "bit": _native_rate(1)}
            found[isa] = {kind: rate for kind, rate in rates.items() if rate}
    finally:
        native.select_isa(before)
    return {isa: rates for isa, rates in found.items() if rates}


def _native_rate(activation_bits: int) -> float:
    """Operations per second of the innermost instructions of the selected kernels, 0 where they have
    none."""
    from impl import native

    done = native.multiply_accumulate(activation_bits, PEAK_TURNS)
    if not done:
        return 0.0
    best = _fastest(lambda: native.multiply_accumulate(activation_bits, PEAK_TURNS), "cpu", LOOP_SECONDS)
    return 2.0 * done / best


def _fastest(call: Callable[[], Any], device: str, seconds: float | None = None) -> float:
    """Shortest of the calls that fit in a fixed time, after one to warm up; on a GPU by its own clock, the
    mean of a few calls."""
    if device == "cuda":
        timer, calls = EventTimer(TorchGpu()), GPU_CALLS

        def once() -> float:
            return timer.block(call, calls) / calls / 1e9
    else:

        def once() -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

    once()
    best, stop = once(), time.perf_counter() + (SECONDS_EACH if seconds is None else seconds)
    while time.perf_counter() < stop:
        best = min(best, once())
    return best
