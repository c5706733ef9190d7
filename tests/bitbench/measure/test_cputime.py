from __future__ import annotations

import time

import pytest

from bitbench.measure import cputime
from bitbench.measure.cputime import Use


def test_differences() -> None:
    assert Use(30, 12).since(Use(10, 5)) == Use(20, 7)


def test_work_of_this_thread_counts() -> None:
    before, own = cputime.now(), time.thread_time_ns()
    while time.thread_time_ns() - own < 3_000_000:
        pass
    used = cputime.now().since(before)
    assert used.cpu_ns >= 3_000_000
    assert used.wall_ns >= 3_000_000
    assert cputime.seconds() >= used.cpu_ns / 1e9


def test_every_threads_clock_is_read_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler books a running thread when its clock is asked for, so the process's clock, read
    afterwards, holds the helpers' time too."""
    asked: list[int] = []

    def clock(number: int) -> int:
        assert number < 0, "clocks of threads have negative numbers"
        asked.append(number)
        if number == ~12 << 3 | 6:
            raise OSError("it has ended")
        return 0

    def process() -> int:
        asked.append(0)
        return 77

    monkeypatch.setattr(cputime.os, "listdir", lambda path: ["11", "12", "13"])
    monkeypatch.setattr(cputime.time, "clock_gettime_ns", clock)
    monkeypatch.setattr(cputime.time, "process_time_ns", process)
    assert cputime.now().cpu_ns == 77
    # From the kernel's posix-timers.h: ((~thread) << 3) | CPUCLOCK_SCHED (2) | per thread (4).
    assert asked == [(~11 << 3) | 6, (~12 << 3) | 6, (~13 << 3) | 6, 0]


def test_where_threads_are_not_listed_the_processs_clock_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cputime, "THREADS", "/no/such/folder")
    assert cputime.now().cpu_ns > 0


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no clocks of threads")
def test_the_number_of_a_threads_clock_is_the_systems() -> None:
    import threading

    system = time.pthread_getcpuclockid(threading.get_ident())
    mine = ~threading.get_native_id() << 3 | cputime.THREAD_CLOCK
    before = time.clock_gettime_ns(mine)
    now = time.clock_gettime_ns(system)
    after = time.clock_gettime_ns(mine)
    assert before <= now <= after
