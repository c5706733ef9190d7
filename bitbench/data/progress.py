"""Fetching for a person to watch: what is fetched, under which licence, how far it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bitbench.data.catalog import entry
from bitbench.data.fetch import FetchProgress, Progress, ensure, present, verify

if TYPE_CHECKING:
    from rich.console import Console


def fetch_shown(names: Sequence[str], console: Console, *, source: Path | None = None) -> dict[str, Path]:
    """:func:`bitbench.data.fetch.ensure` for each name, shown on ``console``: a bar on a terminal,
    a plain line a stage elsewhere, nothing for what is already there and whole to the last byte (a
    cache can rot, and a number measured on a changed text would look like any other).

    Raises:
        UserError, ToolError: as ``ensure``.
    """
    folders = {}
    for name in names:
        if folder := present(name):
            problems = verify(name)
            if not problems:
                folders[name] = folder
                continue
            _say(console, f"{name} in the cache is damaged: {problems[0]}")
        item = entry(name)
        size = f"{item.artefact.size / 1e6:.1f} MB"
        _say(console, f"fetching {name}: {item.title} ({item.package} {item.version}, {size})")
        _say(console, f"  licence: {item.licence}")
        with _bar(console) if console.is_terminal else _lines(console) as progress:
            folders[name] = ensure(name, progress, source=source, thorough=True)
        _say(console, f"  kept in {folders[name]}")
    return folders


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("  {task.description:8}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, int] = {}

        def show(step: FetchProgress) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = bar.add_task(step.stage, total=step.total)
            bar.update(tasks[step.stage], completed=step.done)  # type: ignore[arg-type]

        yield show


@contextmanager
def _lines(console: Console) -> Iterator[Progress]:
    seen: set[str] = set()

    def show(step: FetchProgress) -> None:
        if step.stage not in seen:
            seen.add(step.stage)
            _say(console, f"  {step.stage} ({step.total / 1e6:.1f} MB)")

    yield show
