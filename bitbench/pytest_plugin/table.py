"""The terminal table of a session that timed."""

from __future__ import annotations

from collections.abc import Mapping

from bitbench.analysis.statistics import DISPLAY_CONFIDENCE, log_mean
from bitbench.pytest_plugin.records import Measured
from bitbench.report.numbers import with_interval

HEADER = ("benchmark", "target", "baseline", f"speed-up ({DISPLAY_CONFIDENCE:.0%})")
NONE = "-"
NOTES = 5
"""Notes shown in full."""


def table(found: Mapping[str, Measured]) -> list[str]:
    """One line a benchmark, columns aligned, by node id; notes of launches below."""
    rows = [HEADER, *(_row(nodeid, measured) for nodeid, measured in found.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    notes = [
        f"note: {nodeid}, launch {launch.launch + 1}: {note}"
        for nodeid, measured in found.items()
        for launch in measured.launches
        for note in launch.notes
    ]
    lines += notes[:NOTES]
    if len(notes) > NOTES:
        lines.append(f"and {len(notes) - NOTES} more notes: --benchmark-json has them all")
    return lines


def _row(nodeid: str, measured: Measured) -> tuple[str, str, str, str]:
    target = log_mean([launch.seconds for launch in measured.launches])
    baseline = [
        launch.baseline_seconds for launch in measured.launches if launch.baseline_seconds is not None
    ]
    ratios = measured.ratios()
    return (
        nodeid,
        with_interval(target, "s"),
        with_interval(log_mean(baseline), "s") if baseline else NONE,
        with_interval(log_mean(ratios), "x") if ratios else NONE,
    )
