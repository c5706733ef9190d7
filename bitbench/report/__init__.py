"""Reports of a run: one context, many renderings."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from bitbench.errors import ToolError, UserError

if TYPE_CHECKING:
    from bitbench.report.reporters import Reporter, Source


def write(run_dir: Path, reports_dir: Path) -> Path:
    """Write the report of a run as :func:`write_files` does; return its folder."""
    return write_files(run_dir, reports_dir)[0].parent


def write_files(run_dir: Path, reports_dir: Path, extra: Sequence[str] = ()) -> list[Path]:
    """Write ``index.html``, ``report.md`` and ``cases.csv`` of a run; return what was written.

    The folder is ``reports_dir`` / name of the run. ``extra``: names of reporters whose files are
    written too (see :mod:`bitbench.report.reporters`). Everything is rendered before the first file
    is touched, and each file is replaced as a whole.

    Raises :class:`~bitbench.errors.UserError` where the run cannot be read, a reporter is unknown,
    or the reports directory cannot be written, and :class:`~bitbench.errors.ToolError` where a
    reporter fails.
    """
    from bitbench.analysis.summary import summarise
    from bitbench.report.reporters import BUILTIN, REGISTRY, Source
    from bitbench.store.reader import load_run

    reporters = {name: REGISTRY.get(name) for name in dict.fromkeys([*BUILTIN, *extra])}
    source = Source(summarise(load_run(run_dir)))
    files: dict[str, str] = {}
    for name, reporter in reporters.items():
        made = reporter.files(source) if name in BUILTIN else _of_peer(name, reporter, source, files)
        files.update(made)
    folder = reports_dir / run_dir.resolve().name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder, files)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder}: {error.strerror}",
            f"the run is kept; choose another place: bitbench report {run_dir} --reports DIR",
        ) from error
    return [folder / name for name in files]


def _of_peer(name: str, reporter: Reporter, source: Source, taken: Mapping[str, str]) -> Mapping[str, str]:
    """The files of a plug-in, whose code is not ours: what is wrong with them is said, not raised."""
    advice = "leave it out, or repair the package that registers it (bitbench plugins names it)"
    try:
        files = reporter.files(source)
    except Exception as error:
        raise ToolError(f"the reporter {name!r} failed: {type(error).__name__}: {error}", advice) from error
    for file in files:
        if file != PurePath(file).name or file.startswith("."):
            raise ToolError(f"the reporter {name!r} names a file {file!r}, which is no plain name", advice)
        if file in taken:
            raise ToolError(f"the reporter {name!r} would write over {file}", advice)
    return files


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
