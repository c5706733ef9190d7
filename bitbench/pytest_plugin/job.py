"""What a session hands to one of its launches, and what comes back: files in a private folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bitbench.pytest_plugin.records import Outcome


class Job(BaseModel):
    """One launch: the same command line, these benchmarks, another order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch: int
    seed: int
    parent: int
    """Process that waits; the launch ends with it."""
    seconds: float | None
    """Seconds for which each side is timed; None: the clock's default."""
    beside: list[str]
    """Other processes at work when the launch began."""
    arguments: list[str]
    """The session's own command line."""
    sys_path: list[str]
    """Where the session imports from: the same code for both."""
    files: list[str]
    """Test files to collect."""
    selection: list[str]
    """Node ids of the benchmarks to visit."""
    results: str
    """File that takes one :class:`Outcome` a line."""
    scratch: str
    """Folder for whatever the launch writes otherwise."""


def outcomes(results: Path) -> Iterator[Outcome]:
    """The whole lines of a launch's file; a line that a kill has cut off does not count."""
    try:
        lines = results.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return
    for line in lines[:-1]:
        try:
            yield Outcome.model_validate_json(line)
        except ValidationError as error:
            raise RuntimeError(f"a launch wrote a line that is none of its own: {line[:200]!r}") from error


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a launch's output."""
    try:
        found = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(found[-lines:])


def read_job(path: str) -> Job:
    """The job that a session wrote for this launch."""
    return Job.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
