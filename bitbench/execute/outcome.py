"""From exceptions and dead processes to statuses."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from bitbench.measure.timers import ClockFault, Gpu
from bitbench.store.schema import Status
from bitbench.workloads.base import Incorrect, Unsupported

REASON_LENGTH = 300

DEVICE_LOST = 86
"""Exit code of a worker that can no longer use its GPU."""

OOM_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
"""How torch's CPU allocator, CUDA and the C library word it, in lower case."""


def of_exception(error: BaseException) -> tuple[Status, str]:
    """The status an exception in a case stands for, and a one-line reason."""
    if isinstance(error, Unsupported):
        return Status.UNSUPPORTED, one_line(str(error)) or "unsupported here"
    if isinstance(error, Incorrect):
        return Status.INCORRECT, one_line(str(error))
    if isinstance(error, ClockFault):
        return Status.INVALID, one_line(str(error))
    reason = one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Status.OOM, reason
    if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OOM_MESSAGES):
        return Status.OOM, reason
    return Status.ERROR, reason


def of_death(exit_code: int | None, memory_was_short: bool, log: str) -> tuple[Status, str]:
    """The status of the case in flight when its worker died with ``exit_code`` (negative: signal)."""
    if exit_code is not None and exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        if exit_code == -signal.SIGKILL and memory_was_short:
            return Status.OOM, "the worker was killed for memory (SIGKILL while memory was short)"
        return Status.CRASH, f"the worker died of {name}; see {log}"
    if exit_code == DEVICE_LOST:
        return Status.CRASH, f"an error on the GPU made it unusable for the worker; see {log}"
    return Status.CRASH, f"the worker ended early with exit code {exit_code}; see {log}"


def end_if_lost(gpu: Gpu | None) -> None:
    """End the process where its GPU answers nothing but the error just met.

    After an access outside its memory, say, every later call of the process fails, of whatever layer. The
    runner books the death to the case in flight and goes on with a new worker.
    """
    if gpu is None:
        return
    try:
        gpu.synchronize()
    except Exception:  # whatever torch raises, the device is lost
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(DEVICE_LOST)


def one_line(text: str) -> str:
    """The first non-empty line of ``text``, cut to :data:`REASON_LENGTH` characters."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1] + "…"
