"""Timing one benchmark in one launch, and the machine it ran on. Torch is used where the test loaded it."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bitbench.analysis.statistics import launch_latency
from bitbench.measure import environment, host
from bitbench.measure.clock import Budget, Timed, shuffled, time_together
from bitbench.measure.timers import CpuTimer, EventTimer, Timer, TorchGpu
from bitbench.measure.warmup import settle
from bitbench.pytest_plugin.pair import BASELINE, TARGET, Pair
from bitbench.pytest_plugin.records import Launched, Measured, measured
from bitbench.store.figures import machine_of

PARTS = 16
"""Parts of a result that are looked at: what an operator returns has a few, a list of numbers has many."""


class _Subject:
    """One side, as the clock wants it."""

    max_calls: int | None = None

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def reset(self) -> None:
        """The same call each time: nothing to put back."""


def time_pair(
    pair: Pair, *, launch: int, rng: random.Random, seconds: float | None, beside: Sequence[str] = ()
) -> tuple[Any, Measured]:
    """Build, check and time ``pair``; the target's result and what was measured.

    Both sides are built in an order drawn from ``rng`` and timed in mirrored turns for ``seconds``
    each (None: the clock's own default). ``beside``: other processes at work when the launch began.

    AssertionError where the target's result is wrong before or after timing, RuntimeError where
    another kernel serves after it than before.
    """
    built = pair.build(shuffled(pair.sides, rng))
    result = built.calls[TARGET]()
    before = built.facts()
    built.verify(result)
    device = device_of(result)
    timer: Timer = EventTimer(TorchGpu()) if device == "cuda" else CpuTimer()
    budget = Budget() if seconds is None else Budget(seconds=seconds)
    subjects: dict[str, Timed] = {side: _Subject(built.calls[side]) for side in pair.sides}
    with _untraced():
        warmth = {side: settle(subject, timer, budget) for side, subject in subjects.items()}
        series = time_together(
            subjects,
            rng=rng,
            timer=timer,
            budget=budget,
            call_ns={side: found.call_ns for side, found in warmth.items()},
            announce=_ignore,
        )
    result = built.calls[TARGET]()
    after = built.facts()
    built.verify(result)
    if after.kernel != before.kernel:
        raise RuntimeError(f"kernel {before.kernel!r} served before timing, {after.kernel!r} after it")
    latency = {side: launch_latency(found.samples_ns, found.calls) for side, found in series.items()}
    launched = Launched(
        launch=launch,
        seconds=latency[TARGET],
        calls=series[TARGET].calls,
        baseline_seconds=latency.get(BASELINE),
        first=next(iter(built.calls)),
        beside=list(beside),
        notes=[f"{side}: {found.note}" for side, found in warmth.items() if found.note],
    )
    return result, measured(
        [launched], kernel=after.kernel, timer=timer.name, machine=machine(device), exact=after.exact
    )


def device_of(result: Any) -> str:
    """``cuda`` where the result, or one of its items, values or attributes, lies on such a device, as
    torch's and other libraries' arrays say."""
    if isinstance(result, Mapping):
        parts: Iterable[Any] = result.values()
    elif isinstance(result, (tuple, list)):
        parts = result
    else:
        parts = getattr(result, "__dict__", {}).values()
    return "cuda" if any(_on_cuda(part) for part in (result, *itertools.islice(parts, PARTS))) else "cpu"


def _on_cuda(array: Any) -> bool:
    device = getattr(array, "device", None)
    kind = getattr(device, "type", None) or str(device).partition(":")[0].lower()
    return bool(kind == "cuda")


def machine(device: str) -> dict[str, Any]:
    """What times depend on in this process, now."""
    torch = sys.modules.get("torch")
    capabilities = getattr(sys.modules.get("impl"), "capabilities", None)
    facts = {
        "cpu": _cpu(),
        "gpus": _gpus(),
        "device": device,
        "torch": {} if torch is None else {"version": str(torch.__version__)},
    }
    isa = "" if capabilities is None else capabilities().isa or ""
    return machine_of(facts, _threads(), {"isa": isa})


def _threads() -> int:
    """Threads that torch uses; without torch, those that numerical libraries start by default."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() else host.physical_cores()


@functools.cache
def _cpu() -> dict[str, Any]:
    return environment.cpu()


@functools.cache
def _gpus() -> list[dict[str, Any]]:
    return environment.gpus()


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """No tracer and no profiler inside: they would time themselves."""
    tracer, profiler = sys.gettrace(), sys.getprofile()
    sys.settrace(None)
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        sys.setprofile(profiler)


def _ignore(side: str) -> None:
    """Nobody listens to whose turn it is."""
