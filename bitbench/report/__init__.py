"""Reports of a run: one context, many renderings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bitbench.errors import UserError


def write(run_dir: Path, reports_dir: Path) -> Path:
    """Write ``index.html``, ``report.md`` and ``cases.csv`` of a run; return their folder.

    The folder is ``reports_dir`` / name of the run. Everything is rendered before the first file
    is touched, and each file is replaced as a whole.

    Raises :class:`~bitbench.errors.UserError` where the run cannot be read or the reports
    directory cannot be written.
    """
    from bitbench.analysis.summary import summarise
    from bitbench.report import context, csv, html, markdown, plots
    from bitbench.store.reader import load_run

    summary = summarise(load_run(run_dir))
    built = context.context_of(summary, plots.figures(summary))
    files = {
        "index.html": html.render(built),
        "report.md": markdown.render(built),
        "cases.csv": csv.render(summary),
    }
    folder = reports_dir / run_dir.resolve().name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder, files)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder}: {error.strerror}",
            f"the run is kept; choose another place: bitbench report {run_dir} --reports DIR",
        ) from error
    return folder


def _replace(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
