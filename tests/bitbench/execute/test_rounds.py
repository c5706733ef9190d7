"""The schedule of two sides: whole calls, the budget, mirrored turns."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from bitbench.execute.rounds import STEP, common, schedule
from bitbench.measure.clock import Budget

BUDGET = Budget(seconds=0.06)
CALLS = st.integers(min_value=1, max_value=10**10)
SLOWDOWNS = st.sampled_from([0.0, 0.01, 0.05, 0.07, 0.1, 0.125, 0.25, 1.0])


@given(CALLS, st.none() | st.integers(1, 5000), st.none() | st.integers(1, 64), SLOWDOWNS)
def test_every_schedule_keeps_the_promises(
    call_ns: int, limit: int | None, fixed: int | None, slowdown: float
) -> None:
    if limit is not None and fixed is not None:
        fixed = min(fixed, limit)
    found = schedule(call_ns, BUDGET, limit=limit, fixed=fixed, slowdown=slowdown)
    if found is None:
        assert slowdown > 0
        return
    assert found.rounds >= 2
    assert found.rounds % 2 == 0
    assert found.rounds <= BUDGET.max_rounds
    assert found.calls >= 1
    assert found.blocks >= 1
    assert found.rounds * found.blocks <= BUDGET.max_blocks
    more = Fraction(slowdown).limit_denominator(1000) * found.calls
    assert more.denominator == 1  # a part of a call cannot be made
    if limit is not None:
        assert found.calls * (1 + slowdown) <= limit + 1e-9
    if fixed is not None:
        assert found.calls == fixed or limit is not None


@given(st.integers(1_000, 1_500_000), SLOWDOWNS)
def test_short_calls_fill_the_budget_in_steps_of_twenty(call_ns: int, slowdown: float) -> None:
    found = schedule(call_ns, BUDGET, slowdown=slowdown if slowdown in (0.0, 0.05, 0.1) else 0.0)
    assert found is not None
    assert found.calls % STEP == 0
    spent = found.rounds * found.blocks * found.calls * call_ns / 1e9
    assert 0.5 * BUDGET.seconds <= spent <= 1.7 * BUDGET.seconds
    assert found.calls * call_ns >= BUDGET.block_ns / 2


def test_long_calls_are_not_multiplied() -> None:
    found = schedule(2_000_000_000, BUDGET)
    assert found is not None
    assert (found.rounds, found.calls, found.blocks, found.stop) == (2, 1, 1, "blocks")


def test_a_slowdown_is_worth_its_time() -> None:
    found = schedule(20_000_000, BUDGET, slowdown=0.1)
    assert found is not None
    assert (found.rounds, found.calls, found.blocks) == (2, 20, 1)


def test_a_limit_without_room_for_the_slowdown_is_told() -> None:
    assert schedule(1_000_000, BUDGET, limit=21, slowdown=0.1) is None
    assert schedule(1_000_000, BUDGET, fixed=8, slowdown=0.1) is None
    found = schedule(1_000_000, BUDGET, limit=22, slowdown=0.1)
    assert found is not None
    assert found.calls == 20
    assert found.stop == "calls"


def test_both_sides_do_what_the_slower_one_has_time_for() -> None:
    slow = {"call_ns": 2_000_000, "max_calls": 60, "block_calls": None, "seconds": 0.2}
    fast = {"call_ns": 10_000, "max_calls": None, "block_calls": None, "seconds": None}
    found = common([slow, fast], BUDGET)
    assert found == common([fast, slow], BUDGET)
    assert found is not None
    assert (found.rounds, found.calls, found.blocks) == (4, 20, 1)
    assert common([fast], BUDGET) == schedule(10_000, BUDGET)
    bound = {**fast, "block_calls": 7}
    assert common([bound, bound], BUDGET, slowdown=0.1) is None
