from __future__ import annotations

import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.measure.clock import Budget, Turn, plan, shuffled, time_together, turns
from bitbench.measure.timers import ClockFault
from bitbench.measure.warmup import warm_up
from bitbench.store.schema import MAX_BLOCKS


class FakeTimer:
    """A clock whose blocks take what the subject says: no real time passes."""

    name = "fake"

    def block(self, call: Callable[[], Any], calls: int) -> int:
        return sum(call() for _ in range(calls))


class FakeSubject:
    def __init__(self, ns: int, max_calls: int | None = None) -> None:
        self.ns = ns
        self.max_calls = max_calls
        self.since_reset = 0
        self.most = 0
        self.collecting: set[bool] = set()

    def reset(self) -> None:
        self.since_reset = 0

    def call(self) -> int:
        self.since_reset += 1
        self.most = max(self.most, self.since_reset)
        self.collecting.add(gc.isenabled())
        return self.ns


def test_turns_are_mirrored_and_rotated() -> None:
    assert turns("ABC", 4, start=1) == list("BCAACBCABBAC")


@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 6))
def test_turns_balance_every_layer(count: int, pairs: int, start: int) -> None:
    names = [chr(65 + i) for i in range(count)]
    order = turns(names, 2 * pairs, start % count)
    for pair in range(pairs):
        block = order[2 * count * pair : 2 * count * (pair + 1)]
        assert block == block[::-1]
        # A linear drift cancels: mean position of every layer within a pair is the same.
        places = {n: [i for i, x in enumerate(block) if x == n] for n in names}
        assert {sum(place) for place in places.values()} == {2 * count - 1}
    # Rotation: over `count` pairs every layer comes first.
    if pairs >= count:
        assert {order[2 * count * pair] for pair in range(count)} == set(names)


def test_shuffled_depends_on_the_generator_only() -> None:
    names = list("abcdef")
    assert shuffled(names, random.Random(1)) == shuffled(names, random.Random(1))
    assert len({tuple(shuffled(names, random.Random(i))) for i in range(20)}) > 10
    assert names == list("abcdef")


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 10**9), min_size=1),
    st.one_of(st.none(), st.integers(1, 1000)),
)
def test_plan_keeps_to_its_limits(call_ns: dict[str, int], limit: int | None) -> None:
    budget = Budget()
    rounds, schedule = plan(call_ns, dict.fromkeys(call_ns, limit), budget)
    assert rounds % 2 == 0
    assert 2 <= rounds <= budget.max_rounds
    for name, turn in schedule.items():
        assert turn.calls >= 1
        assert turn.blocks >= 1
        assert rounds * turn.blocks <= MAX_BLOCKS
        if limit is not None:
            assert turn.calls <= limit
        else:
            assert turn.calls * call_ns[name] >= budget.block_ns
        if call_ns[name] < 1_000_000 and limit is None:
            spent = rounds * turn.blocks * turn.calls * call_ns[name]
            assert spent <= 2.1 * max(budget.seconds * 1e9, rounds * budget.block_ns)


def test_slow_layers_do_not_starve_fast_ones_of_blocks() -> None:
    rounds, schedule = plan({"slow": 100_000_000, "fast": 1000}, {"slow": None, "fast": None}, Budget())
    assert rounds == 2
    assert schedule["slow"] == Turn(1, 2, "blocks")
    assert rounds * schedule["fast"].blocks >= 32


def test_calls_between_resets_stay_within_the_limit() -> None:
    subject = FakeSubject(ns=50, max_calls=5)
    call_ns = warm_up(subject, FakeTimer(), Budget())
    series = time_together(
        {"a": subject},
        rng=random.Random(0),
        timer=FakeTimer(),
        budget=Budget(),
        call_ns={"a": call_ns},
        announce=lambda name: None,
    )
    assert subject.most <= 5
    assert series["a"].calls == 5


def test_collector_is_off_in_blocks_and_restored() -> None:
    subjects = {"a": FakeSubject(1000), "b": FakeSubject(2000)}
    announced: list[str] = []
    assert gc.isenabled()
    series = time_together(
        dict(subjects),
        rng=random.Random(0),
        timer=FakeTimer(),
        budget=Budget(seconds=0.004),
        call_ns={"a": 1000, "b": 2000},
        announce=announced.append,
    )
    assert gc.isenabled()
    assert subjects["a"].collecting == {False}
    assert announced[:2] == announced[2:4][::-1]
    for name, subject in subjects.items():
        assert set(series[name].samples_ns) == {series[name].calls * subject.ns}
        assert len(series[name].samples_ns) <= MAX_BLOCKS


