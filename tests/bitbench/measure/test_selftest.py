"""The self-test on clocks and timers of our own making: it passes right ones and fails wrong ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from bitbench.cli.selftest import word
from bitbench.measure import selftest, selftest_memory
from bitbench.measure.clock import Timed
from bitbench.measure.cputime import Use
from bitbench.measure.selftest import Check, Outcome, Work


class Clock:
    """Advances by ``step`` nanoseconds at each reading, and when told to."""

    def __init__(self, step: int = 10) -> None:
        self.now, self._step = 0, step

    def __call__(self) -> int:
        self.now += self._step
        return self.now

    def pass_(self, ns: float) -> None:
        self.now += round(ns)


class FakeTimer:
    """Measures by ``clock``; ``wrong`` is what it makes of the truth."""

    name = "fake"

    def __init__(
        self, clock: Clock, *, each_ns: float = 0.0, wrong: Callable[[float], float] = float
    ) -> None:
        self._clock, self._each_ns, self._wrong = clock, each_ns, wrong

    def block(self, call: Callable[[], Any], calls: int) -> int:
        start = self._clock()
        for _ in range(calls):
            call()
            self._clock.pass_(self._each_ns)
        return round(self._wrong(self._clock() - start))


@pytest.mark.parametrize("ns", selftest.SPINS_NS)
@pytest.mark.parametrize(
    ("factor", "outcome"),
    [(1.0, Outcome.PASS), (1.05, Outcome.FAIL), (0.99, Outcome.FAIL), (2.0, Outcome.FAIL)],
)
def test_a_timer_that_is_wrong_by_a_factor_is_found_out(ns: int, factor: float, outcome: Outcome) -> None:
    clock = Clock(step=100)
    timer = FakeTimer(clock, wrong=lambda ns: ns * factor)
    assert selftest.duration(ns, timer, clock).outcome is outcome


@pytest.mark.parametrize(("each_ns", "outcome"), [(30.0, Outcome.PASS), (5000.0, Outcome.FAIL)])
def test_the_cost_of_a_call(each_ns: float, outcome: Outcome) -> None:
    found = selftest.empty_call(FakeTimer(Clock(), each_ns=each_ns))
    assert found.outcome is outcome
    assert f"{each_ns:.0f} ns" in found.measured


def steps(*differences: int) -> Callable[[], int]:
    waiting, now = list(differences), 1000

    def clock() -> int:
        nonlocal now
        now += waiting.pop(0)
        return now

    return clock


@pytest.mark.parametrize(
    ("differences", "outcome"),
    [
        ((0, 30, 0, 40, 30), Outcome.PASS),
        ((0, 30, -1, 40, 30), Outcome.FAIL),  # backwards
        ((0, 10_000, 0, 0, 10_000), Outcome.FAIL),  # coarse
        ((0, 0, 0, 0, 0), Outcome.FAIL),  # stands still
    ],
)
def test_steps_of_a_clock(differences: tuple[int, ...], outcome: Outcome) -> None:
    assert selftest.clock_steps(steps(*differences), len(differences)).outcome is outcome


@pytest.mark.parametrize(
    ("rate", "outcome"), [(1.0, Outcome.PASS), (1.0005, Outcome.PASS), (0.99, Outcome.FAIL)]
)
def test_two_clocks_at_different_rates(rate: float, outcome: Outcome) -> None:
    clock = Clock(step=100_000)
    assert selftest.clock_rates(clock, lambda: round(clock.now * rate)).outcome is outcome


def test_a_processor_clock_that_lags_by_ticks_is_found_out() -> None:
    wall = 0

    def lagging() -> Use:
        nonlocal wall
        wall += 2_000_000
        return Use(wall, wall // 4_000_000 * 4_000_000)

    def right() -> Use:
        nonlocal wall
        wall += 2_000_000
        return Use(wall, wall)

    assert selftest.helper_threads(lagging).outcome is Outcome.FAIL
    assert selftest.helper_threads(right).outcome is Outcome.PASS


def scattered(clock: Clock, spread: float = 0.002) -> Callable[[float], Timed]:
    rng = random.Random(5)

    def work(factor: float) -> Timed:
        return Work(lambda: clock.pass_(40_000 * factor * math.exp(rng.gauss(0, spread))))

    return work


@pytest.fixture
def few_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "TWIN_LAUNCHES", (4, 6))
    monkeypatch.setattr(selftest, "TWIN_SECONDS", 1e9)  # of this machine's time, which is not the fake's


@pytest.mark.usefixtures("few_launches")
@pytest.mark.parametrize(("factor", "expected"), [(1.0, "same"), (selftest.SLOWER, "slower")])
def test_twins_are_told_apart_by_the_verdicts_of_a_suite(factor: float, expected: str) -> None:
    clock = Clock()
    found = selftest.twins(factor, expected, word, FakeTimer(clock), scattered(clock))
    assert found.outcome is Outcome.PASS
    assert found.measured.startswith(expected)
    wrong = selftest.twins(1.1 if factor == 1 else 1.0, expected, word, FakeTimer(clock), scattered(clock))
    assert wrong.outcome is Outcome.FAIL, "the other twin"


def test_a_busy_machine_ends_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "TWIN_LAUNCHES", (3, 9))
    monkeypatch.setattr(selftest, "TWIN_SECONDS", 0.0)
    clock = Clock()
    found = selftest.twins(1.1, "slower", lambda speedup: "inconclusive", FakeTimer(clock), scattered(clock))
    assert found.outcome is Outcome.FAIL
    assert "3 launches" in found.measured


@pytest.mark.usefixtures("few_launches")
def test_a_blind_verdict_and_a_bent_timer_are_found_out() -> None:
    def blind(speedup: Mapping[int, float]) -> str:
        return "same"

    clock = Clock()
    found = selftest.twins(selftest.SLOWER, "slower", blind, FakeTimer(clock), scattered(clock))
    assert found.outcome is Outcome.FAIL
    assert f"{selftest.TWIN_LAUNCHES[-1]} launches" in found.measured
    bent = FakeTimer(clock, wrong=lambda ns: 1000 * ns**0.5)
    found = selftest.twins(selftest.SLOWER, "slower", word, bent, scattered(clock))
    assert found.outcome is Outcome.FAIL, "slower, but not by a tenth"


def test_the_first_try_that_passes_counts() -> None:
    outcomes = [Outcome.FAIL, Outcome.PASS]
    assert selftest.tried(lambda: Check("x", "", "", outcomes.pop(0))).tries == 2
    failing = selftest.tried(lambda: Check("x", "", "", Outcome.FAIL))
    assert (failing.outcome, failing.tries) == (Outcome.FAIL, selftest.TRIES)


def test_bytes_of_known_tensors() -> None:
    for check in (selftest_memory.layer_bytes, selftest_memory.slack_bytes, selftest_memory.saved_bytes):
        assert check().outcome is Outcome.PASS


def test_a_ledger_that_is_wrong_is_found_out() -> None:
    from bitbench.measure.memory import ledger

    def forgets_the_bias(module: Any) -> dict[str, int]:
        return ledger(module) | {"bias": 0}

    def forgets_what_a_view_hides(module: Any) -> dict[str, int]:
        return ledger(module) | {"slack": 0, "layer": 10}

    assert selftest_memory.layer_bytes(forgets_the_bias).outcome is Outcome.FAIL
    assert selftest_memory.slack_bytes(forgets_what_a_view_hides).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("mib", "outcome"), [(64, Outcome.PASS), (65, Outcome.PASS), (32, Outcome.FAIL), (None, Outcome.SKIPPED)]
)
def test_peak_of_a_known_allocation(mib: int | None, outcome: Outcome) -> None:
    found = selftest_memory.peak_bytes(lambda call: None if mib is None else mib * 1024**2)
    assert found.outcome is outcome
