"""Notes of launches, gathered for the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitbench.analysis.remarks import remarks, suspicion
from bitbench.analysis.summary import summarise
from bitbench.report import csv
from bitbench.report.provenance import every_case
from bitbench.report.speed import speed
from bitbench.store.reader import load_run
from bitbench.store.schema import Record, Status


def record(launch: int, *notes: str) -> Record:
    return Record(case="c", launch=launch, status=Status.OK, notes=list(notes))


def test_each_kind_is_told_once_with_its_launches() -> None:
    told = remarks(
        [
            record(0, "suspicious: 11 GB/s", "throttled: power (3 of 4 readings)"),
            record(1),
            record(2, "suspicious: 12 GB/s"),
        ]
    )
    assert told == (
        "suspicious: 11 GB/s (2 of 3 launches)",
        "throttled: power (3 of 4 readings) (1 of 3 launches)",
    )
    assert remarks([record(0, "suspicious: x")]) == ("suspicious: x",)
    assert remarks([record(0), record(1)]) == ()


def test_a_cell_names_the_suspicion_only() -> None:
    assert suspicion(["throttled: power", "suspicious: x"]) == "suspicious"
    assert suspicion(["throttled: power", "not suspicious"]) == ""


def test_a_report_shows_what_is_suspicious_and_why(run_maker: Any, tmp_path: Path) -> None:
    run = load_run(run_maker.write_run(tmp_path))
    doubted = next(
        summary.case.id
        for summary in summarise(run).cases
        if summary.ok and summary.case.workload == "linear" and summary.case.phase == "timed"
    )
    why = "suspicious: weights read at 11.0 GB/s"
    for index, stored in enumerate(run.records):
        if stored.case == doubted:
            run.records[index] = stored.model_copy(update={"notes": [why]})
    summary = summarise(run)
    section = speed(summary, [])
    assert section is not None
    assert any("called suspicious" in text for text in section.prose)
    cells = [cell for table in section.tables for row in table.rows for cell in row]
    assert {cell.case for cell in cells if "suspicious" in cell.notes} == {doubted}
    (table,) = every_case(summary).tables
    noted = [row for row in table.rows if any(why in note for cell in row for note in cell.notes)]
    assert [row[0].case for row in noted] == [doubted]
    assert {line.split(",")[1] for line in csv.render(summary).splitlines() if why in line} == {doubted}
