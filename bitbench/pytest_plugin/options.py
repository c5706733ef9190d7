"""What the command line asks for: options, and whether this session times. Light: no other imports."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

PARENT = "bitbench-launches"
"""Plug-in that starts the launches, registered in a session that times."""

LAUNCH = "bitbench-launch"
"""Plug-in that makes a pytest process one launch of another session."""

_ASKING = ("json", "only", "enable", "save", "autosave", "compare")
"""Options of pytest-benchmark that ask for times."""


def add(parser: pytest.Parser) -> None:
    """Add the options. Values are checked while the command line is read."""
    from bitbench.pytest_plugin import LAUNCHES, PATIENCE_S

    group = parser.getgroup("bitbench", "benchmarks timed side by side")
    group.addoption(
        "--bitbench-launches",
        type=_launches,
        default=None,
        metavar="N",
        help=f"Time the side_by_side benchmarks in N fresh processes (default: {LAUNCHES}, "
        "where an option of pytest-benchmark asks for times).",
    )
    group.addoption(
        "--bitbench-seconds",
        type=_seconds,
        default=None,
        metavar="S",
        help="Seconds for which a launch times each side of a benchmark.",
    )
    group.addoption(
        "--bitbench-seed",
        type=int,
        default=0,
        metavar="SEED",
        help="Seed of the orders in which launches visit and build (default: 0).",
    )
    group.addoption(
        "--bitbench-patience",
        type=_seconds,
        default=PATIENCE_S,
        metavar="S",
        help=f"End a launch that is stuck in one benchmark for S seconds (default: {PATIENCE_S:.0f}).",
    )


def has_benchmark(config: pytest.Config) -> bool:
    """Whether pytest-benchmark serves this session: installed, and not switched off with ``-p``."""
    manager = config.pluginmanager
    return manager.hasplugin("benchmark") or manager.hasplugin("pytest_benchmark.plugin")


def in_launch(config: pytest.Config) -> bool:
    """Whether this process is one launch of another session."""
    return bool(config.pluginmanager.hasplugin(LAUNCH))


def timed(config: pytest.Config) -> bool:
    """Whether the command line asks for times.

    Raises ``pytest.UsageError`` where it asks for what excludes one another, or for what is not
    installed.
    """
    import pytest

    explicit = config.getoption("bitbench_launches") is not None
    if not has_benchmark(config):
        if explicit:
            raise pytest.UsageError(
                "--bitbench-launches needs pytest-benchmark, which is not active here: "
                "pip install pytest-benchmark, and do not give -p no:benchmark"
            )
        return False
    if config.getoption("benchmark_disable") and not config.getoption("benchmark_enable"):
        if explicit:
            raise pytest.UsageError(
                "--bitbench-launches and --benchmark-disable exclude one another: "
                "drop one, or add --benchmark-enable"
            )
        return False
    return explicit or any(config.getoption(f"benchmark_{name}", None) for name in _ASKING)


def refused_by_benchmark(config: pytest.Config) -> bool:
    """Whether pytest-benchmark, once configured, does not time after all: under xdist, or with
    ``--benchmark-skip``. It says so itself."""
    session: Any = config.pluginmanager.get_plugin("pytest-benchmark")
    return session is None or session.disabled or session.skip


def launches(config: pytest.Config) -> int:
    """Fresh processes to start."""
    from bitbench.pytest_plugin import LAUNCHES

    return int(config.getoption("bitbench_launches") or LAUNCHES)


def _launches(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of launches: give 1 or more, such as 5")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds above 0, such as 0.2")
    return value
