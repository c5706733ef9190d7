"""Warm-up to a steady state, and the time of one call to plan with. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitbench.measure.clock import Budget, Timed
from bitbench.measure.timers import ClockFault, Timer, measured

TOLERANCE = 0.1
"""Two successive blocks this close are steady. Blocks of a millisecond differ by some per cent on any
machine that does other things too; what warming up changes (page faults, code caches, thread pools,
clocks) is a multiple of that."""

MAX_BLOCKS = 10
"""Blocks of full length that are waited for two like ones."""

SHARE = 0.5
"""Warming up may take this part of the time that a layer is timed for."""

Ended = Literal["steady", "blocks", "seconds"]


@dataclass(frozen=True)
class Warmth:
    """How warming up went."""

    call_ns: int
    """Nanoseconds of one call, at least 1."""
    ended: Ended
    """``steady``: two successive blocks agreed. Else what ran out first: ``blocks`` or ``seconds``."""
    change: float | None = None
    """How far the last two blocks were apart, as a part of the shorter; None where there was one."""

    @property
    def note(self) -> str:
        """What a reader should know of it, or nothing. Calls so long that they leave no time for a
        second block are the rule; two blocks that differ are not."""
        if self.ended == "steady" or self.change is None or self.change <= TOLERANCE:
            return ""
        return f"not steady after warm-up: the last two blocks differed by {self.change:.0%}"


def warm_up(subject: Timed, timer: Timer, budget: Budget) -> int:
    """Call until warm; the nanoseconds of one call. See :func:`settle`."""
    return settle(subject, timer, budget).call_ns


def settle(subject: Timed, timer: Timer, budget: Budget, *, step: int = 1, most: int | None = None) -> Warmth:
    """Call until two successive blocks take the same time.

    Blocks are of ``step`` calls, doubled as often as they need, and of no more than ``most``: what suits
    the timer, beside what the subject itself allows.

    The block doubles until it is long enough for the clock. A block may owe its length to an
    interruption, which would leave every timed block too short, so it has to be long enough twice.
    Blocks of that size are repeated until two in succession agree within :data:`TOLERANCE`, or
    until :data:`MAX_BLOCKS` of them or :data:`SHARE` of the budget's time are used up.

    Raises:
        ClockFault: a block took no time, or less.
    """
    spent = 0

    def block(calls: int) -> int:
        nonlocal spent
        subject.reset()
        duration = measured(timer, subject.call, calls)
        spent += duration
        return duration

    first = block(step)
    if first >= budget.seconds * 1e9:
        # Each turn starts with an untimed call anyway; another one here would be a third of the launch.
        return Warmth(_of_one(first, step), "seconds")
    limits = [limit for limit in (subject.max_calls, most) if limit is not None]
    calls, repeats = step, 0
    last = block(calls)
    change: float | None = None
    while True:
        may_double = all(2 * calls <= limit for limit in limits)
        if last < budget.block_ns and may_double:
            calls *= 2
            last = block(calls)
            continue
        if repeats >= MAX_BLOCKS:
            return Warmth(_of_one(last, calls), "blocks", change)
        if spent >= SHARE * budget.seconds * 1e9 and last >= budget.block_ns:
            return Warmth(_of_one(last, calls), "seconds", change)
        before, last = last, block(calls)
        repeats += 1
        if last < budget.block_ns and may_double:
            continue
        change = abs(last - before) / min(last, before)
        if change <= TOLERANCE:
            return Warmth(_of_one(min(last, before), calls), "steady", change)


def _of_one(duration: int, calls: int) -> int:
    one = duration // calls
    if one < 1:
        raise ClockFault(f"{calls} calls took {duration} ns, less than a nanosecond each")
    return one
