"""How the machine fared while it was measured: section ``telemetry``."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Sequence

from bitbench.analysis.summary import Summary
from bitbench.measure.nvml import CHOSEN
from bitbench.measure.windows import ENERGY_SECONDS, STEAL_PERCENT
from bitbench.report.numbers import plain, quantity
from bitbench.report.tables import Cell, Column, Section, Table, absent
from bitbench.store.schema import TelemetrySample

_FIGURES = [
    ("CPU in use", "cpu_percent", "%"),
    ("CPU clock", "cpu_mhz", "MHz"),
    ("CPU taken by the hypervisor", "cpu_steal_percent", "%"),
    ("Load (1 min)", "load_1m", ""),
    ("Memory in use", "memory_used", "B"),
    ("Memory of the worker", "worker_rss", "B"),
]
_GPU_FIGURES = [
    ("GPU in use", "gpu_percent", "%"),
    ("GPU memory read or written", "gpu_memory_percent", "%"),
    ("GPU memory in use", "gpu_memory_used", "B"),
    ("GPU power", "gpu_power_w", "W"),
    ("GPU clock (SM)", "gpu_sm_mhz", "MHz"),
    ("GPU clock (memory)", "gpu_memory_mhz", "MHz"),
    ("GPU temperature", "gpu_temperature_c", "°C"),
]
_NO_GPU = "no GPU was seen by NVML"
_UNREAD = "cannot be read on this machine"


def telemetry(summary: Summary) -> Section | None:
    """What disturbed the run, and the figures sampled beside it. None where nothing was sampled.

    A figure that this machine cannot give has a row that says so, rather than none.
    """
    samples = summary.run.telemetry
    if not samples:
        return None
    tables = [_whole(samples), _launches(samples)]
    return Section("telemetry", "How the machine fared", disturbances(samples), tables, folded=True)


def disturbances(samples: Sequence[TelemetrySample]) -> list[str]:
    """Sentences on what was not as it should be; empty for an undisturbed run."""
    total = f"{len(samples)} samples"
    told = []
    held = Counter(word for sample in samples for word in sample.gpu_throttle if word not in CHOSEN)
    if held:
        words = "; ".join(f"{word} in {count} of {total}" for word, count in held.most_common())
        told.append(f"**The GPU's clock was held down**: {words}. Times follow that as well as the kernels.")
    steal = [s.cpu_steal_percent for s in samples if (s.cpu_steal_percent or 0) > STEAL_PERCENT]
    if steal:
        told.append(
            f"**The hypervisor took processor time** in {len(steal)} of {total}, up to "
            f"{plain(max(value for value in steal if value is not None))} %."
        )
    # A resumed run starts the counter anew where the container did, too: only rises count.
    stalled = [s.cpu_stalled_s for s in samples if s.cpu_stalled_s is not None]
    held_s = sum(max(0.0, later - earlier) for earlier, later in itertools.pairwise(stalled))
    if held_s > 0:
        told.append(f"**A quota stopped all threads** for {quantity(held_s, 's')} in all.")
    others = Counter(
        name for sample in samples for name in {name.partition(" (")[0] for name in sample.foreign}
    )
    if others:
        words = "; ".join(f"`{name}` in {count} of {total}" for name, count in others.most_common(8))
        told.append(f"**Other processes were at work**: {words}.")
    return told


def _whole(samples: Sequence[TelemetrySample]) -> Table:
    seen = any(_values(samples, name) for _, name, _ in _GPU_FIGURES)
    rows = [_row(samples, *figure, why=_UNREAD) for figure in _FIGURES]
    if seen:
        rows += [_row(samples, *figure, why=_UNREAD) for figure in _GPU_FIGURES]
        rows.append(_energy(samples))
    else:
        rows.append([Cell("GPU use, power, clock, energy"), *(absent(_NO_GPU) for _ in range(3))])
    columns = [Column("During the run", numeric=False), Column("Lowest"), Column("Median"), Column("Highest")]
    note = (
        "Sampled about once a second by the runner, beside the process that is measured. CPU in use is of "
        "all processors of the machine. GPU in use is the share of time in which any kernel ran, not how "
        "full the GPU was; power and use are the driver's own averages over up to a second."
    )
    return Table("telemetry", f"Telemetry, {len(samples)} samples", columns, rows, note=note, html_only=True)


def _row(samples: Sequence[TelemetrySample], title: str, name: str, unit: str, *, why: str) -> list[Cell]:
    values = _values(samples, name)
    if not values:
        return [Cell(title), *(absent(why) for _ in range(3))]
    figures = (min(values), statistics.median(values), max(values))
    return [Cell(title), *(Cell(quantity(v, unit), sort=v) for v in figures)]


def _energy(samples: Sequence[TelemetrySample]) -> list[Cell]:
    """Energy of the whole run by the device's counter: one figure, under *Highest*."""
    found = energy(samples)
    title = "GPU energy, whole run"
    if found is None:
        return [Cell(title), *(absent("no energy counter, or too short a run") for _ in range(3))]
    return [Cell(title), absent(), absent(), Cell(quantity(found, "J"), sort=found)]


def energy(samples: Sequence[TelemetrySample]) -> float | None:
    """Joules by the counter, its rises added up; None under two seconds or without a counter.

    Where a run was resumed its clock starts anew: the energy between the parts is not counted.
    """
    joules = span = 0.0
    read = [sample for sample in samples if sample.gpu_energy_j is not None]
    for earlier, later in itertools.pairwise(read):
        assert earlier.gpu_energy_j is not None
        assert later.gpu_energy_j is not None
        rise = later.gpu_energy_j - earlier.gpu_energy_j
        if later.t > earlier.t and rise >= 0:
            joules, span = joules + rise, span + later.t - earlier.t
    return joules if span >= ENERGY_SECONDS else None


def _launches(samples: Sequence[TelemetrySample]) -> Table:
    """Medians by process that was measured."""
    names = [name for name in dict.fromkeys(sample.launch for sample in samples) if name]
    figures = [
        figure
        for figure in (*_FIGURES, *_GPU_FIGURES)
        if figure[1] not in ("memory_used", "gpu_memory_mhz", "load_1m") and _values(samples, figure[1])
    ]
    columns = [
        Column("Process", "launch, or what is measured once", numeric=False),
        Column("Samples"),
        *(Column(title, "median over its samples") for title, _, _ in figures),
        Column("Disturbed by", numeric=False),
    ]
    rows = []
    for name in names:
        own = [sample for sample in samples if sample.launch == name]
        rows.append(
            [
                Cell(name, code=True),
                Cell(str(len(own)), sort=float(len(own))),
                *(_median(own, field, unit) for _, field, unit in figures),
                Cell(_disturbed(own)),
            ]
        )
    return Table("telemetry-launches", "By process", columns, rows, filterable=True, html_only=True)


def _median(samples: Sequence[TelemetrySample], name: str, unit: str) -> Cell:
    values = _values(samples, name)
    if not values:
        return absent()
    middle = statistics.median(values)
    return Cell(quantity(middle, unit), sort=middle)


def _disturbed(samples: Sequence[TelemetrySample]) -> str:
    held = {word for sample in samples for word in sample.gpu_throttle if word not in CHOSEN}
    others = {name.partition(" (")[0] for sample in samples for name in sample.foreign}
    return ", ".join([*sorted(f"throttled: {word}" for word in held), *sorted(others)])


def _values(samples: Sequence[TelemetrySample], name: str) -> list[float]:
    return [float(value) for sample in samples if (value := getattr(sample, name)) is not None]
