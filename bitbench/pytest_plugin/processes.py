"""Starting the launches of a session, one after another, and reading what they measured."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitbench.pytest_plugin.job import Job, outcomes, tail
from bitbench.pytest_plugin.records import Measured

TICK_S = 1.0
"""How often a silent launch is looked at: waking up more often would disturb what it times."""

COVERAGE_VARIABLES = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
FAILURES = 1
"""pytest's exit code where tests failed; what failed is in the launch's file."""


@dataclass
class Found:
    """What all launches said of one benchmark."""

    measured: dict[int, Measured] = field(default_factory=dict)
    """By number of the launch."""
    failed: dict[int, str] = field(default_factory=dict)
    """Why a launch did not measure it; counts even where it measured before it failed."""


def run_launch(job: Job, folder: Path, patience_s: float, found: dict[str, Found]) -> None:
    """Run one launch over ``job.selection`` and add what it says to ``found``.

    A benchmark in which the process dies or falls silent for ``patience_s`` is charged with that,
    and another process does the rest of the launch. Every benchmark of the selection has an entry
    for this launch in the end.
    """
    left = list(job.selection)
    attempt = 0
    while left:
        name = f"launch-{job.launch}-{attempt}"
        results, log = folder / f"{name}.jsonl", folder / f"{name}.log"
        part = job.model_copy(
            update={"selection": left, "results": str(results), "scratch": str(folder / name)}
        )
        ended = _run(part, folder / f"{name}.json", results, log, patience_s)
        visited, current = _read(results, job.launch, found)
        left = [nodeid for nodeid in left if nodeid not in visited]
        if current is None or current not in left:
            why = ended or "did not collect this benchmark"
            for nodeid in left:
                found[nodeid].failed[job.launch] = _with_tail(why, log)
            return
        found[current].failed[job.launch] = _with_tail(ended or "ended within this benchmark", log)
        left.remove(current)
        attempt += 1


def _run(job: Job, path: Path, results: Path, log: Path, patience_s: float) -> str:
    """Run one process to its end; why it ended, or empty where it came through."""
    Path(job.scratch).mkdir()
    path.write_text(job.model_dump_json(), encoding="utf-8")
    starter = Path(__file__).with_name("start_launch.py")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", str(starter), str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            # A group of its own: Ctrl-C reaches the session only, which then ends whatever is left.
            start_new_session=True,
        )
    try:
        if not _wait(process, results, patience_s):
            return f"said nothing for {patience_s:g} s and was ended (--bitbench-patience)"
    finally:
        _end(process)
    code = process.returncode
    if code < 0:
        return f"died: {_signal_name(-code)}"
    return "" if code in (0, FAILURES) else f"ended with exit code {code}"


def _wait(process: subprocess.Popen[bytes], results: Path, patience_s: float) -> bool:
    """Whether the process ended by itself before it was silent for too long."""
    ended = threading.Event()

    def wait() -> None:
        process.wait()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    size, since = -1, time.monotonic()
    while not ended.wait(min(TICK_S, patience_s)):
        now = results.stat().st_size if results.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > patience_s:
            return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process's group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(results: Path, launch: int, found: dict[str, Found]) -> tuple[set[str], str | None]:
    """Add a process's file to ``found``: benchmarks it went through, and the one it was in at its end."""
    visited: set[str] = set()
    current: str | None = None
    for outcome in outcomes(results):
        entry = found[outcome.nodeid]
        if outcome.event == "start":
            current = outcome.nodeid
        elif outcome.measured is not None:
            entry.measured[launch] = outcome.measured
        elif outcome.event == "end":
            visited.add(outcome.nodeid)
            current = None
            if launch not in entry.measured and launch not in entry.failed:
                entry.failed[launch] = "did not call side_by_side"
        else:
            entry.failed[launch] = f"{outcome.event}: {outcome.reason}"
    return visited, current


def _with_tail(why: str, log: Path) -> str:
    output = tail(log)
    return f"{why}; its last output:\n{output}" if output else why


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _environment() -> dict[str, str]:
    """The session's environment, without what would trace a launch from its start."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in COVERAGE_VARIABLES and not name.startswith("COV_CORE_")
    }


def run_all(
    template: Job, launches: int, folder: Path, patience_s: float, before: Callable[[int], list[str]]
) -> dict[str, Found]:
    """All launches of a session, one after another. ``before(launch)`` is called before each and answers
    with the names of other processes at work."""
    found = {nodeid: Found() for nodeid in template.selection}
    for launch in range(launches):
        job = template.model_copy(update={"launch": launch, "beside": before(launch)})
        run_launch(job, folder, patience_s, found)
    return found


def files_of(paths: Sequence[Path]) -> list[str]:
    """Each file once, in order."""
    return list(dict.fromkeys(str(path) for path in paths))
