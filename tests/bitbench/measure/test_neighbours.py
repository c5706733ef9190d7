"""Busy neighbours work when they are wanted, rest otherwise, and never outlive what they were for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from bitbench.measure import neighbours
from bitbench.measure.host import usable_beside
from bitbench.measure.neighbours import Neighbours

MARK = "BITBENCH_TEST_NEIGHBOURS"


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What tells the neighbours of this test from those of others on this machine."""
    own = f"{os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(MARK, own)
    return own


@pytest.fixture
def alive(mark: str) -> Iterator[Callable[[], list[psutil.Process]]]:
    def found() -> list[psutil.Process]:
        processes = []
        for process in psutil.process_iter():
            try:
                theirs = process.environ().get(MARK) == mark
                if theirs and neighbours.__name__ in process.cmdline():
                    processes.append(process)
            except psutil.Error:
                continue
        return processes

    yield found
    for process in found():
        process.kill()


def used(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def until(wanted: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not wanted() and time.monotonic() < deadline:
        time.sleep(0.01)
    return wanted()


def test_they_work_inside_busy_only(alive: Callable[[], list[psutil.Process]]) -> None:
    with Neighbours(2) as beside:
        processes = alive()
        assert len(processes) == 2
        assert until(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
        before = used(processes)
        time.sleep(0.05)
        assert used(processes) == before, "stopped, they take nothing"
        with beside.busy():
            assert until(lambda: used(processes) > before), "now they do"
        assert until(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
        assert beside.lost == 0
    assert alive() == []


def test_an_exception_ends_them(alive: Callable[[], list[psutil.Process]]) -> None:
    def interrupted() -> None:
        with Neighbours(1) as beside, beside.busy():
            assert len(alive()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert alive() == []


def test_one_that_ends_early_is_noticed() -> None:
    with Neighbours(2) as beside:
        beside._running[0].kill()
        beside._running[0].wait()
        assert beside.lost == 1


def test_one_that_cannot_start_is_an_error_and_leaves_none(
    alive: Callable[[], list[psutil.Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Neighbours._start
    started: list[subprocess.Popen[bytes]] = []

    def start(self: Neighbours) -> subprocess.Popen[bytes]:
        if started:
            monkeypatch.setattr(sys, "executable", "false")
        started.append(real(self))
        return started[-1]

    monkeypatch.setattr(Neighbours, "_start", start)
    with pytest.raises(RuntimeError, match="a busy neighbour ended with code 1"), Neighbours(2):
        pytest.fail("one of the two never ran")
    assert alive() == []


PARENT = """
import time
from bitbench.measure.neighbours import Neighbours
with Neighbours(2) as beside, beside.busy():
    print("ready", flush=True)
    time.sleep(60)
"""


def test_they_die_with_whoever_started_them(alive: Callable[[], list[psutil.Process]]) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert len(alive()) == 2
        parent.send_signal(signal.SIGKILL)
    assert until(lambda: not alive())


def test_none_lives_longer_than_any_point_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(neighbours, "LONGEST_SECONDS", 0.01)
    monkeypatch.setattr(neighbours, "end_with", lambda parent: None)
    monkeypatch.setattr(sys, "argv", ["neighbours", str(os.getppid())])
    neighbours.main()
    assert capsys.readouterr().out == "\n", "says that it is at work, works, and ends"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system keeps no process on processors")
def test_they_may_run_where_their_starter_may_not(alive: Callable[[], list[psutil.Process]]) -> None:
    everywhere = usable_beside(os.getpid())
    if len(everywhere) < 2:
        pytest.skip("there is one processor only")
    try:
        os.sched_setaffinity(0, {min(everywhere)})
        with Neighbours(1, everywhere):
            (process,) = alive()
            assert usable_beside(process.pid) == everywhere
    finally:
        os.sched_setaffinity(0, everywhere)


def test_where_the_system_does_not_tell_nothing_is_known() -> None:
    assert usable_beside(2**30) == set()
