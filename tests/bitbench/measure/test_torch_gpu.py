"""The port to a real GPU, on a stand-in for ``torch.cuda``: what is asked of it, in which units and order."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bitbench.measure.timers import FLUSH_FACTOR, EventTimer, FlushTimer, GraphTimer, TorchGpu

L2 = 1 << 16


class Cuda:
    """What the port uses of ``torch.cuda`` and of the driver, on the processor."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.log: list[str] = []
        self.captured: list[str] | None = None
        self.status = 0
        self.stream = "default"

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=-1.0)

        def record() -> None:
            event.at = self.now_ms

        event.record = record
        event.synchronize = lambda: self.log.append("synchronize")
        event.elapsed_time = lambda later: later.at - event.at
        return event

    def work(self, name: str = "call", ms: float = 0.25) -> None:
        if self.captured is not None:
            self.captured.append(name)
        else:
            self.log.append(name)
            self.now_ms += ms

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(held=[])
        graph.replay = lambda: [self.work(name) for name in graph.held]
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.captured, self.stream = graph.held, "capturing"
        yield  # a call that raises leaves it there, as torch does
        self.captured, self.stream = None, "default"

    def current_stream(self) -> str:
        return self.stream

    def set_stream(self, stream: str) -> None:
        self.stream = stream

    def CDLL(self, name: str) -> Any:
        assert name == "libcuda.so.1"
        self.log.append("release")
        return SimpleNamespace(cuCtxResetPersistingL2Cache=lambda: self.status)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    for name in ("Event", "CUDAGraph", "graph", "current_stream", "set_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.log.append("wait"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(L2_cache_size=L2))
    monkeypatch.setattr(ctypes, "CDLL", made.CDLL)
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: real(*a, **k))
    return made


def test_milliseconds_of_the_device_become_nanoseconds(cuda: Cuda) -> None:
    assert EventTimer(TorchGpu()).block(cuda.work, 3) == 750_000
    assert cuda.log == ["call"] * 3 + ["synchronize"]


def test_the_flush_overwrites_twice_the_cache(cuda: Cuda) -> None:
    gpu = TorchGpu()
    gpu.flush()
    gpu._waste.fill_(7)
    gpu.flush()
    assert gpu._waste.nbytes == FLUSH_FACTOR * L2
    assert not gpu._waste.any(), "written again"
    assert cuda.log == ["release"], "lines that would survive a flush are given back, once"


def test_a_buffer_made_in_inference_mode_can_be_written_outside_it(cuda: Cuda) -> None:
    gpu = TorchGpu()
    with torch.inference_mode():
        gpu.flush()
    gpu.flush()


def test_a_device_without_persisting_lines_is_fine_another_answer_is_not(cuda: Cuda) -> None:
    cuda.status = 801
    TorchGpu().flush()
    cuda.status = 700
    with pytest.raises(RuntimeError, match="answered 700"):
        TorchGpu().flush()


def test_a_cold_call_is_timed_without_its_flush(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = TorchGpu()
    monkeypatch.setattr(gpu, "flush", lambda: cuda.work("flush", 9.0))
    assert FlushTimer(gpu).block(cuda.work, 2) == 500_000


def test_a_captured_call_launches_nothing_until_it_is_replayed(cuda: Cuda) -> None:
    assert GraphTimer(TorchGpu(), size=4).block(cuda.work, 8) == 8 * 250_000
    assert cuda.log == ["call"] * 8 + ["synchronize"]


def test_a_capture_that_fails_leaves_the_stream_as_it_was(cuda: Cuda) -> None:
    def call() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        TorchGpu().capture(call, 3)
    assert cuda.stream == "default"


def test_waiting_for_all_work_is_torchs(cuda: Cuda) -> None:
    TorchGpu().synchronize()
    assert cuda.log == ["wait"]
