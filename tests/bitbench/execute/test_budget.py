"""Runs with a budget, and how a run says it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute.stopping import Allowance
from bitbench.store.reader import load_run
from bitbench.store.writer import END_FILE


def test_a_run_says_where_its_time_went(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}, "b": {}}, launches=2, timed=2, exact=1)
    run = run_of(plan, tmp_path / "run")
    (end,) = run.ends
    assert end.stops == {point.id: "launches" for point in plan.points if point.phase == "timed"}
    stages = end.stages_s
    assert {"start", "open", "build", "warm-up", "check", "time", "timed", "measure", "idle"} <= set(stages)
    assert stages["timed"] <= stages["time"]
    whole = sum(seconds for name, seconds in stages.items() if name != "timed")
    assert whole == pytest.approx(end.wall_s, abs=0.05)
    timed = sum(sum(record.samples_ns) for record in run.records) / 1e9
    assert stages["timed"] == pytest.approx(timed, abs=0.001)


def test_a_resumed_run_says_it_again(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}})
    run_of(plan, tmp_path / "run")
    with (tmp_path / "run" / END_FILE).open("a") as file:
        file.write('{"finished": "torn')
    run = run_of(plan, tmp_path / "run", resume=True)
    assert len(run.ends) == 2
    assert "timed" not in run.ends[1].stages_s, "nothing was left to measure"


def test_an_interrupted_run_has_no_end(plan_of: Any, run_of: Any, tmp_path: Path, sink: Any) -> None:
    def interrupt(_case: Any, _record: Any) -> None:
        raise KeyboardInterrupt

    sink.on_record = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_of(plan_of({"a": {}}), tmp_path / "run", sink=sink)
    assert load_run(tmp_path / "run").ends == []


def test_a_budget_adds_launches_until_intervals_are_narrow(
    plan_of: Any, run_of: Any, tmp_path: Path, sink: Any
) -> None:
    plan = plan_of({"a": {}, "b": {}}, launches=2, timed=1)
    # So wide a width that three launches reach it: two give no interval at all, and one more is
    # made to confirm it.
    run = run_of(plan, tmp_path / "run", sink=sink, allowance=Allowance(seconds=300, width=50.0))
    (point,) = plan.points
    assert run.ends[0].stops == {point.id: "width"}
    assert sorted({record.launch for record in run.records}) == [0, 1, 2, 3]
    assert len(run.records) == 8
    assert sink.total == 8
    assert sink.notes[0].endswith("without an interval; 1 point")
    assert run.missing() == set()


def test_a_budget_ends_with_its_time(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}}, launches=1, timed=2)
    run = run_of(plan, tmp_path / "run", allowance=Allowance(seconds=0.01, width=0.01))
    assert {record.launch for record in run.records} == {0}, "the suite's own launches are always made"
    assert set(run.ends[0].stops.values()) == {"budget"}


def test_what_failed_is_not_launched_further(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}, "wrong": {"does": "wrong"}}, launches=3, timed=1)
    run = run_of(plan, tmp_path / "run", allowance=Allowance(seconds=300, width=50.0))
    layer = {case.id: case.layer for case in run.cases}
    launches = {name: [r.launch for r in run.records if layer[r.case] == name] for name in ("a", "wrong")}
    assert launches == {"a": [0, 1, 2, 3], "wrong": [0, 1, 2]}


def test_a_finished_run_can_be_continued_with_a_budget(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}}, launches=3)
    run_of(plan, tmp_path / "run")
    run = run_of(plan, tmp_path / "run", resume=True, allowance=Allowance(seconds=300, width=50.0))
    assert [record.launch for record in run.records] == [0, 1, 2, 3]


def test_ends_are_plain_lines(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    run_of(plan_of({"a": {}}), tmp_path / "run")
    (line,) = (tmp_path / "run" / END_FILE).read_text().splitlines()
    assert set(json.loads(line)) == {"finished", "wall_s", "stages_s", "stops"}
