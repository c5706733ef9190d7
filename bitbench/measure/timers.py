"""Timers: how long a block of calls took, by a clock that fits the device and the state of its cache.

=====================  ======================================================================
``cpu-clock``          the process's monotonic clock around the block
``cuda-events``        two events on the stream around the block: time on the device, the
                       host's synchronise left out
``cuda-events-flush``  cold, where no rotation of buffers is large enough: the device's cache is
                       overwritten before each call, outside the pair of events around that call
``cuda-graph``         the calls are captured once and replayed, so that the host's launches, which
                       take longer than a small kernel, cannot be what is measured; a graph holds
                       whole rotations of the buffers called on
=====================  ======================================================================

What the timers need of a GPU is the small port :class:`Gpu`; :class:`TorchGpu` is the real one.
Importing this module imports no torch.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any, Protocol

FLUSH_FACTOR = 2
"""Bytes written to empty the device's cache, in caches: whatever its replacement policy, nothing
read before survives twice its size in new lines."""

GRAPH_CALLS = 20
"""Calls that a graph holds at least: launching one costs some microseconds, spread over them."""

FLUSH_CALLS = 32
"""Most calls of a block with a flush before each: small kernels would else spend most of a launch on
flushes, which take several times as long as they. Over so many, what one pair of events cannot
resolve (half a microsecond) averages out."""

GRAPH_BELOW_NS = 1_000_000
"""Calls shorter than this, by the host's clock, are replayed from a graph. Much of a short call is launches
and Python, more of it the more kernels a layer takes: all layers of a point are to be rid of it. The bound
only keeps graphs, and with them blocks, short."""


class ClockFault(Exception):
    """A clock stood still or ran backwards. What it measured is not to be believed."""


class Timer(Protocol):
    """Measures a block of calls."""

    name: str
    """As stored with every result."""

    def block(self, call: Callable[[], Any], calls: int) -> int:
        """Nanoseconds ``calls`` successive calls took."""
        ...


class Event(Protocol):
    """A moment on the device's time line."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def since(self, earlier: Event) -> float:
        """Nanoseconds from ``earlier`` to this one; both must have passed."""
        ...


class Gpu(Protocol):
    """What the timers need of a GPU."""

    def event(self) -> Event: ...

    def synchronize(self) -> None:
        """Wait for all work. Raises what went wrong with it."""
        ...

    def flush(self) -> None:
        """Overwrite the device's last-level cache, on the stream that calls run on."""
        ...

    def capture(self, call: Callable[[], Any], calls: int) -> Callable[[], None]:
        """Capture ``calls`` calls as one graph; returns what replays it."""
        ...


def measured(timer: Timer, call: Callable[[], Any], calls: int) -> int:
    """Nanoseconds of a block by ``timer``.

    Raises :class:`ClockFault` where that is zero or negative.
    """
    duration = timer.block(call, calls)
    if duration <= 0:
        block = "a block of 1 call" if calls == 1 else f"a block of {calls} calls"
        raise ClockFault(
            f"{block} took {duration} ns by {timer.name}: the clock stood still or ran backwards"
        )
    return duration


class CpuTimer:
    """The monotonic clock of the process."""

    name = "cpu-clock"

    def block(self, call: Callable[[], Any], calls: int) -> int:
        clock = time.perf_counter_ns
        repeat = range(calls)
        start = clock()
        for _ in repeat:
            call()
        return clock() - start


class EventTimer:
    """One pair of events around the block."""

    name = "cuda-events"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def block(self, call: Callable[[], Any], calls: int) -> int:
        start, end = self._gpu.event(), self._gpu.event()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return round(end.since(start))


class FlushTimer:
    """A pair of events around each call, the cache overwritten before it.

    While the device writes, the host queues the events and the call. A call that takes the host longer
    than the device takes to write has its wait for the host in the window.
    """

    name = "cuda-events-flush"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def block(self, call: Callable[[], Any], calls: int) -> int:
        pairs = [(self._gpu.event(), self._gpu.event()) for _ in range(calls)]
        for start, end in pairs:
            self._gpu.flush()
            start.record()
            call()
            end.record()
        pairs[-1][1].synchronize()
        return round(sum(end.since(start) for start, end in pairs))


class GraphTimer:
    """Captured calls, replayed between a pair of events. For one subject only."""

    name = "cuda-graph"

    def __init__(self, gpu: Gpu, rotation: int = 1, *, size: int | None = None) -> None:
        """``rotation``: buffers that successive calls go through; a graph holds whole rotations.
        ``size``: calls of a graph, where each block makes the same ones."""
        self._gpu = gpu
        self.size = size or -(-GRAPH_CALLS // rotation) * rotation
        """Calls that a graph holds. A block of a multiple of it needs no second graph."""
        self._graphs: dict[int, Callable[[], None]] = {}

    def block(self, call: Callable[[], Any], calls: int) -> int:
        whole, rest = divmod(calls, self.size)
        # Captured here, before the clock starts.
        replays = ([self._graph(call, self.size)] * whole if whole else []) + (
            [self._graph(call, rest)] if rest else []
        )
        start, end = self._gpu.event(), self._gpu.event()
        start.record()
        for replay in replays:
            replay()
        end.record()
        end.synchronize()
        return round(end.since(start))

    def _graph(self, call: Callable[[], Any], calls: int) -> Callable[[], None]:
        if calls not in self._graphs:
            self._graphs[calls] = self._gpu.capture(call, calls)
        return self._graphs[calls]


class TorchGpu:
    """The current CUDA device and stream, through torch."""

    def __init__(self) -> None:
        self._waste: Any = None

    def event(self) -> Event:
        return _TorchEvent()

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize()

    def flush(self) -> None:
        import torch

        if self._waste is None:
            size = FLUSH_FACTOR * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
            with torch.inference_mode(False):  # else it could be written inside that mode only
                self._waste = torch.empty(size, dtype=torch.uint8, device="cuda")
            _release_persisting_lines()
        self._waste.zero_()

    def capture(self, call: Callable[[], Any], calls: int) -> Callable[[], None]:
        import torch

        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    call()
        finally:  # a capture that fails leaves torch on the stream it captured
            torch.cuda.set_stream(before)
        replay: Callable[[], None] = graph.replay
        return replay


class _TorchEvent:
    def __init__(self) -> None:
        import torch

        self._event = torch.cuda.Event(enable_timing=True)

    def record(self) -> None:
        self._event.record()

    def synchronize(self) -> None:
        self._event.synchronize()

    def since(self, earlier: Event) -> float:
        assert isinstance(earlier, _TorchEvent)
        return float(earlier._event.elapsed_time(self._event)) * 1e6


def _release_persisting_lines() -> None:
    """Lines marked as persisting survive any flush: give them back (a driver call; devices before
    compute capability 8.0 have none and answer that it is not supported)."""
    not_supported = 801
    status = ctypes.CDLL("libcuda.so.1").cuCtxResetPersistingL2Cache()
    if status not in (0, not_supported):
        raise RuntimeError(f"cuCtxResetPersistingL2Cache answered {status}: the cache cannot be emptied")
