"""The fixture ``side_by_side``: what a test calls, whatever role its process has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from bitbench.pytest_plugin import options

if TYPE_CHECKING:
    from bitbench.pytest_plugin.pair import Built, Extra, Facts, Pair


class Role(Protocol):
    """What becomes of a benchmark in this process."""

    def serve(self, nodeid: str, pair: Pair, benchmark: Any) -> Any:
        """Do it, and return the target's result. ``benchmark`` is pytest-benchmark's fixture or None."""
        ...


class SideBySide:
    """Times a target beside a baseline. A test calls it once."""

    def __init__(self, nodeid: str, role: Role, benchmark: Any) -> None:
        self._nodeid = nodeid
        self._role = role
        self._benchmark = benchmark
        self._used = False

    def __call__(
        self,
        target: Callable[..., Any],
        *,
        baseline: Callable[..., Any] | None = None,
        check: Callable[[Any], Any] | None = None,
        setup: Callable[[str], Any] | None = None,
        extra: Extra | None = None,
    ) -> Any:
        """The target's result, of an untimed call.

        ``target`` and ``baseline`` are what is timed. Without ``setup`` they are called without
        arguments. ``setup(side)``, side ``"target"`` or ``"baseline"``, is called once for each, in an
        order that differs between launches, and what it returns is the one argument of every call of
        that side. Build there what the time may depend on: memory handed out always in the same order
        alone makes a layer differ from itself by 1-4 %.

        Where the target's result lies decides the clock: a GPU's events, or the processor's. So work on
        a GPU has to return what it made, by itself or among a few parts.

        ``check`` gets the target's result, in every launch before and after timing; it raises or
        returns something false where the result is wrong.

        ``extra`` is a mapping, or a callable (with the target's argument, if any) that returns one
        right after a call of the target, and goes into ``extra_info``. Two names are special:
        ``kernel``, the name of the kernel that served, and ``exact``, a mapping of names of
        :data:`bitbench.store.metrics.METRICS` to counted figures, which a gate judges by equality.
        """
        from bitbench.pytest_plugin.pair import Pair

        if self._used:
            raise RuntimeError("side_by_side can be called once in a test: write a test for each benchmark")
        self._used = True
        pair = Pair(target, baseline, check, setup, extra)
        return self._role.serve(self._nodeid, pair, self._benchmark)


class Untimed:
    """A session that does not time: call once, check."""

    def serve(self, nodeid: str, pair: Pair, benchmark: Any) -> Any:  # noqa: ARG002 - as every role
        return call_once(pair, benchmark)[0]


def call_once(pair: Pair, benchmark: Any) -> tuple[Any, Built, Facts]:
    """Build and call each side once, untimed, and check the target: its result, the sides, and what
    the benchmark says of itself."""
    from bitbench.pytest_plugin.pair import BASELINE, TARGET

    built = pair.build(pair.sides)
    result = through(benchmark, built.calls[TARGET])
    facts = built.facts()
    built.verify(result)
    if BASELINE in built.calls:
        built.calls[BASELINE]()
    return result, built, facts


def through(benchmark: Any, call: Callable[[], Any]) -> Any:
    """``call()``, once; pytest-benchmark, where present, is told that its fixture was used."""
    if benchmark is None:
        return call()
    was = benchmark.disabled
    benchmark.disabled = True
    try:
        return benchmark(call)
    finally:
        benchmark.disabled = was


def role_of(config: pytest.Config) -> Role:
    """The role of this process in its session."""
    manager = config.pluginmanager
    role: Role | None = manager.get_plugin(options.LAUNCH) or manager.get_plugin(options.PARENT)
    return role or Untimed()


class BesideBenchmark:
    """The fixture where pytest-benchmark is active; asking for its fixture makes ``--benchmark-only``
    and ``--benchmark-skip`` see these tests."""

    @pytest.fixture
    def side_by_side(self, request: pytest.FixtureRequest, benchmark: Any) -> SideBySide:
        """Times a target beside a baseline, in fresh processes (bitbench)."""
        return SideBySide(request.node.nodeid, role_of(request.config), benchmark)


class Alone:
    """The fixture where pytest-benchmark is not: nothing is timed, everything is checked."""

    @pytest.fixture
    def side_by_side(self, request: pytest.FixtureRequest) -> SideBySide:
        """Calls a target and its baseline once and checks the result (bitbench)."""
        return SideBySide(request.node.nodeid, role_of(request.config), None)
