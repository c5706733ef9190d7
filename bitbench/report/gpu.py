"""What a GPU says of itself while each layer is kept at work alone: one table a point."""

from __future__ import annotations

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.tables import (
    Cell,
    Column,
    Section,
    Table,
    figure_cell,
    name_cell,
    share_cell,
    without_empty,
)

_COLUMNS = [
    Column("Layer", numeric=False),
    Column("GPU in use", "share of time in which a kernel ran"),
    Column("Memory in use", "share of time in which device memory was read or written"),
    Column("Power", "mean over the load, of the whole device"),
    Column("Clock (SM)", "mean over the load"),
    Column("Calls/s", "one call after the other"),
    Column("Energy a call", "of the whole device, by its counter"),
]


def gpu_load(summary: Summary) -> Section | None:
    """Section ``gpu``; None where nothing was kept at work on a GPU."""
    loaded = [case for case in summary.cases if case.value("gpu.calls_per_s") is not None]
    if not loaded:
        return None
    tables = []
    for point in dict.fromkeys(case.case.point for case in loaded):
        here = [case for case in loaded if case.case.point == point]
        label = here[0].case.label.rpartition("/")[0]
        tables.append(
            without_empty(
                Table(f"gpu-{point}", label, _COLUMNS, [_row(case) for case in here], filterable=True)
            )
        )
    prose = [
        "Each layer was called again and again for some seconds, alone, as it was timed: launched from the "
        "host, or replayed from a graph where its time is that of one. Use and power are the driver's own "
        "averages, read after the first second. Use says in how much of the time any kernel ran, not how "
        "full the device was; the energy of a call has the device's idle power in it.",
    ]
    return Section("gpu", "The GPU under load", prose, tables)


def _row(case: CaseSummary) -> list[Cell]:
    def share(metric: str) -> Cell:
        return share_cell(case.value(metric), case=case.case.id)

    def figure(metric: str, unit: str) -> Cell:
        return figure_cell(case.value(metric), unit, case=case.case.id)

    return [
        name_cell(case.case.layer),
        share("gpu.utilisation"),
        share("gpu.memory_utilisation"),
        figure("gpu.power_w", "W"),
        figure("gpu.sm_mhz", "MHz"),
        figure("gpu.calls_per_s", ""),
        figure("gpu.energy_j", "J"),
    ]