def test_start_layer_comes_from_the_generator() -> None:
    firsts = set()
    for seed in range(20):
        announced: list[str] = []
        time_together(
            {name: FakeSubject(1000) for name in "abc"},
            rng=random.Random(seed),
            timer=FakeTimer(),
            budget=Budget(seconds=0.002),
            call_ns=dict.fromkeys("abc", 1000),
            announce=announced.append,
        )
        firsts.add(announced[0])
    assert firsts == set("abc")


def test_collector_is_restored_after_an_error() -> None:
    class Bad(FakeSubject):
        def call(self) -> int:
            return 1 // 0

    with pytest.raises(ZeroDivisionError):
        time_together(
            {"a": Bad(1)},
            rng=random.Random(0),
            timer=FakeTimer(),
            budget=Budget(),
            call_ns={"a": 1},
            announce=lambda name: None,
        )
    assert gc.isenabled()


def test_all_layers_of_a_point_with_fixed_calls_do_the_same() -> None:
    """A decoder's step grows with its past: unequal blocks would compare different steps."""
    subjects = {"slow": FakeSubject(20_000_000, max_calls=8), "fast": FakeSubject(1_000_000, max_calls=8)}
    series = time_together(
        dict(subjects),
        rng=random.Random(0),
        timer=FakeTimer(),
        budget=Budget(seconds=0.3),
        call_ns={"slow": 20_000_000, "fast": 1_000_000},
        announce=lambda name: None,
        fixed={"slow": 8, "fast": 8},
    )
    assert {one.calls for one in series.values()} == {8}
    assert {one.stop for one in series.values()} == {"calls"}
    assert len(series["fast"].samples_ns) > len(series["slow"].samples_ns) >= 2


def test_a_single_layer_takes_turns_with_itself() -> None:
    announced: list[str] = []
    series = time_together(
        {"a": FakeSubject(1_000_000)},
        rng=random.Random(0),
        timer=FakeTimer(),
        budget=Budget(seconds=0.02),
        call_ns={"a": 1_000_000},
        announce=announced.append,
    )
    assert len(announced) == 10, "as many turns as in company"
    assert len(series["a"].samples_ns) == 20


@pytest.mark.parametrize("tick", [0, -5])
def test_a_clock_that_stands_still_or_runs_backwards_is_found_out(tick: int) -> None:
    class Broken(FakeTimer):
        name = "broken"

        def block(self, call: Callable[[], Any], calls: int) -> int:
            return tick

    with pytest.raises(ClockFault, match=rf"took {tick} ns by broken: the clock stood still or ran"):
        time_together(
            {"a": FakeSubject(1000)},
            rng=random.Random(0),
            timer=Broken(),
            budget=Budget(),
            call_ns={"a": 1000},
            announce=lambda name: None,
        )
    assert gc.isenabled()


def test_a_layer_may_have_a_timer_of_its_own() -> None:
    class Other(FakeTimer):
        name = "other"

    series = time_together(
        {"a": FakeSubject(1000), "b": FakeSubject(1000)},
        rng=random.Random(0),
        timer=FakeTimer(),
        budget=Budget(seconds=0.002),
        call_ns={"a": 1000, "b": 1000},
        announce=lambda name: None,
        timers={"b": Other()},
    )
    assert {name: one.timer for name, one in series.items()} == {"a": "fake", "b": "other"}


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 10**8), min_size=1), st.integers(1, 600))
def test_blocks_hold_whole_graphs(call_ns: dict[str, int], step: int) -> None:
    budget = Budget()
    rounds, schedule = plan(call_ns, dict.fromkeys(call_ns), budget, steps={"a": step})
    for name, turn in schedule.items():
        assert turn.calls % (step if name == "a" else 1) == 0
        assert turn.calls >= 1
        assert rounds * turn.blocks <= MAX_BLOCKS


def test_a_timer_limits_its_own_layer_alone() -> None:
    series = time_together(
        {"cold": FakeSubject(50), "hot": FakeSubject(50)},
        rng=random.Random(0),
        timer=FakeTimer(),
        budget=Budget(seconds=0.01),
        call_ns={"cold": 50, "hot": 50},
        announce=lambda name: None,
        most={"cold": 32, "hot": None},
    )
    assert (series["cold"].calls, series["cold"].stop) == (32, "calls")
    assert series["hot"].calls > 1000
