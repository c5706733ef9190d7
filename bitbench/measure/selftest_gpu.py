"""The part of :mod:`bitbench.measure.selftest` that is about the GPU's timers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from bitbench.measure.selftest import Check, Outcome, Work, call_ns, passed, timed, tried
from bitbench.measure.timers import EventTimer, FlushTimer, Gpu, GraphTimer, Timer, TorchGpu

WAIT_NS = 2_000_000
"""A kernel of this length hides what it costs the host to launch it, some 10 us."""
TOLERANCE = 0.05
CALIBRATION_CYCLES = 1_000_000


def gpu_checks() -> Iterator[Check]:
    """The device's timers against the host's clock, on a kernel that waits for a number of cycles."""
    import torch

    if not torch.cuda.is_available():
        yield Check("GPU timers", "agree with the host", "torch sees no GPU", Outcome.SKIPPED)
        return
    yield from timers_against_host(
        lambda cycles: torch.cuda._sleep(cycles), torch.cuda.synchronize, TorchGpu()
    )


def timers_against_host(
    wait: Callable[[int], None],
    synchronize: Callable[[], None],
    gpu: Gpu,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Iterator[Check]:
    """``wait(cycles)`` queues a kernel of that many cycles, ``synchronize`` waits for the device."""

    def by_host(cycles: int, calls: int = 10) -> float:
        """Nanoseconds of one kernel in a queue of ``calls``."""
        synchronize()
        start = clock()
        for _ in range(calls):
            wait(cycles)
        synchronize()
        return (clock() - start) / calls

    by_host(CALIBRATION_CYCLES)
    cycles = int(CALIBRATION_CYCLES * WAIT_NS / by_host(CALIBRATION_CYCLES))
    # A graph keeps what it has captured, so each length gets timers of its own.
    makers: dict[str, Callable[[], Timer]] = {
        EventTimer.name: lambda: EventTimer(gpu),
        FlushTimer.name: lambda: FlushTimer(gpu),
        GraphTimer.name: lambda: GraphTimer(gpu),
    }
    for name, make in makers.items():

        def by_device(cycles: int, make: Callable[[], Timer] = make) -> float:
            return call_ns(timed({"wait": Work(lambda: wait(cycles))}, make())["wait"])

        def agreement(name: str = name, by_device: Callable[[int], float] = by_device) -> Check:
            share = by_device(cycles) / by_host(cycles)
            good = abs(share - 1) <= TOLERANCE
            return Check(f"{name} against the host", f"1 ± {TOLERANCE:g}", f"{share:.3f}", passed(good))

        def proportion(name: str = name, by_device: Callable[[int], float] = by_device) -> Check:
            ratio = by_device(2 * cycles) / by_device(cycles)
            good = abs(ratio - 2) <= 2 * TOLERANCE
            return Check(f"{name}, twice the cycles", f"2 ± {2 * TOLERANCE:g}", f"{ratio:.3f}", passed(good))

        yield tried(agreement)
        yield tried(proportion)
