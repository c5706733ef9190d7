from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.measure.nvml import GpuState
from bitbench.measure.replay import Replay
from bitbench.measure.windows import (
    ENERGY_SECONDS,
    SETTLE_SECONDS,
    Moment,
    counter_power,
    figures,
    remarks,
)

TRACES = Path(__file__).parent / "traces"


def moments(name: str) -> list[Moment]:
    gpu = Replay(TRACES / f"{name}.jsonl")
    return [Moment(gpu.t, state) for state in (gpu.read() for _ in range(len(gpu)))]


def window(name: str, started: float, ended: float, calls: int = 0) -> dict[str, float]:
    inside = [moment for moment in moments(name) if started <= moment.at <= ended]
    return figures(inside, started, ended, calls=calls)


def test_a_window_of_work() -> None:
    found = window("h200-power-cap", 4.0, 12.0, calls=1000)
    # 4 s at 540 W, 3 s at 699 W, 1 s at 540 W, by the energy counter.
    mean = (4 * 540 + 3 * 699 + 1 * 540) / 8
    assert found["gpu.power_w"] == pytest.approx(mean, rel=1e-6)
    assert found["gpu.energy_j"] == pytest.approx(8 * mean / 1000, rel=1e-6)
    # The first second still averages over the idle time before: it is not used.
    assert found["gpu.utilisation"] == pytest.approx(0.99, abs=0.03)
    assert found["gpu.memory_utilisation"] == pytest.approx(0.62, abs=0.02)
    assert 1605 < found["gpu.sm_mhz"] < 1980


def test_energy_takes_two_seconds() -> None:
    assert "gpu.energy_j" not in window("h200-power-cap", 4.0, 5.9, calls=10)
    assert "gpu.energy_j" in window("h200-power-cap", 4.0, 6.0, calls=10)


def test_energy_needs_to_know_the_calls() -> None:
    assert "gpu.energy_j" not in window("h200-power-cap", 4.0, 12.0)


def test_a_window_shorter_than_the_drivers_average_says_nothing() -> None:
    assert window("h200-power-cap", 4.0, 4.8, calls=10) == {}
    assert set(window("h200-power-cap", 4.0, 5.4)) == {
        *("gpu.utilisation", "gpu.memory_utilisation", "gpu.sm_mhz", "gpu.power_w")
    }


def test_without_a_counter_power_is_the_mean_of_readings_and_energy_unknown() -> None:
    found = window("a100-mig", 0.0, 3.0, calls=5)
    assert found == {"gpu.power_w": 91.25, "gpu.sm_mhz": 1410.0}


def test_no_gpu_gives_no_figures() -> None:
    idle = [Moment(float(t), GpuState()) for t in range(10)]
    assert figures(idle, 0.0, 9.0, calls=7) == {}
    assert remarks(idle) == []


def test_a_counter_that_was_reset_is_not_believed() -> None:
    readings = [Moment(float(t), GpuState(energy_j=e)) for t, e in enumerate([100.0, 200.0, 5.0, 105.0])]
    assert counter_power(readings) is None


def test_remarks_name_what_disturbed() -> None:
    capped = [moment for moment in moments("h200-power-cap") if 6.9 <= moment.at <= 9.1]
    assert remarks(capped) == ["throttled: power (6 of 11 readings)"]
    hot = remarks(moments("t4-hot-old-driver"))
    assert hot == ["throttled: thermal (8 of 8 readings)"], "application clocks are somebody's choice"


def test_remarks_on_the_processor() -> None:
    seen = [
        Moment(0.0, GpuState(), ("cc1plus (97 % cpu)",), 0.0, 5.0),
        Moment(1.0, GpuState(), ("cc1plus (99 % cpu)", "gpu: ollama"), 7.5, 5.25),
    ]
    assert remarks(seen) == [
        "the hypervisor took up to 8 % of the processor time",
        "the control group's quota held it for 0.25 s",
        "other processes: cc1plus (99 % cpu), gpu: ollama",
    ]


POWERS = st.lists(st.floats(1.0, 1000.0), min_size=2, max_size=40)


@given(POWERS, st.floats(0.05, 1.0))
def test_counter_power_lies_between_the_powers_that_made_it(powers: list[float], step: float) -> None:
    energy, readings = 0.0, []
    for number, power in enumerate(powers):
        readings.append(Moment(number * step, GpuState(energy_j=energy)))
        energy += power * step
    found = counter_power(readings)
    span = (len(powers) - 1) * step
    if span < ENERGY_SECONDS - 1e-9:
        assert found is None
    elif span > ENERGY_SECONDS + 1e-9:
        assert found is not None
        assert min(powers) * (1 - 1e-6) <= found <= max(powers) * (1 + 1e-6)


@given(
    st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30),
    st.floats(0.1, 1.0),
    st.integers(0, 10**6),
)
def test_shares_are_shares_of_settled_readings(percents: list[float], step: float, calls: int) -> None:
    readings = [Moment(n * step, GpuState(percent=p)) for n, p in enumerate(percents)]
    found = figures(readings, 0.0, len(percents) * step, calls=calls)
    settled = [p / 100 for n, p in enumerate(percents) if n * step >= SETTLE_SECONDS]
    if not settled:
        assert found == {}
    else:
        assert set(found) == {"gpu.utilisation"}
        assert min(settled) - 1e-9 <= found["gpu.utilisation"] <= max(settled) + 1e-9
