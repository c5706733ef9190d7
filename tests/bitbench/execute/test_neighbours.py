"""Points that are measured beside busy neighbours: what is recorded, and that none is left over."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitbench.execute import point as point_module
from bitbench.execute.jobs import Setting, timed_job
from bitbench.execute.timed import PointClock
from bitbench.measure import neighbours as neighbours_module
from bitbench.measure.clock import Budget
from bitbench.measure.neighbours import Neighbours
from bitbench.measure.roofline import Peaks, Rulers
from bitbench.store.schema import Case, Record, Status

MARK = "BITBENCH_TEST_NEIGHBOURS"


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Neighbours of this test that are still there."""
    own = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(MARK, own)

    def found() -> list[int]:
        pids = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == own and neighbours_module.__name__ in process.cmdline():
                    pids.append(process.pid)
            except psutil.Error:
                continue
        return pids

    return found


def gone(left: Callable[[], list[int]]) -> bool:
    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not left()


def test_a_point_names_them_and_a_record_counts_them(
    plan_of: Any, run_of: Any, tmp_path: Path, left: Callable[[], list[int]]
) -> None:
    plan = plan_of({"a": {}, "b": {}}, exact=1, neighbours=1)
    assert [point.params.get("neighbours") for point in plan.points] == [1, None], "bytes are the same"
    run = run_of(plan, tmp_path / "run")
    assert {record.status for record in run.records} == {Status.OK}
    counts = [record.metrics.get("cpu.neighbours") for record in run.records if record.samples_ns]
    assert counts == [1.0, 1.0]
    assert gone(left)


def test_all_is_one_for_each_processor_and_more_are_unsupported(
    plan_of: Any, run_of: Any, tmp_path: Path, left: Callable[[], list[int]]
) -> None:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    run = run_of(plan_of({"a": {}}, neighbours="all"), tmp_path / "all")
    assert [record.metrics["cpu.neighbours"] for record in run.records] == [usable]
    run = run_of(plan_of({"a": {}}, neighbours=usable + 1), tmp_path / "more")
    (record,) = run.records
    assert record.status is Status.UNSUPPORTED
    assert record.reason == (
        f"{usable + 1} neighbours are more than the {usable} processors that can be used here: write "
        f"`neighbours: all`, or at most {usable}"
    )
    assert gone(left)


@pytest.mark.parametrize("deed", ["abort", "kill"])
def test_a_worker_that_dies_beside_them_takes_them_along(
    plan_of: Any, run_of: Any, tmp_path: Path, left: Callable[[], list[int]], deed: str
) -> None:
    plan = plan_of({"a": {}, "b": {"does": deed, "at": "call"}}, neighbours=1)
    run = run_of(plan, tmp_path / "run")
    assert {record.status for record in run.records} >= {Status.CRASH}
    assert gone(left)


def test_an_interrupt_ends_them(
    plan_of: Any,
    run_of: Any,
    sink: Any,
    tmp_path: Path,
    left: Callable[[], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there: list[int] = []

    def interrupt(launch: str, case: Case, stage: str) -> None:
        if stage == "time":
            there.extend(left())
            raise KeyboardInterrupt

    monkeypatch.setattr(sink, "at", interrupt)
    plan = plan_of({"a": {}, "b": {"does": "slow", "seconds": 5.0}}, neighbours=1)
    with pytest.raises(KeyboardInterrupt):
        run_of(plan, tmp_path / "run", sink=sink)
    assert len(there) == 1
    assert gone(left)


def visited(plan: Any, tmp_path: Path) -> list[Record]:
    missing = {(case.id, 0) for case in plan.cases}
    (visit,) = (job := timed_job(plan, Setting("cpu", 1, str(tmp_path), {}), 0, missing)).visits
    records: list[Record] = []
    rulers = Rulers({}, lambda threads: Peaks())
    PointClock(job, visit, records.append, lambda *_: None, rulers, Budget(0.01, 100_000)).run()
    return records


def test_where_one_ended_early_the_result_is_invalid(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Short(Neighbours):
        lost = 1

    monkeypatch.setattr(point_module, "Neighbours", Short)
    (record,) = visited(plan_of({"a": {}}, neighbours=1), tmp_path)
    assert (record.status, record.reason) == (
        Status.INVALID,
        "1 of 1 busy neighbours ended before the point did",
    )


def test_they_work_while_layers_are_timed_and_not_while_they_are_checked(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fake_kinds

    now: list[bool] = [False]
    seen: dict[str, set[bool]] = {"call": set(), "check": set(), "build": set()}

    class Watched(Neighbours):
        def _tell(self, number: Any) -> None:
            super()._tell(number)
            now[0] = number == neighbours_module.signal.SIGCONT

    def noting(name: str, owner: Any, attribute: str) -> None:
        real = getattr(owner, attribute)

        def noted(self: Any, *args: Any) -> Any:
            seen[name].add(now[0])
            return real(self, *args)

        monkeypatch.setattr(owner, attribute, noted)

    noting("call", fake_kinds.FakeSubject, "call")
    noting("check", fake_kinds.FakeSubject, "check")
    noting("build", fake_kinds.FakeSession, "build")
    monkeypatch.setattr(point_module, "Neighbours", Watched)
    records = visited(plan_of({"a": {}, "b": {}}, neighbours=1), tmp_path)
    assert [record.status for record in records] == [Status.OK] * 2
    assert seen == {"call": {True}, "check": {False}, "build": {False}}


def test_two_versions_in_turns_have_their_own(compare: Any, left: Callable[[], list[int]]) -> None:
    import sided

    plan = sided.make_plan("a", "b", neighbours=1)
    run = compare(plan)
    assert {record.status for record in run.records} == {Status.OK}
    assert {record.metrics.get("cpu.neighbours") for record in run.records if record.samples_ns} == {1.0}
    assert gone(left)
