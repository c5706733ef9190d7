"""Figures and remarks over a window of telemetry. Pure functions; no device, no clock."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bitbench.measure.nvml import CHOSEN, GpuState

SETTLE_SECONDS = 1.0
"""NVML's utilisation and power are averages over up to this long. A reading taken sooner after the
start of a window still speaks of what came before it, and is not used."""
ENERGY_SECONDS = 2.0
"""Least span of the energy counter that is believed: it advances in steps of up to 0.1 s, which
over two seconds is 5 %."""
STEAL_PERCENT = 1.0
"""Processor time taken by the hypervisor above which a result says so."""


@dataclass(frozen=True)
class Moment:
    """One reading."""

    at: float
    """Seconds, by the clock of the windows."""
    gpu: GpuState
    foreign: tuple[str, ...] = ()
    steal_percent: float | None = None
    stalled_s: float | None = None
    """Seconds for which the control group's quota has held its processes, since it was made."""


def figures(moments: Sequence[Moment], started: float, ended: float, *, calls: int = 0) -> dict[str, float]:
    """Means of the GPU over ``moments``, which lie between ``started`` and ``ended``, by metric name.

    See :meth:`bitbench.measure.telemetry.Telemetry.over`.

    Notes
    -----
    Power is the rise of the energy counter over time where the counter spans at least
    :data:`ENERGY_SECONDS`, since it misses nothing between two readings; else the mean of the
    power readings. Energy is only ever from the counter.
    """
    settled = [moment.gpu for moment in moments if moment.at >= started + SETTLE_SECONDS]
    found: dict[str, float | None] = {
        "gpu.utilisation": _share(_mean(settled, lambda gpu: gpu.percent)),
        "gpu.memory_utilisation": _share(_mean(settled, lambda gpu: gpu.memory_percent)),
        "gpu.sm_mhz": _mean(settled, lambda gpu: gpu.sm_mhz),
    }
    counted = counter_power(moments)
    found["gpu.power_w"] = _mean(settled, lambda gpu: gpu.power_w) if counted is None else counted
    if calls > 0 and counted is not None:
        found["gpu.energy_j"] = counted * (ended - started) / calls
    return {name: value for name, value in found.items() if value is not None}


def counter_power(moments: Sequence[Moment]) -> float | None:
    """Watts by the energy counter; None where it is missing, spans too little, or was reset."""
    read = [(moment.at, moment.gpu.energy_j) for moment in moments if moment.gpu.energy_j is not None]
    if len(read) < 2 or read[-1][0] - read[0][0] < ENERGY_SECONDS:
        return None
    if any(later[1] < earlier[1] for earlier, later in itertools.pairwise(read)):
        return None  # the driver was loaded anew
    return (read[-1][1] - read[0][1]) / (read[-1][0] - read[0][0])


def remarks(moments: Sequence[Moment]) -> list[str]:
    """What disturbed the machine: a clock held down against nobody's wish, time taken by the
    hypervisor or the quota, other processes. Empty when nothing did."""
    held = Counter(word for moment in moments for word in moment.gpu.throttle if word not in CHOSEN)
    read = sum(moment.gpu.sm_mhz is not None for moment in moments)
    notes = [f"throttled: {word} ({count} of {read} readings)" for word, count in held.items()]
    steal = [moment.steal_percent for moment in moments if moment.steal_percent is not None]
    if steal and max(steal) > STEAL_PERCENT:
        notes.append(f"the hypervisor took up to {max(steal):.0f} % of the processor time")
    stalled = [moment.stalled_s for moment in moments if moment.stalled_s is not None]
    if stalled and stalled[-1] > stalled[0]:
        notes.append(f"the control group's quota held it for {stalled[-1] - stalled[0]:.2g} s")
    # The same process reads 97 % once and 98 % the next time: named once, as last seen.
    others = {name.partition(" (")[0]: name for moment in moments for name in moment.foreign}
    if others:
        notes.append(f"other processes: {', '.join(others.values())}")
    return notes


def _mean(states: Sequence[GpuState], figure: Callable[[GpuState], float | None]) -> float | None:
    values = [value for state in states if (value := figure(state)) is not None]
    return sum(values) / len(values) if values else None


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
