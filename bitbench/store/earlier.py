"""Room for a run to be measured again: what it holds is kept under ``earlier/``."""

from __future__ import annotations

import shutil
from pathlib import Path

from bitbench.errors import ToolError
from bitbench.store.writer import (
    CASES_FILE,
    END_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    TELEMETRY_FILE,
    RunWriter,
)

EARLIER = "earlier"
MEASURED = (SAMPLES_FILE, TELEMETRY_FILE, END_FILE)


def set_aside(run_dir: Path) -> Path:
    """Copy the run in ``run_dir`` to ``earlier/<n>/``, a run folder of its own, and take what it
    measured out of ``run_dir``; returns the copy.

    Whenever it is cut short, ``run_dir`` is a run of one code: the copy is made first, the head
    stays until a new one replaces it.
    """
    with RunWriter.reopen(run_dir):  # nobody else is writing it
        folder = run_dir / EARLIER
        try:
            folder.mkdir(exist_ok=True)
            number = 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
            kept = folder / str(number)
            making = folder / f".{number}"
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            for name in (RUN_FILE, CASES_FILE, *MEASURED):
                if (run_dir / name).exists():
                    shutil.copy2(run_dir / name, making / name)
            making.rename(kept)
            for name in MEASURED:
                (run_dir / name).unlink(missing_ok=True)
        except OSError as error:
            raise ToolError(
                f"cannot keep the earlier results of {run_dir}: {error.strerror or error}",
                "check the directory's permissions and its disk; nothing was measured",
            ) from error
    return kept
