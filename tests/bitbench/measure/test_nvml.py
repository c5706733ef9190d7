"""NVML's logic on traces in NVML's own units. All of them are synthetic: written by hand from its
reference, not recorded."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from bitbench.measure import nvml
from bitbench.measure.nvml import HELD_DOWN, GpuState, NoGpu, Nvml, find_gpu
from bitbench.measure.replay import Replay, TracedLibrary

TRACES = Path(__file__).parent / "traces"
MIB = 1024**2


def replay(name: str) -> Replay:
    return Replay(TRACES / f"{name}.jsonl")


def test_units_are_those_of_the_figures() -> None:
    gpu = replay("h200-power-cap")
    states = [gpu.read() for _ in range(len(gpu))]
    idle, full, capped = states[0], states[30], states[45]
    assert (idle.power_w, idle.sm_mhz, idle.throttle, idle.pids) == (76.0, 345.0, (), ())
    assert (full.percent, full.memory_percent, full.power_w) == (99.0, 62.0, 540.0)
    assert (full.sm_mhz, full.memory_mhz, full.memory_used) == (1980.0, 3201.0, 2048 * MIB)
    assert full.energy_j == pytest.approx(1_234_567.890 + 4 * 76 + 2 * 540)
    assert (full.throttle, full.pids) == ((), (4242,))
    assert (capped.throttle, capped.sm_mhz) == (("power",), 1605.0)
    assert gpu.read() == states[-1], "the last reading stays"


def test_facts() -> None:
    facts = replay("h200-power-cap").facts()
    assert (facts.name, facts.driver, facts.count, facts.index) == ("NVIDIA H200", "570.86.15", 1, 0)
    assert facts.memory_total == 143771 * MIB
    assert (facts.persistence, facts.mig, facts.ecc, facts.exclusive) == (True, False, True, False)
    assert (facts.power_limit_w, facts.default_power_limit_w, facts.max_sm_mhz) == (700.0, 700.0, 1980.0)
    assert facts.uncorrected_errors == 0


def test_an_old_driver_answers_by_the_old_names() -> None:
    gpu = replay("t4-hot-old-driver")
    state = gpu.read()
    assert state.temperature_c == 88.0
    assert state.throttle == ("application clocks", "thermal")
    assert gpu.facts().mig is None


def test_each_figure_may_be_missing_on_its_own() -> None:
    state = replay("a100-mig").read()
    assert state == GpuState(
        memory_used=864 * MIB, power_w=91.25, sm_mhz=1410.0, memory_mhz=1215.0, temperature_c=38.0
    )


def test_a_gpu_that_is_lost_reads_as_nothing() -> None:
    gpu = replay("h200-lost")
    assert gpu.read().throttle == ("hardware slowdown", "thermal (hardware)")
    assert gpu.read() == GpuState()


def test_reasons_are_nvmls() -> None:
    real = {
        value: name
        for name, value in vars(pynvml).items()
        if name.startswith("nvmlClocksEventReason") and isinstance(value, int)
    }
    for bit in HELD_DOWN:
        assert bit in real
    assert pynvml.nvmlClocksEventReasonGpuIdle not in HELD_DOWN
    assert HELD_DOWN[pynvml.nvmlClocksEventReasonSwPowerCap] == "power"
    assert HELD_DOWN[pynvml.nvmlClocksEventReasonSwThermalSlowdown] == "thermal"
    assert HELD_DOWN[pynvml.nvmlClocksEventReasonApplicationsClocksSetting] in nvml.CHOSEN


class Checking(TracedLibrary):
    """Refuses a call that the real library would not take."""

    called: set[str]

    def __getattr__(self, name: str) -> Any:
        answer = super().__getattr__(name)
        if not callable(answer) or not name.startswith("nvmlDevice"):
            return answer

        def checked(*arguments: Any) -> Any:
            inspect.signature(getattr(pynvml, name)).bind(*arguments)
            self.called.add(name)
            return answer(*arguments)

        return checked


@pytest.mark.parametrize("trace", sorted(TRACES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_call_is_one_the_real_library_has(trace: Path) -> None:
    library = Checking(trace)
    library.called = set()
    gpu = Nvml(library)
    gpu.facts()
    gpu.read()
    gpu.close()
    assert {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTotalEnergyConsumption"} <= library.called


@pytest.mark.parametrize("trace", sorted(TRACES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_traces_say_that_they_are_synthetic_and_name_real_functions(trace: Path) -> None:
    head, *readings = [json.loads(line) for line in trace.read_text().splitlines()]
    assert head["trace"] == "synthetic"
    for answers in (head["answers"], *readings):
        for name in set(answers) - {"t"}:
            assert callable(getattr(pynvml, name))


class TwoGpus:
    """A library with two devices."""

    NVMLError = pynvml.NVMLError
    uuids = ("GPU-aaaa-1111", "GPU-bbbb-2222")

    def __init__(self) -> None:
        self.ended = 0

    def nvmlInit(self) -> None:
        return

    def nvmlShutdown(self) -> None:
        self.ended += 1

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.uuids[handle]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1000 + handle

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML"):
            return getattr(pynvml, name)

        def unsupported(*_: Any) -> Any:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return unsupported


@pytest.mark.parametrize(("visible", "clock"), [("0", 1000.0), ("1", 1001.0), ("GPU-bbbb", 1001.0)])
def test_the_device_is_the_one_that_cuda_would_take(visible: str, clock: float) -> None:
    assert Nvml(TwoGpus(), visible).read().sm_mhz == clock


@pytest.mark.parametrize("visible", ["2", "GPU-cccc"])
def test_a_device_that_is_not_there_leaves_nothing_open(visible: str) -> None:
    library = TwoGpus()
    with pytest.raises(pynvml.NVMLError):
        Nvml(library, visible)
    assert library.ended == 1


@pytest.mark.parametrize(
    ("environment", "visible"),
    [
        ({}, "0"),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": " GPU-bbbb "}, "GPU-bbbb"),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, None),
    ],
)
def test_the_environment_chooses(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], visible: str | None
) -> None:
    asked: list[str] = []

    def stand_in(visible: str) -> Any:
        asked.append(visible)
        return SimpleNamespace()

    monkeypatch.setattr(nvml, "Nvml", stand_in)
    found = find_gpu(environment)
    assert asked == ([] if visible is None else [visible])
    assert isinstance(found, NoGpu) == (visible is None)


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(visible: str) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(nvml, "Nvml", refuse)
    gpu = find_gpu({})
    assert gpu.facts() is None
    assert gpu.read() == GpuState()
    gpu.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json\n",
        '{"device": "x", "answers": {}}\n',
        '{"trace": "synthetic", "device": "x", "answers": {}}\n',
        '{"trace": "guessed", "device": "x", "answers": {}}\n{"t": 0}\n',
        '{"trace": "synthetic", "device": "x", "answers": {}}\n{"no": "time"}\n',
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a GPU trace"):
        Replay(path)
