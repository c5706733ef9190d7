"""Reading run folders back. Torch-free; a torn last line, which a kill can leave, is dropped and told."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bitbench.errors import UserError
from bitbench.store.schema import SCHEMA_VERSION, Case, Record, RunEnd, RunInfo, TelemetrySample
from bitbench.store.writer import CASES_FILE, END_FILE, RUN_FILE, SAMPLES_FILE, TELEMETRY_FILE

RecordType = TypeVar("RecordType", bound=BaseModel)

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda data: {**data, "schema_version": 2},  # version 2 only adds fields
}
"""``MIGRATIONS[v]`` turns the ``run.json`` of version v into that of version v + 1."""


@dataclass(frozen=True)
class RunData:
    """A run folder in memory."""

    path: Path
    info: RunInfo
    cases: list[Case]
    records: list[Record]
    """In the order written; at most one for each (case, launch, side): the last one counts."""
    telemetry: list[TelemetrySample] = field(default_factory=list)
    ends: list[RunEnd] = field(default_factory=list)
    """One each time the run came to its end."""
    warnings: tuple[str, ...] = ()
    """What a caller should show: a last line that was half written and is left out."""

    def missing(self) -> set[tuple[str, int]]:
        """The (case id, launch) pairs that have no record yet."""
        wanted = {(case.id, launch) for case in self.cases for launch in range(case.launches)}
        return wanted - {(record.case, record.launch) for record in self.records}


def load_run(path: Path) -> RunData:
    """Read a run folder.

    Raises :class:`UserError` where it is no run, is of a newer schema, or is damaged before its
    last line.
    """
    info = load_info(path)
    warnings: list[str] = []
    records: dict[tuple[str, int, str], Record] = {}
    with collector_paused():
        for record in _lines(path / SAMPLES_FILE, Record, warnings):
            key = (record.case, record.launch, record.side)
            records.pop(key, None)
            records[key] = record
        return RunData(
            path=path,
            info=info,
            cases=_lines(path / CASES_FILE, Case, warnings),
            records=list(records.values()),
            telemetry=_lines(path / TELEMETRY_FILE, TelemetrySample, warnings),
            ends=_lines(path / END_FILE, RunEnd, warnings),
            warnings=tuple(warnings),
        )


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the collector of reference cycles, for work that makes many objects and no cycle: it
    would walk all of them again and again, and take four fifths of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load_info(path: Path) -> RunInfo:
    """Read ``run.json`` of a run folder, migrated to the present schema."""
    head = path / RUN_FILE
    try:
        data = json.loads(head.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path} is not a run: it has no {RUN_FILE}", "give a folder under results/"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{head} cannot be read: {error}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{head} names no schema version", "it was not written by bitbench")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{head} has schema version {version}; this bitbench reads up to {SCHEMA_VERSION}",
            "install the newer bitbench that wrote it",
        )
    while version < SCHEMA_VERSION:
        data = MIGRATIONS[version](data)
        version += 1
    try:
        return RunInfo.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{head} is damaged: {_first(error)}") from error


def latest_run(results_dir: Path, suite: str | None = None) -> Path:
    """The newest run folder under ``results_dir``, of the suite named ``suite`` if given."""
    found = stored_runs(results_dir, suite)
    if not found:
        which = f" of suite {suite!r}" if suite else ""
        raise UserError(
            f"no run{which} under {results_dir}", "make one with: bitbench run SUITE, or give --results DIR"
        )
    return found[0]


def stored_runs(results_dir: Path, suite: str | None = None) -> list[Path]:
    """The run folders under ``results_dir``, of the suite named ``suite`` if given, newest first.

    Newest by the time inside ``run.json``: folders may have been copied or renamed.
    """
    found: list[tuple[str, str, Path]] = []
    if results_dir.is_dir():
        for head in results_dir.glob(f"*/{RUN_FILE}"):
            try:
                data = json.loads(head.read_text(encoding="utf-8"))
                name, created = data["suite"]["name"], str(data["created"])
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if suite is None or name == suite:
                found.append((created, head.parent.name, head.parent))
    return [path for *_, path in sorted(found, reverse=True)]


def _lines(path: Path, model: type[RecordType], warnings: list[str]) -> list[RecordType]:
    """Records of a JSON-lines file.

    A last line that is no whole line of JSON was being written when the run was killed: it is left
    out, with a warning. Any other line that is no such record is an error.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    lines = text.split(b"\n")
    torn = lines.pop()  # empty after a whole last line
    records = []
    parse = model.model_validate_json
    for number, line in enumerate(lines, start=1):
        try:
            records.append(parse(line))
        except ValidationError as error:
            if number == len(lines) and not torn and _no_json(error):
                torn = line
                break
            raise UserError(
                f"{path}:{number}: not a {model.__name__}: {_first(error)}",
                "the file was changed after the run; restore it or run again",
            ) from error
    if torn:
        where = f"{path.parent.name}/{path.name}"
        warnings.append(f"{where}: the last line was half written and is left out ({len(torn)} bytes)")
    return records


def _no_json(error: ValidationError) -> bool:
    return any(detail["type"] == "json_invalid" for detail in error.errors(include_url=False))


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])
