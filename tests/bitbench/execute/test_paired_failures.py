"""Two sides in turns: what a failure on one side costs the other, and what is told and kept of it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sided import Notes, assert_all_ended, assert_complete, make_plan, outcomes, reasons, said

from bitbench.errors import ToolError
from bitbench.execute.losses import DEATHS
from bitbench.execute.patience import Limits
from bitbench.store.reader import load_run
from bitbench.store.schema import Case, Record, Status


def test_what_only_one_side_can_do_is_measured_on_that_side(compare: Any) -> None:
    run = compare(
        make_plan("good", "new", "wrong", "late"),
        base={("build", "new"): "raise"},
        head={("check", "wrong"): "wrong", ("call", "late"): "raise"},
    )
    assert_complete(run)
    assert outcomes(run) == {
        ("base", "good"): Status.OK,
        ("head", "good"): Status.OK,
        ("base", "new"): Status.ERROR,
        ("head", "new"): Status.OK,
        ("base", "wrong"): Status.OK,
        ("head", "wrong"): Status.INCORRECT,
        ("base", "late"): Status.OK,
        ("head", "late"): Status.ERROR,
    }
    assert reasons(run)["base", "new"] == "ValueError: new raises"
    layers = {case.id: case.layer for case in run.cases}
    timed = {(r.side, layers[r.case]) for r in run.records if r.samples_ns}
    assert timed == {key for key, status in outcomes(run).items() if status is Status.OK}


@pytest.mark.parametrize("when", ["build", "call", "conclude"])
def test_a_dead_worker_costs_its_case_on_both_sides(compare: Any, log: Path, when: str) -> None:
    sink = Notes()
    run = compare(make_plan("good", "dies", "fine"), head={(when, "dies"): "abort"}, sink=sink)
    assert_complete(run)
    found = outcomes(run)
    assert found["head", "dies"] is Status.CRASH
    told = reasons(run)
    assert "SIGABRT" in told["head", "dies"]
    assert "logs/launch-0-head.log" in told["head", "dies"]
    if found["base", "dies"] is not Status.OK:  # its record may have come before
        assert when != "build" or found["base", "dies"] is Status.ERROR
        assert told["base", "dies"].startswith("not measured: the head side was lost at this case")
    assert {found[side, layer] for side in ("base", "head") for layer in ("good", "fine")} == {Status.OK}
    assert len(sink.notes) == 1
    assert_all_ended(log)


def test_a_case_that_kills_again_is_given_up_and_the_other_side_measured_alone(compare: Any) -> None:
    sink = Notes()
    run = compare(make_plan("good", "dies", launches=4), head={("call", "dies"): "kill"}, sink=sink)
    assert_complete(run)
    assert len(sink.notes) == DEATHS
    for launch in range(4):
        found = outcomes(run, launch)
        assert found["base", "good"] is found["head", "good"] is Status.OK
        assert found["head", "dies"] is Status.CRASH
        assert found["base", "dies"] is (Status.ERROR if launch < DEATHS else Status.OK)
    last = [r for r in run.records if r.launch == 3 and r.status is Status.CRASH]
    assert last[0].reason.startswith("not tried after 2 losses: the worker died of SIGKILL")


def test_a_hang_is_ended_and_not_waited_for_again(compare: Any, log: Path) -> None:
    sink = Notes()
    run = compare(
        make_plan("good", "hangs", launches=2),
        base={("call", "hangs"): "hang"},
        sink=sink,
        limits=Limits(start=120, least=3, factor=0),
    )
    assert_complete(run)
    assert outcomes(run, 0)["base", "hangs"] is Status.TIMEOUT
    assert outcomes(run, 0)["head", "hangs"] is Status.ERROR
    assert outcomes(run, 1)["base", "hangs"] is Status.TIMEOUT
    assert outcomes(run, 1)["head", "hangs"] is Status.OK
    assert "3 s" in next(r.reason for r in run.records if r.status is Status.TIMEOUT)
    assert len(sink.notes) == 1
    assert_all_ended(log)


def test_a_process_that_dies_after_its_last_record_ends_no_run_in_a_circle(compare: Any) -> None:
    """All layers of the point have failed on this side, and cleaning up after them kills it."""
    run = compare(make_plan("a", launches=3), head={("build", "a"): "raise, then abort"})
    assert_complete(run)
    for launch in range(3):
        found = outcomes(run, launch)
        assert found["head", "a"] in (Status.ERROR, Status.CRASH)
        assert found["base", "a"] is (Status.ERROR if launch < DEATHS else Status.OK)


def test_a_library_that_kills_when_imported_costs_its_side_only(compare: Any) -> None:
    run = compare(make_plan("a", "b", launches=3, exact=1), base={("import", ""): "abort"})
    assert_complete(run)
    assert {status for (side, _), status in outcomes(run).items() if side == "base"} == {Status.CRASH}
    assert {status for (side, _), status in outcomes(run, 2).items() if side == "head"} == {Status.OK}


def test_a_worker_lost_while_the_other_side_works(compare: Any, log: Path) -> None:
    sink = Notes()

    def kill(case: Case, stage: str) -> None:
        if stage == "time" and not sink.notes:
            pids = [int(pid) for side, pid, *_ in said(log, "build") if side == "base"]
            os.kill(pids[-1], signal.SIGKILL)

    sink.on_at = kill
    run = compare(make_plan("a", "b", "c"), sink=sink)
    assert_complete(run)
    lost = [key for key, status in outcomes(run).items() if status is not Status.OK]
    assert len(lost) == 2
    assert {side for side, _ in lost} == {"base", "head"}
    assert len({layer for _, layer in lost}) == 1


def test_an_interrupt_keeps_whole_pairs(compare: Any, log: Path, tmp_path: Path) -> None:
    sink = Notes()

    def interrupt(record: Record) -> None:
        if len(sink.records) == 4:
            raise KeyboardInterrupt

    sink.on_record = interrupt
    with pytest.raises(KeyboardInterrupt):
        compare(make_plan("a", "b", launches=3), sink=sink)
    run = load_run(tmp_path / "run")
    assert Counter(record.side for record in run.records) == {"base": 2, "head": 2}
    assert run.ends == []
    assert sink.ended
    assert_all_ended(log)


@pytest.mark.parametrize("gone", ["base", "head"])
def test_a_side_that_failed_keeps_its_reason_beside_a_slowdown_that_cannot_be(
    compare: Any, gone: str
) -> None:
    plan = make_plan("plain", "short", max_calls=8)
    run = compare(plan, slowdown={"short": 0.1}, **{gone: {("build", "short"): "raise"}})
    assert_complete(run)
    assert reasons(run)[gone, "short"] == "ValueError: short raises"
    wanted = Status.OK if gone == "head" else Status.UNSUPPORTED
    assert outcomes(run)["head" if gone == "base" else "base", "short"] is wanted


def test_a_worker_that_cannot_start_is_a_fault_of_the_tool(
    compare: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), os.environ["PYTHONPATH"]]))
    with pytest.raises(ToolError, match="no torch here"):
        compare(make_plan("a"))
