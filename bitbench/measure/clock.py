"""The clock: times the layers of one point side by side. Torch-free.

Two layers timed one after the other differ by whatever the machine did in between, so all layers
of a point take turns. Turns are mirrored (A B C, then C B A), which cancels a linear drift, and
each mirrored pair starts with another layer (rotation), so that no layer always follows the same
neighbour. Build order and starting layer come from the launch's seed: a fixed order alone makes a
layer differ from itself by 1-4 %.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from bitbench.measure import cputime
from bitbench.measure.cputime import Use
from bitbench.measure.timers import Timer, measured
from bitbench.store.schema import MAX_BLOCKS

Stop = Literal["seconds", "blocks", "calls"]
"""Why a layer got the blocks it got; see :class:`Turn`."""

LEAST_CALLS = 2
"""Timed calls of a turn at least: beside its one untimed call, half of a turn would else be lost. It
also gives the slowest layer four blocks in a launch, of which one interrupted does not carry the
median."""

NONE: Mapping[str, Any] = MappingProxyType({})


class Timed(Protocol):
    """What the clock needs of a :class:`bitbench.workloads.base.Subject`."""

    max_calls: int | None

    def reset(self) -> None: ...

    def call(self) -> Any: ...


@dataclass(frozen=True)
class Budget:
    """How long one launch may time one layer of one point."""

    seconds: float = 0.15
    """Timed per layer; a layer whose single call is longer still gets one mirrored pair."""
    block_ns: int = 1_000_000
    """Shortest block (unless ``max_calls`` forbids it): 1 ms is some 10^4 clock ticks, so reading
    the clock costs under 0.01 % of a block."""
    max_blocks: int = MAX_BLOCKS
    max_rounds: int = 16
    """Turns each layer gets at most; blocks beyond that are taken within a turn."""


@dataclass
class Series:
    """What was timed of one layer."""

    calls: int = 1
    samples_ns: list[int] = field(default_factory=list)
    cpu_ns: int = 0
    """Processor time of the process around the timed blocks, all threads."""
    cpu_wall_ns: int = 0
    """Time on the wall between the readings of ``cpu_ns``: a little more than the blocks themselves,
    and on a GPU something else, the host's time instead of the device's."""
    timer: str = ""
    """Name of the timer that served."""
    stop: str = ""
    """Why the clock stopped taking blocks; see :class:`Turn`."""

    def book(self, used: Use) -> None:
        """Add what was used around one block."""
        self.cpu_ns += used.cpu_ns
        self.cpu_wall_ns += used.wall_ns

    def utilisation(self, threads: int) -> float:
        """Processor time / (wall time x threads). Threads that spin while waiting count; above 1,
        the layer had threads at work beyond those it was given. Needs a booked block."""
        return self.cpu_ns / (self.cpu_wall_ns * threads)


@dataclass(frozen=True)
class Turn:
    """What one layer does each time its turn comes: ``blocks`` blocks of ``calls`` calls."""

    calls: int
    blocks: int
    stop: Stop = "seconds"
    """What ends the timing. ``seconds``: the time for the layer is used up. ``blocks``: a call is so
    long that the fewest blocks, a mirrored pair of turns, take more than that. ``calls``: the layer
    itself, or its timer, says how many calls make a block."""


def shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    """A permutation of ``names``, from ``rng``."""
    order = list(names)
    rng.shuffle(order)
    return order


def turns(names: Sequence[str], rounds: int, start: int) -> list[str]:
    """Order of turns: mirrored pairs of rounds, each pair rotated by one more.

    ``turns("ABC", 4, start=1)`` is ``B C A  A C B  C A B  B A C``. ``rounds`` must be even.
    """
    order: list[str] = []
    count = len(names)
    for pair in range(rounds // 2):
        shift = (start + pair) % count
        rotated = [*names[shift:], *names[:shift]]
        order += [*rotated, *reversed(rotated)]
    return order


def plan(
    call_ns: Mapping[str, int],
    limits: Mapping[str, int | None],
    budget: Budget,
    fixed: Mapping[str, int] = NONE,
    steps: Mapping[str, int] = NONE,
) -> tuple[int, dict[str, Turn]]:
    """Rounds, and what each layer does in its turn, to spend ``budget.seconds`` on each layer.

    ``call_ns`` holds the time of one call, ``limits`` the most calls between two resets, ``fixed``
    the calls of a block where the layer leaves no choice, ``steps`` what the calls of a block are a
    multiple of. The number of rounds is common to all layers, even, and set by the slowest; faster
    layers take several blocks a turn, so that each has enough blocks for a median.
    """
    least = {name: fixed.get(name) or steps.get(name, 1) for name in call_ns}
    block_of = {name: max(one * least[name], budget.block_ns) for name, one in call_ns.items()}
    # The longest of the shortest turns.
    slowest = max(
        max(block_of[name], one * (fixed.get(name) or max(LEAST_CALLS, least[name])))
        for name, one in call_ns.items()
    )
    rounds = max(2, min(budget.max_rounds, int(budget.seconds * 1e9 // slowest)) // 2 * 2)
    turn_ns = budget.seconds * 1e9 / rounds
    schedule = {}
    for name, one in call_ns.items():
        blocks = max(1, min(budget.max_blocks // rounds, int(turn_ns // block_of[name])))
        wanted = max(1, int(turn_ns / blocks // one), -(-budget.block_ns // one))
        calls = fixed.get(name) or -(-wanted // least[name]) * least[name]
        limit = limits[name]
        stop: Stop = "calls" if name in fixed or (limit is not None and limit < calls) else "seconds"
        if limit is not None:
            calls = max(1, min(calls, limit))
        if calls * blocks < LEAST_CALLS:
            blocks = LEAST_CALLS
            stop = "blocks" if one * blocks > turn_ns and stop == "seconds" else stop
        schedule[name] = Turn(calls, blocks, stop)
    return rounds, schedule


def take_turn(subject: Timed, timer: Timer, turn: Turn, series: Series) -> None:
    """One turn of a layer; its blocks are added to ``series``.

    It starts with one untimed call, which brings the layer's own data back after its neighbour's
    turn.

    Raises:
        ClockFault: a block took no time, or less.
    """
    series.timer, series.stop = timer.name, turn.stop
    subject.reset()
    subject.call()
    for _ in range(turn.blocks):
        subject.reset()
        before = cputime.now()
        duration = measured(timer, subject.call, turn.calls)
        series.book(cputime.now().since(before))
        series.samples_ns.append(duration)


def time_together(
    subjects: dict[str, Timed],
    *,
    rng: random.Random,
    timer: Timer,
    budget: Budget,
    call_ns: dict[str, int],
    announce: Callable[[str], None],
    timers: Mapping[str, Timer] = NONE,
    fixed: Mapping[str, int] = NONE,
    steps: Mapping[str, int] = NONE,
    most: Mapping[str, int | None] = NONE,
) -> dict[str, Series]:
    """Time all ``subjects`` of a point in mirrored and rotated turns.

    ``call_ns`` comes from :func:`bitbench.measure.warmup.settle`, ``timers`` holds those of layers
    that have one of their own, ``fixed`` and ``steps`` are as for :func:`plan`, ``most`` the most calls
    of a block that a layer's timer takes. ``announce(name)`` is called before each turn, untimed. The
    garbage collector is off meanwhile.

    Raises:
        ClockFault: a block took no time, or less.
    """
    limits = {name: _least(subject.max_calls, most.get(name)) for name, subject in subjects.items()}
    rounds, schedule = plan(call_ns, limits, budget, fixed, steps)
    series = {name: Series(calls=turn.calls) for name, turn in schedule.items()}
    names = list(subjects)
    order = turns(names, rounds, rng.randrange(len(names)))
    with collector_off():
        for name in order:
            announce(name)
            take_turn(subjects[name], timers.get(name, timer), schedule[name], series[name])
    return series


def _least(*limits: int | None) -> int | None:
    """The least of those that are there."""
    return min((limit for limit in limits if limit is not None), default=None)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside, one before."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
