"""Parent half of a worker process: start it, read its events, end it. Torch-free."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import BaseModel

from bitbench.errors import ToolError
from bitbench.execute.jobs import Job
from bitbench.execute.sides import NATIVE_DIR, OWN_PACKAGE

READ_SIZE = 1 << 16
GRACE_SECONDS = 10.0
"""How long a worker may take to end after its last event."""
LOG_TAIL = 400

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

LIBRARY_VARIABLE, BACKEND_VARIABLE = "BITIMPL_LIBRARY_PATH", "BITIMPL_BACKEND"
CUDA_LIBRARY_VARIABLE = "BITIMPL_CUDA_LIBRARY_PATH"


class Hang(Exception):
    """No event arrived in time."""


class Worker:
    """One running worker. Use as a context manager: leaving it kills whatever is left."""

    def __init__(self, job: Job, log: Path) -> None:
        self.job = job
        self.log = log
        self._buffer = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        self._events = reader
        try:
            with log.open("ab") as stderr:
                # A process group of its own: Ctrl-C reaches the parent only, which then decides,
                # and whatever the worker starts can be killed with it.
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "bitbench.execute.worker", str(writer), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=stderr,
                    stderr=stderr,
                    pass_fds=(writer,),
                    env=worker_environment(job),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(reader)
            raise ToolError(f"cannot start a worker process: {error}") from error
        finally:
            os.close(writer)
        # A worker that is gone is found out about by its events, which end.
        with contextlib.suppress(BrokenPipeError):
            self._write(job.model_dump_json())
            if job.mode != "steered":
                self._stdin.close()

    def send(self, command: BaseModel) -> None:
        """Give a steered worker its next command."""
        with contextlib.suppress(BrokenPipeError):
            self._write(command.model_dump_json())

    @property
    def _stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _write(self, line: str) -> None:
        self._stdin.write(line.encode() + b"\n")
        self._stdin.flush()

    def next_event(self, timeout: float, tick: Callable[[], None] | None = None) -> dict[str, Any] | None:
        """The next event, or None when the worker has closed its pipe.

        ``tick`` is called about once a second while waiting. Raises :class:`Hang` after
        ``timeout`` seconds without an event.
        """
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Hang
            ready, _, _ = select.select([self._events], [], [], min(left, 1.0))
            if ready:
                data = os.read(self._events, READ_SIZE)
                if not data:
                    return None
                self._buffer += data
            elif tick is not None:
                tick()
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def wait(self) -> int:
        """Exit code; a worker that lingers after its last event is killed."""
        try:
            return self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.wait()

    def kill(self) -> None:
        """Kill the worker and everything in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The last line of the log."""
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][-LOG_TAIL:] if lines else ""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()  # also where it has ended: what it started may still be at work
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        os.close(self._events)


def worker_environment(job: Job) -> dict[str, str]:
    """The parent's environment (``BITIMPL_*`` included) with the number of threads fixed.

    A side of a comparison of ``impl`` takes its own native library and no other; one that has none (it
    is older than the kernels) runs on its torch reference.
    """
    variables = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(job.threads))}
    if job.side_root and OWN_PACKAGE in job.side_packages:
        variables.pop(LIBRARY_VARIABLE, None)
        variables.pop(CUDA_LIBRARY_VARIABLE, None)
        own = Path(job.side_root) / OWN_PACKAGE / NATIVE_DIR
        if any(own.glob("*.so")):
            variables[LIBRARY_VARIABLE] = str(own)
        else:
            variables[BACKEND_VARIABLE] = "torch"
    return variables
