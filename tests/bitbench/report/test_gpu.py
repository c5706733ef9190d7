"""What reports say of a GPU: replayed calls, and layers kept at work alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.analysis.summary import Summary, summarise
from bitbench.report.context import context_of
from bitbench.report.gpu import gpu_load
from bitbench.report.html import render as html
from bitbench.report.markdown import render as markdown
from bitbench.report.speed import speed
from bitbench.store.reader import load_run

UNDER_LOAD = {
    "gpu.utilisation": 0.98,
    "gpu.memory_utilisation": 0.5,
    "gpu.power_w": 600.0,
    "gpu.sm_mhz": 1755.0,
    "gpu.calls_per_s": 125_000.0,
    "gpu.energy_j": 0.0048,
}


def summary_of(run_dir: Path, metrics: dict[str, float], launch: int | None = None) -> Summary:
    """The run with ``metrics`` added to the timed records of the ternary layer (of ``launch`` alone)."""
    samples = run_dir / "samples.jsonl"
    cases = [json.loads(line) for line in (run_dir / "cases.jsonl").read_text().splitlines()]
    ternary = {case["id"] for case in cases if case["layer"] == "ternary" and case["phase"] == "timed"}
    records: list[dict[str, Any]] = [json.loads(line) for line in samples.read_text().splitlines()]
    for record in records:
        if record["case"] in ternary and launch in (None, record["launch"]) and record.get("samples_ns"):
            record["metrics"] = {**record.get("metrics", {}), **metrics}
    samples.write_text("".join(json.dumps(record) + "\n" for record in records))
    return summarise(load_run(run_dir))


@pytest.fixture
def run_dir(tmp_path: Path, run_maker: ModuleType) -> Path:
    path: Path = run_maker.write_run(tmp_path)
    return path


def test_a_layer_under_load_has_its_figures_from_one_launch(run_dir: Path) -> None:
    summary = summary_of(run_dir, UNDER_LOAD, launch=0)
    section = gpu_load(summary)
    assert section is not None
    row = next(row for row in section.tables[0].rows if row[0].text == "ternary")
    assert [cell.text for cell in row[1:4]] == ["98 %", "50 %", "600 W"]
    assert [column.title for column in section.tables[0].columns][-1] == "Energy a call"
    for rendered in (markdown(context_of(summary)), html(context_of(summary))):
        assert "The GPU under load" in rendered


def test_what_the_driver_does_not_say_has_no_column(run_dir: Path) -> None:
    section = gpu_load(summary_of(run_dir, {"gpu.calls_per_s": 5.0, "gpu.power_w": 70.0}))
    assert section is not None
    assert [column.title for column in section.tables[0].columns] == ["Layer", "Power", "Calls/s"]


def test_without_a_load_there_is_no_section(run_dir: Path) -> None:
    assert gpu_load(summary_of(run_dir, {"gpu.power_w": 70.0})) is None


def test_a_replayed_call_says_what_a_launched_one_takes(run_dir: Path) -> None:
    plain = speed(summary_of(run_dir, {"cpu.utilisation": 1.0}), [])
    assert plain is not None
    assert not any("that of a captured graph" in text for text in plain.prose)
    notes = [note for table in plain.tables for row in table.rows for cell in row for note in cell.notes]
    assert not any(note.startswith("launched from the host") for note in notes)
    section = speed(summary_of(run_dir, {"time.eager": 9.5e-6}), [])
    assert section is not None
    assert any("that of a captured graph" in text for text in section.prose)
    notes = [note for table in section.tables for row in table.rows for cell in row for note in cell.notes]
    assert any(note.startswith("launched from the host: 9.5") for note in notes)
