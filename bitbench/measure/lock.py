"""One measurement at a time on a device. Torch-free.

Two runs on one device take time from each other, and neither shows it. The lock is a file that the
operating system gives back when its holder dies, however it dies; who holds it is written beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bitbench.errors import UserError

LOCK_DIR = "BITBENCH_LOCK_DIR"
"""Environment variable: the folder of the locks, in place of the user's runtime folder."""
POLL_SECONDS = 0.5


def lock_dir() -> Path:
    """Folder of the locks: the same for all of a user's processes, gone after a restart."""
    chosen = os.environ.get(LOCK_DIR)
    if chosen:
        return Path(chosen)
    from platformdirs import user_runtime_path

    with warnings.catch_warnings():
        # Where no session has made the usual folder, one under the temporary folder serves as well.
        warnings.simplefilter("ignore")
        return user_runtime_path("bitbench")


def expected_device(device: str) -> str:
    """The device that a suite's ``device`` will come to, as far as can be told without torch."""
    if device != "auto":
        return device
    from bitbench.measure.nvml import NoGpu, find_gpu

    gpu = find_gpu()
    gpu.close()
    return "cpu" if isinstance(gpu, NoGpu) else "cuda"


def lock_name(device: str) -> str:
    """``cpu``, or the GPU in use as the environment numbers it: ``cuda-0``."""
    if device != "cuda":
        return device
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    return "cuda-" + re.sub(r"[^A-Za-z0-9-]", "_", visible)


@contextlib.contextmanager
def device_lock(
    device: str, *, wait: bool = False, note: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold ``device`` (``cpu`` or ``cuda``) for the time of the block.

    Held by this process already, it is held once more and let go with the outermost block. Held by
    another bitbench of this user, it is waited for with ``wait`` (``note`` hears so once), else
    refused with a :class:`UserError` that names the holder's process id.
    """
    folder, name = lock_dir(), lock_name(device)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder / f"{name}.lock", is_singleton=True, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = holder(folder / f"{name}.json")
            if not wait:
                raise UserError(
                    f"another bitbench ({who}) is measuring on {name}: both would come out slower",
                    "wait for it with --wait, or stop it",
                ) from None
            if note is not None:
                note(f"another bitbench ({who}) is measuring on {name}: waiting for it to end")
            lock.acquire(poll_interval=POLL_SECONDS)
    except OSError as error:
        raise UserError(
            f"cannot lock {name} in {folder}: {error.strerror or error}",
            f"name a folder that can be written with {LOCK_DIR}=DIR",
        ) from error
    signature = folder / f"{name}.json"
    try:
        _sign(signature)
        yield
    finally:
        if lock.lock_counter == 1:
            signature.unlink(missing_ok=True)  # the next holder must not go by this one's name
        lock.release()


def _sign(path: Path) -> None:
    """Write who holds the lock. Only the holder writes, so one rename is enough."""
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    temporary = path.with_suffix(f".{os.getpid()}")
    # It serves messages only: a full disk must not keep a run from starting.
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps({"pid": os.getpid(), "since": started}))
        temporary.replace(path)


def holder(path: Path) -> str:
    """The holder as it signed: ``process 4711, since 2026-11-20T09:00:00+01:00``."""
    try:
        signed = json.loads(path.read_text())
        return f"process {int(signed['pid'])}, since {signed['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"
