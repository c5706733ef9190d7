"""The session that times: starts the launches before its tests, hands their times to pytest-benchmark."""

from __future__ import annotations

import contextlib
import cProfile
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitbench.errors import UserError
from bitbench.measure.foreign import busy_processes
from bitbench.measure.lock import device_lock, expected_device
from bitbench.pytest_plugin import options
from bitbench.pytest_plugin.fixture import call_once
from bitbench.pytest_plugin.job import Job
from bitbench.pytest_plugin.pair import TARGET
from bitbench.pytest_plugin.processes import Found, files_of, run_all
from bitbench.pytest_plugin.records import KEY, Measured, join
from bitbench.pytest_plugin.table import table

if TYPE_CHECKING:
    from bitbench.pytest_plugin.pair import Pair

FIXTURE = "side_by_side"
CLOCK = "bitbench.measure.clock"


class Launches:
    """Registered in a session that times; the role of the fixture there."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: dict[str, Found] = {}
        self._measured: dict[str, Measured] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Run the launches, before any test. Not within a test: the first one would be charged with
        the time of all, and a limit on a test's time would end it."""
        items = [item for item in session.items if FIXTURE in getattr(item, "fixturenames", ())]
        if not items:  # a session without our fixture is none of our business
            return
        option = self._config.option
        stopped = session.testsfailed and not option.continue_on_collection_errors
        if stopped or option.collectonly or option.setuponly or option.setupplan:
            return
        if options.refused_by_benchmark(self._config):
            return
        try:
            with tempfile.TemporaryDirectory(prefix="bitbench-launches-") as folder, self._device():
                self._run(items, Path(folder))
        except UserError as error:
            raise pytest.UsageError(str(error)) from error

    @contextlib.contextmanager
    def _device(self) -> Iterator[None]:
        """Nobody else of bitbench measures meanwhile: on the processor, nor on the GPU where there is one."""
        with contextlib.ExitStack() as held:
            for device in dict.fromkeys(("cpu", expected_device("auto"))):
                held.enter_context(device_lock(device, wait=True, note=self._tell))
            yield

    def _run(self, items: list[pytest.Item], folder: Path) -> None:
        config = self._config
        count = options.launches(config)
        job = Job(
            launch=0,
            seed=config.getoption("bitbench_seed"),
            parent=os.getpid(),
            seconds=config.getoption("bitbench_seconds"),
            beside=[],
            arguments=[str(argument) for argument in config.invocation_params.args],
            sys_path=sys.path,
            files=files_of([item.path for item in items]),
            selection=[item.nodeid for item in items],
            results="",
            scratch="",
        )

        def before(launch: int) -> list[str]:
            busy = busy_processes()
            beside = f"; other processes at work: {', '.join(busy)}" if busy else ""
            self._tell(f"launch {launch + 1} of {count}: {len(items)} benchmarks side by side{beside}")
            return busy

        self._found = run_all(job, count, folder, config.getoption("bitbench_patience"), before)

    def _tell(self, line: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    def serve(self, nodeid: str, pair: Pair, benchmark: Any) -> Any:
        """Call once, check, and hand what the launches measured to pytest-benchmark."""
        result, built, facts = call_once(pair, benchmark)
        if not benchmark.enabled:
            return result
        found = self._joined(nodeid)
        self._measured[nodeid] = found
        hand_over(found, facts.others, benchmark, built.calls[TARGET])
        return result

    def _joined(self, nodeid: str) -> Measured:
        found = self._found.get(nodeid)
        if found is None:
            pytest.fail("no launch visited this benchmark", pytrace=False)
        if found.failed:
            launch, why = min(found.failed.items())
            others = f" ({len(found.failed)} launches failed)" if len(found.failed) > 1 else ""
            pytest.fail(f"launch {launch + 1}{others}: {why}", pytrace=False)
        try:
            return join(found.measured)
        except ValueError as error:
            pytest.fail(f"the launches did not measure the same thing: {error}", pytrace=False)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """A table of speed-ups, after pytest-benchmark's own."""
        if self._measured and not self._config.getoption("benchmark_quiet"):
            terminalreporter.ensure_newline()
            terminalreporter.section("side by side: speed-up over the baseline, per launch", sep="-")
            for line in table(self._measured):
                terminalreporter.write_line(line)


def hand_over(found: Measured, others: dict[str, Any], benchmark: Any, call: Callable[[], Any]) -> None:
    """Make an entry of pytest-benchmark's out of ``found``: one value a launch.

    pytest-benchmark has no public way to take times that were measured elsewhere; its fixture's own
    method for making an entry has been the same since version 3.
    """
    entry = benchmark._make_stats(iterations=1)
    for launch in found.launches:
        entry.update(launch.seconds)
    # What pytest-benchmark would have done, it did not do.
    entry.options = {"timer": CLOCK, "disable_gc": True, "launches": len(found.launches)}
    benchmark.extra_info.update(others)
    benchmark.extra_info[KEY] = found.model_dump(mode="json")
    if benchmark.cprofile:
        profile = cProfile.Profile()
        for _ in range(benchmark.cprofile_loops or 1):
            profile.runcall(call)
        benchmark._save_cprofile(profile)
