"""The clock: times the layers of one point side by side. Torch-free.

Two layers timed one after the other differ by whatever the machine did in between, so all layers
of a point take turns. Turns are mirrored (A B C, then C B A), which cancels a linear drift, and
each mirrored pair starts with another layer (rotation), so that no layer always follows the same
neighbour. Build order and starting layer come from the launch's seed: a fixed order alone makes a
layer differ from itself by 1-4 %.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bitbench.store.schema import MAX_BLOCKS


class Timer(Protocol):
    """Measures a block of calls."""

    def block(self, call: Callable[[], Any], calls: int) -> int:
        """Nanoseconds ``calls`` successive calls took."""
        ...


class CpuTimer:
    """The monotonic clock of the process."""

    def block(self, call: Callable[[], Any], calls: int) -> int:
        clock = time.perf_counter_ns
        repeat = range(calls)
        start = clock()
        for _ in repeat:
            call()
        return clock() - start


class CudaTimer:
    """CUDA events on the current stream: time on the device, without the host's synchronise."""

    def block(self, call: Callable[[], Any], calls: int) -> int:
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return int(start.elapsed_time(end) * 1e6)


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
    """Processor time of the process over the timed blocks, all threads."""

    def utilisation(self, threads: int) -> float:
        """Processor time / (wall time x threads). Threads that spin while waiting count."""
        return self.cpu_ns / (sum(self.samples_ns) * threads)


@dataclass(frozen=True)
class Turn:
    """What one layer does each time its turn comes: ``blocks`` blocks of ``calls`` calls."""

    calls: int
    blocks: int


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


def warm_up(subject: Timed, timer: Timer, budget: Budget) -> int:
    """Call until warm; returns the calibrated nanoseconds of one call (at least 1).

    First calls pay for page faults, code caches and thread pools. The block doubles until it is
    long enough for the clock, so the last, longest block is the one believed. A block that is
    barely long enough may owe that to an interruption, which would leave every timed block too
    short, so it has to be long enough twice.
    """
    subject.reset()
    timer.block(subject.call, 1)
    calls = 1
    while True:
        subject.reset()
        duration = timer.block(subject.call, calls)
        if budget.block_ns <= duration < budget.seconds * 1e9:
            subject.reset()
            duration = min(duration, timer.block(subject.call, calls))
        limit = subject.max_calls
        if duration >= budget.block_ns or (limit is not None and 2 * calls > limit):
            return max(1, duration // calls)
        calls *= 2


def plan(
    call_ns: dict[str, int], limits: dict[str, int | None], budget: Budget
) -> tuple[int, dict[str, Turn]]:
    """Rounds, and what each layer does in its turn, to spend ``budget.seconds`` on each layer.

    ``call_ns`` holds the time of one call, ``limits`` the most calls between two resets. The
    number of rounds is common to all layers, even, and set by the slowest; faster layers take
    several blocks a turn, so that each has enough blocks for a median.
    """
    slowest = max([*call_ns.values(), budget.block_ns])
    rounds = max(2, min(budget.max_rounds, int(budget.seconds * 1e9 // slowest)) // 2 * 2)
    turn_ns = budget.seconds * 1e9 / rounds
    schedule = {}
    for name, one in call_ns.items():
        blocks = max(1, min(budget.max_blocks // rounds, int(turn_ns // max(one, budget.block_ns))))
        calls = max(1, int(turn_ns / blocks // one), -(-budget.block_ns // one))
        limit = limits[name]
        schedule[name] = Turn(calls if limit is None else max(1, min(calls, limit)), blocks)
    return rounds, schedule


def time_together(
    subjects: dict[str, Timed],
    *,
    rng: random.Random,
    timer: Timer,
    budget: Budget,
    call_ns: dict[str, int],
    announce: Callable[[str], None],
) -> dict[str, Series]:
    """Time all ``subjects`` of a point in mirrored and rotated turns.

    ``call_ns`` comes from :func:`warm_up`. ``announce(name)`` is called before each turn, untimed.
    Each turn starts with one untimed call, which brings the layer's own data back after its
    neighbour's turn. The garbage collector is off in the timed blocks.
    """
    rounds, schedule = plan(call_ns, {name: s.max_calls for name, s in subjects.items()}, budget)
    series = {name: Series(calls=turn.calls) for name, turn in schedule.items()}
    names = list(subjects)
    order = turns(names, rounds, rng.randrange(len(names)))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for name in order:
            announce(name)
            subject, turn, result = subjects[name], schedule[name], series[name]
            subject.reset()
            subject.call()
            for _ in range(turn.blocks):
                subject.reset()
                cpu = time.process_time_ns()
                duration = timer.block(subject.call, turn.calls)
                result.cpu_ns += time.process_time_ns() - cpu
                result.samples_ns.append(max(1, duration))
    finally:
        if collecting:
            gc.enable()
    return series
