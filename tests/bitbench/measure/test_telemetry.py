from __future__ import annotations

import os
import threading

import pytest

from bitbench.measure import telemetry
from bitbench.measure.telemetry import GpuState, NoGpu, Telemetry
from bitbench.store.schema import TelemetrySample


class FakeGpu:
    closed = False

    def read(self) -> GpuState:
        return GpuState(percent=50.0, memory_used=7, power_w=100.5, sm_mhz=1410.0)

    def close(self) -> None:
        self.closed = True


def test_samples_name_the_launch_and_its_process() -> None:
    samples: list[TelemetrySample] = []
    enough = threading.Event()

    def write(sample: TelemetrySample) -> None:
        samples.append(sample)
        if len(samples) >= 3:
            enough.set()

    gpu = FakeGpu()
    watcher = Telemetry(write, gpu=gpu, period=0.01)
    watcher.watch("launch-0", os.getpid())
    watcher.start()
    assert enough.wait(30)
    watcher.stop()
    assert gpu.closed
    assert {sample.launch for sample in samples} == {"launch-0"}
    assert all(sample.worker_rss and sample.memory_used for sample in samples)
    assert samples[0].gpu_power_w == 100.5
    assert [sample.t for sample in samples] == sorted(sample.t for sample in samples)


def test_what_cannot_be_read_is_none() -> None:
    watcher = Telemetry(lambda sample: None, gpu=NoGpu())
    watcher.watch("once-1", 2**22 + 1)  # no such process
    sample = watcher.sample()
    assert sample.worker_rss is None
    assert sample.gpu_percent is None
    assert sample.cpu_percent is not None


def test_short_memory_is_remembered_until_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Telemetry(lambda sample: None, gpu=NoGpu())
    monkeypatch.setattr(telemetry, "memory_available", lambda: 1)
    watcher.sample()
    monkeypatch.undo()
    watcher.sample()
    assert watcher.memory_was_short()
    watcher.watch("launch-1", None)
    assert not watcher.memory_was_short()


def test_a_failing_writer_ends_the_sampling_and_is_reported() -> None:
    def full(sample: TelemetrySample) -> None:
        raise OSError("full")

    watcher = Telemetry(full, gpu=NoGpu(), period=0.01).start()
    watcher._thread.join(30)
    watcher.stop()
    assert isinstance(watcher.error, OSError)
