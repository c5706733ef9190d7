"""The launch: a fresh pytest process that times the benchmarks of another session, once each.

It runs the session's own command line, so that options, configuration, conftest files and plug-ins
are the same, and then keeps of what it collects only the benchmarks it is to visit, in an order of
its own. Everything that a session writes besides results (reports, caches, temporary folders) is
switched off or goes to a private folder.
"""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute.worker import follow_parent
from bitbench.pytest_plugin import options
from bitbench.pytest_plugin.fixture import through
from bitbench.pytest_plugin.job import Job, read_job
from bitbench.pytest_plugin.pair import Pair
from bitbench.pytest_plugin.records import Outcome
from bitbench.pytest_plugin.timing import time_pair

SWITCHED_OFF: dict[str, Any] = {
    **dict.fromkeys(("benchmark_json", "benchmark_save", "benchmark_autosave"), None),
    **dict.fromkeys(("benchmark_compare", "benchmark_compare_fail"), None),
    **dict.fromkeys(("benchmark_cprofile", "benchmark_histogram"), None),
    "xmlpath": None,
    "log_file": os.devnull,  # None would mean the one that the configuration names
    **dict.fromkeys(("lf", "failedfirst", "newfirst", "stepwise", "stepwise_skip", "pyargs"), False),
    **dict.fromkeys(("usepdb", "trace"), False),
    "maxfail": 0,
}
"""Options, by the name of their value: what writes, stops early, waits for a person or chooses tests."""


class Launch:
    """The plug-in object that makes a pytest process the launch of ``job``; the fixture's role there."""

    __name__ = options.LAUNCH  # under which pytest registers it

    def __init__(self, job: Job) -> None:
        self._job = job
        self._results = Path(job.results).open("a", encoding="utf-8")  # noqa: SIM115 - until the end

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Before the plug-ins that write take their options."""
        for name, value in SWITCHED_OFF.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        config.option.basetemp = str(Path(self._job.scratch) / "tmp")
        config.args = list(self._job.files)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, object, object]:
        """Choose and order after every other plug-in has."""
        result = yield
        wanted = set(self._job.selection)
        items[:] = sorted((item for item in items if item.nodeid in wanted), key=lambda item: item.nodeid)
        random.Random(f"{self._job.seed}/{self._job.launch}").shuffle(items)
        return result

    def pytest_collection_finish(self) -> None:
        """Take what is there by now out of the garbage collector's sight: it runs before each timing, and
        would look through everything that torch has imported (0.2 s) each time."""
        gc.collect()
        gc.freeze()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say(Outcome(nodeid=nodeid, event="start"))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome != "passed":
            self._say(Outcome(nodeid=report.nodeid, event=report.outcome, reason=_reason(report)))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._say(Outcome(nodeid=nodeid, event="end"))

    def pytest_unconfigure(self) -> None:
        self._results.close()

    def serve(self, nodeid: str, pair: Pair, benchmark: Any) -> Any:
        """Time ``pair`` and write down what was measured."""
        job = self._job
        rng = random.Random(f"{job.seed}/{job.launch}/{nodeid}")
        result, found = through(
            benchmark,
            lambda: time_pair(pair, launch=job.launch, rng=rng, seconds=job.seconds, beside=job.beside),
        )
        self._say(Outcome(nodeid=nodeid, event="measured", measured=found))
        return result

    def _say(self, outcome: Outcome) -> None:
        self._results.write(outcome.model_dump_json() + "\n")
        self._results.flush()


def _reason(report: pytest.TestReport) -> str:
    """Why a test failed or was skipped, in a line or two."""
    found: Any = report.longrepr
    if isinstance(found, tuple):  # of a skip: file, line, reason
        return str(found[2]).removeprefix("Skipped: ")
    text = str(getattr(getattr(found, "reprcrash", None), "message", found)).strip()
    return text if report.when == "call" else f"in {report.when}: {text}"


def main(path: str) -> int:
    """Run the launch whose job lies at ``path``; pytest's exit code."""
    job = read_job(path)
    follow_parent(job.parent)
    # First, so that a session's own arguments, which may end with "--", keep their meaning. Assertions
    # stay as they are written: pytest's longer form of them would be timed along.
    own = ["-p", "bitbench.pytest_plugin", "--assert=plain", "-o", f"cache_dir={job.scratch}/cache"]
    return int(pytest.main([*own, *job.arguments], plugins=[Launch(job)]))
