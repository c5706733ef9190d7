from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from bitbench.measure import telemetry
from bitbench.measure.foreign import Foreign, Seen
from bitbench.measure.nvml import GpuState, NoGpu
from bitbench.measure.replay import Replay
from bitbench.measure.telemetry import FOREIGN_SAMPLES, Telemetry
from bitbench.store.schema import TelemetrySample

TRACES = Path(__file__).parent / "traces"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_samples_name_the_launch_and_its_process() -> None:
    samples: list[TelemetrySample] = []
    enough = threading.Event()

    def write(sample: TelemetrySample) -> None:
        samples.append(sample)
        if len(samples) >= 3:
            enough.set()

    gpu = Replay(TRACES / "a100-mig.jsonl")
    watcher = Telemetry(write, gpu=gpu, period=0.05)
    watcher.watch("launch-0", os.getpid())
    watcher.start()
    assert enough.wait(30)
    watcher.stop()
    assert {sample.launch for sample in samples} == {"launch-0"}
    assert all(sample.worker_rss and sample.memory_used for sample in samples)
    assert samples[0].gpu_power_w == 91.25
    assert samples[0].gpu_percent is None
    assert [sample.t for sample in samples] == sorted(sample.t for sample in samples)


def test_what_cannot_be_read_is_none() -> None:
    watcher = Telemetry(lambda sample: None, gpu=NoGpu())
    watcher.watch("once-1", 2**22 + 1)  # no such process
    sample = watcher.sample()
    assert sample.worker_rss is None
    assert sample.gpu_percent is None
    assert sample.gpu_throttle == []
    assert sample.cpu_percent is not None
    assert watcher.over(0.0, 1e12) == {}


def test_everything_of_the_gpu_is_stored() -> None:
    gpu = Replay(TRACES / "h200-power-cap.jsonl")
    watcher = Telemetry(lambda sample: None, gpu=gpu)
    capped = [watcher.sample() for _ in range(46)][-1]
    assert capped.gpu_percent == 99.0
    assert capped.gpu_memory_percent == 62.0
    assert capped.gpu_memory_used == 2 << 30
    assert capped.gpu_power_w == 699.0
    assert capped.gpu_energy_j is not None
    assert (capped.gpu_sm_mhz, capped.gpu_memory_mhz) == (1605.0, 3201.0)
    assert capped.gpu_temperature_c == 60.0
    assert capped.gpu_throttle == ["power"]


def test_windows_over_a_trace() -> None:
    gpu, clock = Replay(TRACES / "h200-power-cap.jsonl"), Clock()
    watcher = Telemetry(lambda sample: None, gpu=gpu, clock=clock, period=1.0)
    for reading in range(len(gpu)):
        clock.now = round(0.2 * reading, 1)
        watcher.sample()
    found = watcher.over(4.0, 12.0, calls=100)
    assert found["gpu.power_w"] == pytest.approx((5 * 540 + 3 * 699) / 8, rel=1e-6)
    assert found["gpu.energy_j"] == pytest.approx((5 * 540 + 3 * 699) / 100, rel=1e-6)
    assert watcher.over(0.0, 3.9)["gpu.utilisation"] == 0.0
    assert watcher.over(4.0, 4.5) == {}
    assert watcher.notes(5.0, 7.0) == []
    assert watcher.notes(8.6, 8.7) == ["throttled: power (4 of 6 readings)"]
    assert watcher.notes(100.0, 101.0) == []


def test_other_processes_are_noted_and_ours_are_not() -> None:
    us = os.getpid()

    def processes(busy: float) -> dict[int, Seen]:
        return {
            us: Seen("python3", 1, 0.0, busy),
            us + 1: Seen("python3", us, 0.0, busy),
            4242: Seen("ollama", 1, 0.0, busy),
        }

    looks = [processes(0.0), processes(5.0), processes(5.0)]
    clock = Clock()
    other = Foreign(look=lambda: looks.pop(0), clock=clock, root=us)
    gpu = Replay(TRACES / "h200-power-cap.jsonl")
    for _ in range(30):
        gpu.read()  # from here on process 4242 is on the GPU
    watcher = Telemetry(lambda sample: None, gpu=gpu, foreign=other, clock=clock)
    clock.now = 5.0
    sample = watcher.sample()
    assert sample.foreign == ["ollama (100 % cpu)", "gpu: ollama"]
    clock.now = 6.0
    for _ in range(FOREIGN_SAMPLES - 1):
        assert watcher.sample().foreign == sample.foreign, "until the next look"
    assert watcher.sample().foreign == ["gpu: ollama"]
    assert watcher.notes(5.5, 5.6) == ["other processes: ollama (100 % cpu), gpu: ollama"]


def test_short_memory_is_remembered_until_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Telemetry(lambda sample: None, gpu=NoGpu())
    monkeypatch.setattr(telemetry, "memory_available", lambda: 1)
    watcher.sample()
    monkeypatch.undo()
    watcher.sample()
    assert watcher.memory_was_short()
    watcher.watch("launch-1", None)
    assert not watcher.memory_was_short()


def test_a_sample_under_way_is_not_booked_to_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next process comes just when the sample has read that memory was short."""
    watcher = Telemetry(lambda sample: None, gpu=NoGpu())
    watcher.watch("launch-0", None)

    def short_then_next() -> int:
        watcher.watch("launch-1", None)
        return 1

    monkeypatch.setattr(telemetry, "memory_available", short_then_next)
    sample = watcher.sample()
    assert sample.launch == "launch-0"
    assert not watcher.memory_was_short()


class Closing(NoGpu):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_failing_writer_ends_the_sampling_and_is_reported() -> None:
    def full(sample: TelemetrySample) -> None:
        raise OSError("full")

    gpu = Closing()
    watcher = Telemetry(full, gpu=gpu, period=0.01).start()
    watcher._thread.join(30)
    watcher.stop()
    assert isinstance(watcher.error, OSError)
    assert gpu.closed


def test_the_gpu_is_read_between_samples() -> None:
    """For figures over windows of a few seconds."""
    written: list[TelemetrySample] = []
    enough = threading.Event()

    class Counting(Replay):
        reads = 0

        def read(self) -> GpuState:
            self.reads += 1
            if self.reads == telemetry.GPU_READS - 1:
                enough.set()
            return super().read()

    watcher = Telemetry(written.append, gpu=Counting(TRACES / "a100-mig.jsonl"), period=0.5).start()
    assert enough.wait(30)
    watcher.stop()
    assert len(written) <= 1
    assert len(watcher._moments) >= telemetry.GPU_READS - 1
