from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.measure.clock import Budget
from bitbench.measure.timers import ClockFault
from bitbench.measure.warmup import MAX_BLOCKS, TOLERANCE, settle, warm_up


class FakeTimer:
    name = "fake"

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def block(self, call: Callable[[], Any], calls: int) -> int:
        self.blocks.append(calls)
        return sum(call() for _ in range(calls))


class FakeSubject:
    """Each call takes the next of ``times`` nanoseconds, then ``ns``."""

    def __init__(self, ns: int, times: Iterable[int] = (), max_calls: int | None = None) -> None:
        self.max_calls = max_calls
        self._times = chain(times, repeat(ns))

    def reset(self) -> None:
        return

    def call(self) -> int:
        return next(self._times)


def test_the_block_doubles_until_it_is_long_enough() -> None:
    timer = FakeTimer()
    assert warm_up(FakeSubject(300), timer, Budget(block_ns=10_000)) == 300
    # The first call, then up to the first power of two with 64 x 300 ns >= 10 us, and that again.
    assert timer.blocks == [1, 1, 2, 4, 8, 16, 32, 64, 64]


def test_one_interrupted_block_does_not_end_it() -> None:
    timer = FakeTimer()
    assert warm_up(FakeSubject(300, iter([300, 2_000_000])), timer, Budget()) == 300
    assert timer.blocks[-1] == 4096  # the first power of two with 4096 x 300 ns >= 1 ms


def test_it_goes_on_until_two_blocks_agree() -> None:
    timer = FakeTimer()
    # Blocks of one call of 10, 8, 5, 2, 2 ms: a clock that speeds up, or a cache that fills.
    falling = iter([12_000_000, 10_000_000, 8_000_000, 5_000_000, 2_000_000, 2_000_000])
    warmth = settle(FakeSubject(2_000_000, falling), timer, Budget())
    assert (warmth.ended, warmth.call_ns, warmth.change) == ("steady", 2_000_000, 0)
    assert len(timer.blocks) == 6
    assert warmth.note == ""


def test_it_gives_up_on_a_restless_layer_and_says_so() -> None:
    restless = chain.from_iterable(repeat((1_000_000, 1_500_000)))
    warmth = settle(FakeSubject(1, restless), FakeTimer(), Budget(seconds=1))
    assert warmth.ended == "blocks"
    assert warmth.change == pytest.approx(0.5)
    assert warmth.note == "not steady after warm-up: the last two blocks differed by 50%"


def test_long_calls_are_warmed_for_part_of_their_time_only() -> None:
    timer = FakeTimer()
    warmth = settle(FakeSubject(50_000_000), timer, Budget(seconds=0.15))
    assert (warmth.ended, warmth.note) == ("seconds", "")
    assert sum(timer.blocks) == 2
    timer = FakeTimer()
    assert settle(FakeSubject(400_000_000), timer, Budget(seconds=0.15)).call_ns == 400_000_000
    assert timer.blocks == [1], "a call longer than the whole budget is made once"


@given(
    st.integers(1, 10**8),
    st.lists(st.integers(1, 10**8), max_size=40),
    st.one_of(st.none(), st.integers(1, 64)),
)
def test_it_always_ends_within_its_bounds(ns: int, times: list[int], limit: int | None) -> None:
    timer = FakeTimer()
    warmth = settle(FakeSubject(ns, iter(times), limit), timer, Budget(block_ns=10_000))
    assert warmth.call_ns >= 1
    assert limit is None or max(timer.blocks) <= limit
    longest = max(timer.blocks)
    assert timer.blocks.count(longest) <= MAX_BLOCKS + 2
    assert (warmth.ended == "steady") == (warmth.change is not None and warmth.change <= TOLERANCE)


@pytest.mark.parametrize("ns", [0, -1])
def test_a_clock_that_does_not_move_forward_ends_it(ns: int) -> None:
    with pytest.raises(ClockFault, match=f"a block of 1 call took {ns} ns by fake"):
        settle(FakeSubject(ns), FakeTimer(), Budget())


def test_calls_below_a_nanosecond_are_not_believed() -> None:
    class Rushing(FakeTimer):
        def block(self, call: Callable[[], Any], calls: int) -> int:
            return 1

    with pytest.raises(ClockFault, match="4 calls took 1 ns, less than a nanosecond each"):
        settle(FakeSubject(1, max_calls=4), Rushing(), Budget())


def test_blocks_are_multiples_of_what_the_timer_holds() -> None:
    timer = FakeTimer()
    assert settle(FakeSubject(300), timer, Budget(block_ns=50_000), step=27).call_ns == 300
    assert timer.blocks == [27, 27, 54, 108, 216, 216]


def test_blocks_are_no_longer_than_the_timer_takes() -> None:
    timer = FakeTimer()
    warmth = settle(FakeSubject(300), timer, Budget(block_ns=50_000), most=32)
    assert (warmth.call_ns, warmth.ended) == (300, "steady")
    assert max(timer.blocks) == 32


def test_the_time_of_a_call_is_a_part_of_a_block_also_where_one_is_all_there_is() -> None:
    assert settle(FakeSubject(90_000_000), FakeTimer(), Budget(seconds=0.15), step=2).call_ns == 90_000_000
