"""Timers against a device that remembers what it was told, in order, and whose time is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bitbench.measure.timers import (
    FLUSH_FACTOR,
    GRAPH_CALLS,
    ClockFault,
    CpuTimer,
    EventTimer,
    FlushTimer,
    GraphTimer,
    measured,
)

CALL, FLUSH, LAUNCH = 7_000, 40_000, 500
"""Nanoseconds of a call, of a flush, and of launching a graph."""


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.at = -1

    def record(self) -> None:
        self.gpu.log.append("event")
        self.at = self.gpu.now

    def synchronize(self) -> None:
        self.gpu.log.append("synchronize")

    def since(self, earlier: Any) -> float:
        assert "synchronize" in self.gpu.log, "asked before it has happened"
        return float(self.at - earlier.at)


class FakeGpu:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0
        self.captured: list[list[str]] = []
        self.buffer = 0
        """Position in a rotation of buffers."""

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def flush(self) -> None:
        self.log.append("flush")
        self.now += FLUSH

    def call(self) -> None:
        self.log.append("call")
        self.now += CALL
        self.buffer += 1

    def capture(self, call: Callable[[], Any], calls: int) -> Callable[[], None]:
        self.captured.append([f"buffer {self.buffer + n}" for n in range(calls)])
        self.buffer += calls

        def replay() -> None:
            self.log.append(f"replay {calls}")
            self.now += LAUNCH + calls * CALL

        return replay


def test_events_enclose_the_block_and_the_host_waits_once() -> None:
    gpu = FakeGpu()
    assert EventTimer(gpu).block(gpu.call, 3) == 3 * CALL
    assert gpu.log == ["event", "call", "call", "call", "event", "synchronize"]


def test_the_cache_is_flushed_before_each_call_and_outside_its_window() -> None:
    gpu = FakeGpu()
    assert FlushTimer(gpu).block(gpu.call, 2) == 2 * CALL
    assert gpu.log == ["flush", "event", "call", "event"] * 2 + ["synchronize"]
    assert FLUSH_FACTOR >= 2


def test_a_graph_is_captured_once_and_replayed() -> None:
    gpu = FakeGpu()
    timer = GraphTimer(gpu)
    duration = timer.block(gpu.call, 2 * GRAPH_CALLS + 5)
    assert duration == (2 * GRAPH_CALLS + 5) * CALL + 3 * LAUNCH
    assert gpu.log == ["event", *[f"replay {GRAPH_CALLS}"] * 2, "replay 5", "event", "synchronize"]
    timer.block(gpu.call, 2 * GRAPH_CALLS + 5)
    assert [len(calls) for calls in gpu.captured] == [GRAPH_CALLS, 5]
    assert "call" not in gpu.log, "nothing is launched one by one"


@pytest.mark.parametrize(("rotation", "held"), [(1, 20), (3, 21), (20, 20), (50, 50)])
def test_a_graph_holds_whole_rotations_of_the_buffers(rotation: int, held: int) -> None:
    gpu = FakeGpu()
    GraphTimer(gpu, rotation).block(gpu.call, 10 * held)
    assert [len(calls) for calls in gpu.captured] == [held]
    assert held % rotation == 0
    assert len(set(gpu.captured[0])) == held


def test_the_cpu_clock_counts_all_calls() -> None:
    calls: list[int] = []
    assert CpuTimer().block(lambda: calls.append(1), 7) > 0
    assert len(calls) == 7


def test_each_timer_has_a_name_of_its_own() -> None:
    gpu = FakeGpu()
    names = [timer.name for timer in (CpuTimer(), EventTimer(gpu), FlushTimer(gpu), GraphTimer(gpu))]
    assert names == ["cpu-clock", "cuda-events", "cuda-events-flush", "cuda-graph"]


def test_a_device_clock_that_runs_backwards_is_found_out() -> None:
    gpu = FakeGpu()

    def back() -> None:
        gpu.now -= 10

    with pytest.raises(ClockFault, match="a block of 2 calls took -20 ns by cuda-events"):
        measured(EventTimer(gpu), back, 2)


def test_blocks_that_repeat_the_same_calls_are_one_graph() -> None:
    gpu = FakeGpu()
    timer = GraphTimer(gpu, size=8)
    timer.block(gpu.call, 8)
    timer.block(gpu.call, 16)
    assert timer.size == 8
    assert [len(calls) for calls in gpu.captured] == [8]
