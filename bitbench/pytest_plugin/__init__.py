"""A pytest plug-in: benchmarks timed side by side, in fresh processes, by bitbench's clock.

A test asks for the fixture ``side_by_side``::

    def test_kernel(side_by_side):
        x = torch.randn(16, 1024)
        side_by_side(
            lambda layer: layer(x),
            baseline=lambda layer: layer(x),
            setup=lambda side: packed() if side == "target" else torch.nn.Linear(1024, 1024),
            check=lambda y: torch.equal(y, expected),
        )

``pytest`` alone calls target and baseline once, untimed, and checks the result. With
``--benchmark-json FILE``, ``--benchmark-only``, ``--benchmark-enable``, ``--benchmark-save``,
``--benchmark-autosave``, ``--benchmark-compare`` or ``--bitbench-launches N`` every benchmark is
timed: before the tests, N fresh pytest processes run the same selection one after another, each in
another order, and time target and baseline in mirrored turns. What they measured, one value a
launch, is handed to pytest-benchmark, whose table, JSON files and comparisons work as usual; each
entry's ``extra_info["bitbench"]`` (:class:`bitbench.pytest_plugin.records.Measured`) holds the
launches, the ratio to the baseline with its interval, the machine and the kernel that served.

The plug-in imports neither torch nor anything else of weight in a session that does not time.
Its entry point bears the module's own name, so that ``-p bitbench.pytest_plugin`` beside an
installation loads it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

LAUNCHES = 5
"""Fresh processes, unless ``--bitbench-launches`` says otherwise: the fewest that give an interval
worth reading. A gate asks for 10."""

PATIENCE_S = 300.0
"""How long a launch may be silent, within one benchmark or while it starts."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The plug-in's options; the parser checks their values."""
    from bitbench.pytest_plugin import options

    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixture and, where this session times, what starts the launches."""
    from bitbench.pytest_plugin import options
    from bitbench.pytest_plugin.fixture import Alone, BesideBenchmark

    beside = options.has_benchmark(config)
    config.pluginmanager.register(BesideBenchmark() if beside else Alone(), "bitbench-fixture")
    if options.timed(config) and not options.in_launch(config):
        from bitbench.pytest_plugin.session import Launches

        config.pluginmanager.register(Launches(config), options.PARENT)
