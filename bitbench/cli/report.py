"""``bitbench report``: render a stored run again."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    run: Path = typer.Argument(..., help="Folder of the run, such as results/llm-20260102T030405Z-ab12."),
    reports: Path = typer.Option(Path("reports"), "--reports", metavar="DIR", help="Where reports go."),
) -> None:
    """Write index.html, report.md and cases.csv of a stored run. Nothing is measured."""
    from bitbench.report import write

    folder = write(run, reports)
    for name in ("index.html", "report.md", "cases.csv"):
        typer.echo(folder / name)
