"""The ruler held against things whose size is known: durations, bytes, ratios, clocks. Torch-free
but for :func:`examine`.

Everything is measured by the same code that measures layers (:mod:`bitbench.measure.clock`,
:mod:`~bitbench.measure.timers`, :mod:`~bitbench.measure.memory`, :mod:`~bitbench.measure.cputime`).
A check of a time may be tried again, since another program at the wrong moment is not the ruler's
fault; bytes are counted once. How a ratio is judged is the caller's: that comes after measuring.
"""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from bitbench.measure import cputime
from bitbench.measure.clock import Budget, Series, Timed, time_together
from bitbench.measure.timers import CpuTimer, Timer
from bitbench.measure.warmup import warm_up

TRIES = 3
SPINS_NS = (50_000, 200_000, 2_000_000)
DURATION_TOLERANCE = 0.02
"""A spin ends at the first reading of the clock past its time and is called through Python: some
0.2 us, 0.4 % of the shortest."""
SHORT = 1e-3
"""Nothing may seem shorter than it is by more than the reading of the clock itself."""
EMPTY_LIMIT_NS = 2_000
RATE_TOLERANCE = 1e-3
"""Between the adjusted and the raw clock of the kernel; time keeping may slew by half of that."""
WORK_NS = 2_000_000
SLEEP_LIMIT_NS = 200_000
"""Falling asleep and waking up costs the processor some 10 us."""
HELPER_WINDOWS, HELPER_SECONDS = 20, 0.002
HELPER_MOST, HELPER_SPARED = 1.1, 2
"""A thread uses no more than all of a window. Two windows are spared: where the reading itself is
interrupted, the helper goes on."""
TWIN_BYTES = 160_000
"""Checksummed by one call: well above the cost of calling, within the cache of a core."""
SLOWER = 1.10
EFFECT_TOLERANCE = 0.015
TWIN_LAUNCHES = (8, 16, 32)
"""Launches at which the twins are judged, until the word is right."""
TWIN_SECONDS = 5.0
"""No further launches after this long: on a machine that busy, more of them decide nothing."""
TIMING = Budget(seconds=0.06)

Judge = Callable[[Mapping[int, float]], str]
"""The word on a speed-up, launch by launch: ``slower``, ``same``, ..."""


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    SKIPPED = "n/a"


@dataclass(frozen=True)
class Check:
    """One known thing, and what the ruler made of it."""

    what: str
    expected: str
    measured: str
    outcome: Outcome
    tries: int = 1


