"""The single writer of a run folder: whole lines, appended, synced.

Every line goes to the file by one ``write`` on an unbuffered append descriptor, so a reader (or a
``kill -9``) never sees half of it unless the disk itself is cut off. A short write, as a full disk
causes it, is taken back before the error is reported.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel

from bitbench.errors import ToolError, UserError
from bitbench.store.schema import Case, Record, RunEnd, RunInfo, TelemetrySample

RUN_FILE = "run.json"
CASES_FILE = "cases.jsonl"
SAMPLES_FILE = "samples.jsonl"
TELEMETRY_FILE = "telemetry.jsonl"
END_FILE = "end.jsonl"

SYNC_SECONDS = 2.0
"""Longest time a record may wait for its fsync while records keep coming."""


def new_run_dir(results_dir: Path, suite: str, now: datetime | None = None) -> Path:
    """Create ``results_dir/<suite>-<UTC time>-<4 hex>/`` and return it.

    Raises :class:`UserError` where the directory cannot be made or written.
    """
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        while True:
            run_dir = results_dir / f"{suite}-{stamp}-{secrets.token_hex(2)}"
            try:
                run_dir.mkdir()
            except FileExistsError:
                continue
            return run_dir
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        why = "a file is in its place" if in_the_way else error.strerror or error
        raise UserError(
            f"cannot write the results directory {results_dir}: {why}",
            "give a writable one with --results DIR",
        ) from error


def check_writable(directory: Path, option: str, value: str = "DIR") -> None:
    """Whether ``directory`` could be made and written, without making it.

    Raises :class:`UserError`, naming ``option`` as the remedy.
    """
    existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return
    why = "is not writable" if existing.is_dir() else "is a file"
    raise UserError(
        f"cannot write to {directory}: {existing} {why}", f"give a writable one with {option} {value}"
    )


def check_file(path: Path, option: str) -> None:
    """Whether :func:`write_file` could write ``path``, without writing it.

    Raises :class:`UserError`, naming ``option`` as the remedy.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder", f"name a file with {option} FILE")
    check_writable(path.parent, option, "FILE")


def utc_now() -> str:
    """The current time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class LineFile:
    """Append-only file of JSON lines, locked against other processes while open. Not thread-safe;
    :class:`RunWriter` sees to that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise UserError(
                f"another bitbench is writing {path.parent}", "wait for it to end, or stop it"
            ) from None

    def append(self, lines: Iterable[str]) -> None:
        """Append whole lines, or none: after a short write the file is cut back."""
        data = "".join(line + "\n" for line in lines).encode()
        if not data:
            return
        start = os.fstat(self._fd).st_size
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            if done:
                os.ftruncate(self._fd, start)
            raise _disk_error(self.path, error) from error

    def sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _disk_error(self.path, error) from error

    def close(self) -> None:
        os.close(self._fd)


class RunWriter:
    """Writes one run folder. Safe to use from the runner and its telemetry thread at once."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._lock = threading.Lock()
        try:
            self._samples = LineFile(run_dir / SAMPLES_FILE)
            self._telemetry = LineFile(run_dir / TELEMETRY_FILE)
        except OSError as error:
            raise _disk_error(run_dir, error) from error
        self._synced = time.monotonic()

    @classmethod
    def create(cls, run_dir: Path, info: RunInfo, cases: Iterable[Case]) -> RunWriter:
        """Write the head of a new run: every case first, ``run.json`` last.

        A folder without ``run.json`` is no run, so a crash in here leaves none.
        """
        write_atomically(run_dir / CASES_FILE, "".join(_line(case) + "\n" for case in cases))
        write_atomically(run_dir / RUN_FILE, json.dumps(info.model_dump(mode="json"), indent=1) + "\n")
        return cls(run_dir)

    @classmethod
    def reopen(cls, run_dir: Path) -> RunWriter:
        """Continue a run: lines torn by a kill are removed first."""
        opened = cls(run_dir)  # locks the files first: a writer at work has torn lines for a moment
        for name in (SAMPLES_FILE, TELEMETRY_FILE, END_FILE):
            repair(run_dir / name)
        return opened

    def records(self, records: Iterable[Record]) -> None:
        """Append records; they are on disk at the latest ``SYNC_SECONDS`` after the next call."""
        lines = [_line(record) for record in records]
        with self._lock:
            self._samples.append(lines)
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()

    def end(self, end: RunEnd) -> None:
        """Note how the run came to its end, once everything else is on the disk."""
        self.sync()
        try:
            file = LineFile(self.run_dir / END_FILE)
        except OSError as error:
            raise _disk_error(self.run_dir / END_FILE, error) from error
        try:
            file.append([_line(end)])
            file.sync()
        finally:
            file.close()

    def telemetry(self, sample: TelemetrySample) -> None:
        with self._lock:
            self._telemetry.append([_line(sample)])

    def sync(self) -> None:
        """Force everything written so far onto the disk."""
        with self._lock:
            self._sync()

    def _sync(self) -> None:
        self._samples.sync()
        self._telemetry.sync()
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        with self._lock:
            try:
                self._sync()
            finally:
                self._samples.close()
                self._telemetry.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def repair(path: Path) -> int:
    """Cut a torn last line off ``path``; returns the bytes removed. A missing file is fine."""
    if not path.exists():
        return 0
    data = path.read_bytes()
    keep = data.rfind(b"\n") + 1
    # A whole line whose JSON is broken can only be the last one of an unsynced power cut.
    if keep:
        start = data.rfind(b"\n", 0, keep - 1) + 1
        try:
            json.loads(data[start:keep])
        except ValueError:
            keep = start
    if keep < len(data):
        with path.open("r+b") as file:
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return len(data) - keep


def write_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as a whole, its folder made where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _disk_error(path.parent, error) from error
    write_atomically(path, text)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, sync it, and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _disk_error(path, error) from error


def _line(record: BaseModel) -> str:
    return record.model_dump_json(exclude_defaults=True)


def _disk_error(path: Path, error: OSError) -> ToolError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ToolError(
            f"the disk is full: cannot write {path}",
            "free space, then continue with --resume; what was measured is kept",
        )
    return ToolError(
        f"cannot write {path}: {error.strerror or error}",
        "check the directory's permissions and its disk",
    )
