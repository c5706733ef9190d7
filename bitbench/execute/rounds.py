"""How often, and how long, two sides take turns at one layer. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from bitbench.measure.clock import Budget, Stop

STEP = 20
"""Calls of a block come in multiples of this where they can, so that 5 % more are whole calls."""


@dataclass(frozen=True)
class Rounds:
    """What both sides do alike."""

    rounds: int
    """Turns of each side; even, so that turns can be mirrored."""
    calls: int
    """Calls in a block."""
    blocks: int
    """Blocks in a turn."""
    stop: Stop
    """Why there are no more (see :class:`bitbench.measure.clock.Turn`)."""


def schedule(
    call_ns: int,
    budget: Budget,
    *,
    limit: int | None = None,
    fixed: int | None = None,
    slowdown: float = 0.0,
) -> Rounds | None:
    """Rounds that spend about ``budget.seconds`` on each side.

    ``call_ns`` is the time of one call of the slower side, ``limit`` the most calls between two
    resets, ``fixed`` the calls of a block where the layer leaves no choice. ``slowdown`` is what one
    side does on top of what is booked, always whole calls; None where that is not possible.
    """
    total_ns = budget.seconds * 1e9
    step = _step(slowdown) if slowdown else STEP
    if not slowdown and 2 * step * call_ns > total_ns:
        step = 1  # long calls: a mirrored pair of blocks of 20 would cost more than the budget
    shortest = max(budget.block_ns, (fixed or step) * call_ns)
    rounds = max(2, min(budget.max_rounds, int(total_ns // shortest)) // 2 * 2)
    turn_ns = total_ns / rounds
    blocks = max(1, min(budget.max_blocks // rounds, int(turn_ns // shortest)))
    stop: Stop = "blocks" if shortest > turn_ns else "seconds"
    if fixed is not None:
        calls, stop = fixed, "calls"
    else:
        wanted = max(math.ceil(budget.block_ns / call_ns), int(turn_ns / blocks / call_ns))
        calls = max(1, round(wanted / step)) * step
    most = None if limit is None else int(limit / (1 + slowdown))
    if most is not None and calls > most:
        calls, stop = most // step * step or most, "calls"
    if calls < 1 or (slowdown and not _whole(calls * slowdown)):
        return None
    return Rounds(rounds, calls, blocks, stop)


def common(sides: Sequence[Mapping[str, Any]], budget: Budget, slowdown: float = 0.0) -> Rounds | None:
    """:func:`schedule` for what each side said of the layer when it opened it: ``call_ns``,
    ``max_calls``, ``block_calls`` and ``seconds`` (see :class:`bitbench.workloads.base.Subject`)."""
    limits = [side["max_calls"] for side in sides if side["max_calls"] is not None]
    wishes = [side["seconds"] for side in sides if side["seconds"] is not None]
    return schedule(
        max(side["call_ns"] for side in sides),
        replace(budget, seconds=max([budget.seconds, *wishes])),
        limit=min(limits, default=None),
        fixed=sides[0]["block_calls"],
        slowdown=slowdown,
    )


def _step(slowdown: float) -> int:
    """Fewest calls, in multiples of :data:`STEP`, of which ``slowdown`` (to 0.1 %) is a whole number."""
    return math.lcm(STEP, Fraction(slowdown).limit_denominator(1000).denominator)


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6