class Spin:
    """Keeps the processor busy until ``clock`` has advanced by ``ns``. Sleeps never."""

    max_calls: int | None = None

    def __init__(self, ns: int, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._ns, self._clock = ns, clock

    def reset(self) -> None:
        return

    def call(self) -> None:
        clock = self._clock
        end = clock() + self._ns
        while clock() < end:
            pass


class Work:
    """Any callable as something to be timed."""

    max_calls: int | None = None

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def reset(self) -> None:
        return


def passed(good: bool) -> Outcome:
    return Outcome.PASS if good else Outcome.FAIL


def tried(check: Callable[[], Check], tries: int = TRIES) -> Check:
    """The first of ``tries`` that does not fail, else the last."""
    for attempt in range(1, tries + 1):
        found = replace(check(), tries=attempt)
        if found.outcome is not Outcome.FAIL:
            break
    return found


def timed(subjects: dict[str, Timed], timer: Timer, seed: int = 0) -> dict[str, Series]:
    """``subjects`` timed side by side, as the layers of a point are in one launch."""
    warm = {name: warm_up(subject, timer, TIMING) for name, subject in subjects.items()}
    return time_together(
        subjects, rng=random.Random(seed), timer=timer, budget=TIMING, call_ns=warm, announce=lambda _: None
    )


def call_ns(series: Series) -> float:
    """Nanoseconds of one call: the median over blocks."""
    return statistics.median(series.samples_ns) / series.calls


def examine(judge: Judge, timer: Timer | None = None) -> Iterator[Check]:
    """All checks, one after the other: under ten seconds on a quiet machine. Imports torch.

    ``timer`` is the one to hold against the known durations; the processor's by default.
    """
    from bitbench.measure import selftest_memory
    from bitbench.measure.selftest_gpu import gpu_checks

    ruler = CpuTimer() if timer is None else timer
    yield tried(clock_steps)
    yield tried(clock_rates)
    for ns in SPINS_NS:
        yield tried(lambda ns=ns: duration(ns, ruler))  # type: ignore[misc]
    yield tried(lambda: empty_call(ruler))
    yield tried(lambda: processor_time(ruler))
    yield tried(lambda: sleep_time(ruler))
    yield tried(helper_threads)
    yield twins(1.0, "same", judge, ruler)
    yield twins(SLOWER, "slower", judge, ruler)
    yield from selftest_memory.memory_checks()
    yield from gpu_checks()


def clock_steps(clock: Callable[[], int] = time.perf_counter_ns, readings: int = 100_000) -> Check:
    """The clock never runs backwards, and advances in steps far below a block."""
    read = [clock() for _ in range(readings)]
    steps = [later - earlier for earlier, later in itertools.pairwise(read)]
    smallest = min((step for step in steps if step > 0), default=0)
    back = sum(step < 0 for step in steps)
    told = f"{smallest} ns" + (f", {back} times backwards" if back else "")
    return Check("clock, smallest step", "1 to 1000 ns", told, passed(not back and 0 < smallest <= 1000))


def clock_rates(
    clock: Callable[[], int] = time.perf_counter_ns, other: Callable[[], int] | None = None
) -> Check:
    """The clock runs at the rate of the kernel's raw clock."""
    what, expected = "clock against the raw clock", f"1 ± {RATE_TOLERANCE:g}"
    if other is None:
        if not hasattr(time, "CLOCK_MONOTONIC_RAW"):
            return Check(what, expected, "this system has no other clock", Outcome.SKIPPED)
        other = _raw
    start, other_start = clock(), other()
    while clock() - start < 200_000_000:
        pass
    rate = (other() - other_start) / (clock() - start)
    return Check(what, expected, f"{rate:.6f}", passed(abs(rate - 1) <= RATE_TOLERANCE))


def _raw() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


def duration(ns: int, timer: Timer, clock: Callable[[], int] = time.perf_counter_ns) -> Check:
    """Work that takes ``ns`` nanoseconds by construction."""
    found = call_ns(timed({"spin": Spin(ns, clock)}, timer)["spin"])
    good = ns * (1 - SHORT) <= found <= ns * (1 + DURATION_TOLERANCE)
    expected = f"{ns / 1000:g} us, up to {DURATION_TOLERANCE:.0%} more"
    return Check(f"spin of {ns / 1000:g} us", expected, f"{found / 1000:.2f} us", passed(good))


def empty_call(timer: Timer) -> Check:
    """What timing adds to a call."""
    found = call_ns(timed({"empty": Work(lambda: None)}, timer)["empty"])
    good = 0 < found <= EMPTY_LIMIT_NS
    return Check("empty call", f"0 to {EMPTY_LIMIT_NS} ns", f"{found:.0f} ns", passed(good))


def processor_time(timer: Timer) -> Check:
    """Work that uses a known time of the processor, however often it is interrupted."""
    found = cpu_ns(timed({"work": Spin(WORK_NS, time.thread_time_ns)}, timer)["work"])
    good = WORK_NS * (1 - SHORT) <= found <= WORK_NS * (1 + DURATION_TOLERANCE)
    expected = f"{WORK_NS / 1000:g} us, up to {DURATION_TOLERANCE:.0%} more"
    return Check("processor time of work", expected, f"{found / 1000:.2f} us", passed(good))


def sleep_time(timer: Timer) -> Check:
    """Time on the wall counts while asleep, time of the processor does not."""
    slept = timed({"sleep": Work(lambda: time.sleep(WORK_NS / 1e9))}, timer)["sleep"]
    wall, cpu = call_ns(slept), cpu_ns(slept)
    return Check(
        "processor time of sleep",
        f"below {SLEEP_LIMIT_NS / 1000:g} us of {WORK_NS / 1000:g} or more",
        f"{cpu / 1000:.0f} us of {wall / 1000:.0f}",
        passed(wall >= WORK_NS * (1 - SHORT) and cpu < SLEEP_LIMIT_NS),
    )


def cpu_ns(series: Series) -> float:
    """Nanoseconds of processor time of one call: the mean over blocks."""
    return series.cpu_ns / (len(series.samples_ns) * series.calls)


def helper_threads(now: Callable[[], cputime.Use] = cputime.now) -> Check:
    """Processor time of a helper thread is booked when it is used, not some milliseconds later."""
    data, stop = bytes(64 << 20), threading.Event()

    def help_out() -> None:
        while not stop.is_set():
            zlib.crc32(data)  # without the interpreter's lock

    helper = threading.Thread(target=help_out, daemon=True)
    helper.start()
    shares = []
    try:
        time.sleep(HELPER_SECONDS)
        for _ in range(HELPER_WINDOWS):
            before = now()
            time.sleep(HELPER_SECONDS)
            used = now().since(before)
            shares.append(used.cpu_ns / used.wall_ns)
    finally:
        stop.set()
        helper.join()
    above = sum(share > HELPER_MOST for share in shares)
    return Check(
        "processor time of a helper",
        f"share of a thread up to {HELPER_MOST} in {HELPER_WINDOWS} windows, {HELPER_SPARED} spared",
        f"highest {max(shares):.3f}, mean {statistics.mean(shares):.3f}, {above} above",
        passed(max(shares) > 0 and above <= HELPER_SPARED),
    )


def twins(
    factor: float,
    word: str,
    judge: Judge,
    timer: Timer,
    work: Callable[[float], Timed] | None = None,
) -> Check:
    """Two pieces of work, the second ``factor`` times the first, are judged to be what they are."""
    make = checksum if work is None else work
    pair: dict[str, Timed] = {"one": make(1.0), "other": make(factor)}
    speedup: dict[int, float] = {}
    said, effect = "", 0.0
    end = time.monotonic() + TWIN_SECONDS
    for launches in TWIN_LAUNCHES:
        for launch in range(len(speedup), launches):
            if time.monotonic() > end and launch >= TWIN_LAUNCHES[0]:
                break
            found = timed(pair, timer, seed=launch)
            speedup[launch] = call_ns(found["one"]) / call_ns(found["other"])
        said, effect = judge(speedup), 1 / statistics.geometric_mean(speedup.values())
        if said == word or time.monotonic() > end:
            break
    good = said == word and abs(effect - factor) <= EFFECT_TOLERANCE
    name = "identical twin" if factor == 1 else f"twin with {factor - 1:.0%} more work"
    return Check(
        name,
        f"{word}, {factor:g}x the time",
        f"{said}, {effect:.3f}x, {len(speedup)} launches",
        passed(good),
    )


def checksum(factor: float) -> Timed:
    """Work proportional to ``factor``."""
    data = memoryview(bytes(round(TWIN_BYTES * factor)))
    return Work(lambda: zlib.crc32(data))
