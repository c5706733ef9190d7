from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitbench.analysis.summary import Summary, summarise
from bitbench.report.context import context_of
from bitbench.report.html import render as html
from bitbench.report.machine import disturbances, energy, telemetry
from bitbench.report.tables import Cell, Table
from bitbench.store.reader import load_run
from bitbench.store.schema import TelemetrySample


def sample(t: float, launch: str = "launch-0", **fields: Any) -> TelemetrySample:
    return TelemetrySample(t=t, launch=launch, cpu_percent=50.0 + t, **fields)


BUSY = [
    sample(0.0, gpu_percent=0.0, gpu_power_w=76.0, gpu_energy_j=1000.0, gpu_sm_mhz=345.0, cpu_stalled_s=1.0),
    sample(
        1.0, gpu_percent=99.0, gpu_power_w=540.0, gpu_energy_j=1540.0, gpu_sm_mhz=1980.0, cpu_stalled_s=1.5
    ),
    sample(
        2.0,
        gpu_percent=98.0,
        gpu_power_w=699.0,
        gpu_energy_j=2239.0,
        gpu_sm_mhz=1605.0,
        gpu_throttle=["power", "application clocks"],
        foreign=["cc1plus (97 % cpu)", "gpu: <b>`x`"],
        cpu_steal_percent=12.5,
        cpu_stalled_s=1.5,
    ),
    sample(3.0, "launch-1", gpu_percent=97.0, gpu_power_w=540.0, gpu_energy_j=2800.0, gpu_sm_mhz=1980.0),
]


@pytest.fixture
def summary(stored_run: Path) -> Summary:
    return summarise(load_run(stored_run))


def with_telemetry(summary: Summary, samples: list[TelemetrySample]) -> Summary:
    return replace(summary, run=replace(summary.run, telemetry=samples))


def rows(table: Table) -> dict[str, list[Cell]]:
    return {row[0].text: row[1:] for row in table.rows}


def test_nothing_sampled_gives_no_section(summary: Summary) -> None:
    assert telemetry(with_telemetry(summary, [])) is None


def test_without_a_gpu_the_table_says_so(summary: Summary) -> None:
    section = telemetry(summary)
    assert section is not None
    assert section.prose == []
    found = rows(section.tables[0])
    assert [cell.text for cell in found["CPU in use"]] == ["80.0 %", "82.0 %", "84.0 %"]
    (gpu,) = (cells for title, cells in found.items() if title.startswith("GPU"))
    assert {(cell.text, cell.notes) for cell in gpu} == {("n/a", ("no GPU was seen by NVML",))}
    assert found["Memory of the worker"][0].text == "n/a"


def test_figures_of_a_gpu(summary: Summary) -> None:
    section = telemetry(with_telemetry(summary, BUSY))
    assert section is not None
    whole, launches = section.tables
    found = rows(whole)
    assert [cell.sort for cell in found["GPU in use"]] == [0.0, 97.5, 99.0]
    assert [cell.text for cell in found["GPU power"]] == ["76.0 W", "540 W", "699 W"]
    assert found["GPU temperature"][0].text == "n/a"
    assert found["GPU energy, whole run"][2].text == "1,800 J"
    assert [row[0].text for row in launches.rows] == ["launch-0", "launch-1"]
    assert launches.rows[0][-1].text == "throttled: power, cc1plus, gpu: <b>`x`"
    assert launches.rows[1][-1].text == ""
    assert {len(row) for row in launches.rows} == {len(launches.columns)}


def test_what_disturbed_is_said_in_words() -> None:
    told = disturbances(BUSY)
    assert [text.split("**")[1] for text in told] == [
        "The GPU's clock was held down",
        "The hypervisor took processor time",
        "A quota stopped all threads",
        "Other processes were at work",
    ]
    assert "power in 1 of 4 samples" in told[0]
    assert "application" not in told[0]
    assert "12.5 %" in told[1]
    assert "500 ms" in told[2]
    assert disturbances([sample(0.0), sample(1.0)]) == []


def test_energy_is_the_sum_of_rises() -> None:
    assert energy(BUSY) == pytest.approx(1800.0)
    assert energy(BUSY[:2]) is None, "one second is too short"
    assert energy([sample(0.0), sample(5.0)]) is None
    resumed = [*BUSY, sample(0.0, gpu_energy_j=9000.0), sample(2.0, gpu_energy_j=9100.0)]
    assert energy(resumed) == pytest.approx(1900.0), "what lies between two parts of a run is not counted"
    reloaded = [*BUSY, sample(4.0, gpu_energy_j=3.0), sample(5.0, gpu_energy_j=103.0)]
    assert energy(reloaded) == pytest.approx(1900.0), "the counter starts anew with the driver"


def test_names_of_processes_cannot_break_the_page(summary: Summary) -> None:
    context = context_of(with_telemetry(summary, BUSY))
    assert "telemetry" in [section.id for section in context.sections]
    page = html(context)
    assert "How the machine fared" in page
    assert "<b>`x`" not in page
