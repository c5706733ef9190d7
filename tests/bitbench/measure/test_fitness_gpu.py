from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bitbench.measure import fitness_gpu
from bitbench.measure.findings import Finding, Level
from bitbench.measure.foreign import ELSEWHERE, Seen
from bitbench.measure.nvml import GpuFacts, GpuState, NoGpu
from bitbench.measure.replay import Replay

TRACES = Path(__file__).parent / "traces"
IDLE = GpuState(percent=0.0, memory_used=600 << 20, sm_mhz=345.0, temperature_c=31.0)
FACTS = GpuFacts(
    index=1,
    name="NVIDIA H200",
    count=1,
    driver="570.86.15",
    memory_total=141 << 30,
    persistence=True,
    mig=False,
    ecc=True,
    uncorrected_errors=0,
    exclusive=False,
    power_limit_w=700.0,
    default_power_limit_w=700.0,
    max_sm_mhz=1980.0,
)


class Fixed(NoGpu):
    def __init__(self, facts: GpuFacts = FACTS, state: GpuState = IDLE) -> None:
        self._facts, self._state = facts, state

    def facts(self) -> GpuFacts:
        return self._facts

    def read(self) -> GpuState:
        return self._state


@pytest.fixture(autouse=True)
def _processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness_gpu, "look", lambda: {1001: Seen("ollama", 1, 0.0, 0.0)})


def examined(facts: GpuFacts = FACTS, state: GpuState = IDLE, **environment: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in fitness_gpu.gpu(Fixed(facts, state), environment)}


def test_none() -> None:
    (finding,) = fitness_gpu.gpu(NoGpu(), {})
    assert finding.level is Level.FIT
    assert "n/a" in finding.found


def test_a_good_one() -> None:
    found = examined()
    assert {finding.level for finding in found.values()} == {Level.FIT}
    assert "NVIDIA H200, 141 GiB, driver 570.86.15" in found["gpu"].found
    assert "-lgc 1584" in found["gpu clock"].remedy


@pytest.mark.parametrize(
    ("change", "what", "level", "remedy"),
    [
        ({"persistence": False}, "gpu daemon", Level.DEGRADED, "sudo nvidia-smi -i 1 -pm 1"),
        ({"mig": True}, "gpu mig", Level.DEGRADED, "sudo nvidia-smi -i 1 -mig 0"),
        ({"power_limit_w": 400.0}, "gpu power", Level.DEGRADED, "sudo nvidia-smi -i 1 -pl 700"),
        ({"exclusive": True}, "gpu mode", Level.DEGRADED, "sudo nvidia-smi -i 1 -c 0"),
        ({"ecc": False}, "gpu ecc", Level.FIT, ""),
        ({"uncorrected_errors": 2}, "gpu memory", Level.UNFIT, "nvidia-smi -q -d ECC"),
    ],
)
def test_settings_and_the_command_that_mends_them(
    change: dict[str, object], what: str, level: Level, remedy: str
) -> None:
    assert what not in examined()
    finding = examined(replace(FACTS, **change))[what]  # type: ignore[arg-type]
    assert finding.level is level
    assert remedy in finding.remedy
    assert finding.why


def test_what_cannot_be_read_is_not_held_against_it() -> None:
    found = fitness_gpu.gpu(Fixed(GpuFacts(0, "GRID", 1), IDLE), {})
    assert {finding.level for finding in found} == {Level.FIT}


@pytest.mark.parametrize(
    ("state", "level", "word"),
    [
        (IDLE, Level.FIT, "idle"),
        (replace(IDLE, percent=None), Level.FIT, "n/a"),
        (replace(IDLE, percent=40.0), Level.DEGRADED, "40 % busy"),
        (replace(IDLE, pids=(1001,)), Level.DEGRADED, "ollama"),
        (replace(IDLE, pids=(31337,)), Level.DEGRADED, ELSEWHERE),
        (GpuState(), Level.UNFIT, "does not answer"),
        (replace(IDLE, memory_used=None), Level.FIT, "memory n/a"),
    ],
)
def test_use(state: GpuState, level: Level, word: str) -> None:
    finding = examined(state=state)["gpu use"]
    assert finding.level is level
    assert word in finding.found


def test_clocks() -> None:
    held = examined(state=replace(IDLE, throttle=("power", "application clocks")))["gpu clock"]
    assert held.level is Level.DEGRADED
    assert "power at 31 degrees" in held.found
    chosen = examined(state=replace(IDLE, throttle=("application clocks",)))["gpu clock"]
    assert chosen.level is Level.FIT
    assert "set by hand" in chosen.found


def test_several_gpus_are_told_apart_by_number() -> None:
    many = replace(FACTS, count=8)
    assert "PCI_BUS_ID" in examined(many)["gpu order"].remedy
    assert "gpu order" not in examined(many, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert "gpu order" not in examined(many, CUDA_VISIBLE_DEVICES="GPU-1234")
    assert "gpu order" not in examined()


def test_a_whole_device_from_a_trace() -> None:
    found = {f.what: f for f in fitness_gpu.gpu(Replay(TRACES / "t4-hot-old-driver.jsonl"), {})}
    bad = {what: finding.level for what, finding in found.items() if finding.level is not Level.FIT}
    assert bad == {
        "gpu use": Level.DEGRADED,
        "gpu daemon": Level.DEGRADED,
        "gpu power": Level.DEGRADED,
        "gpu memory": Level.UNFIT,
        "gpu clock": Level.DEGRADED,
    }
    assert "ollama" in found["gpu use"].found
    assert "thermal at 88 degrees" in found["gpu clock"].found
