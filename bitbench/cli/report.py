"""``bitbench report``: render a stored run again."""

from __future__ import annotations

from pathlib import Path

import typer


def report(
    run: Path = typer.Argument(..., help="Folder of the run, such as results/llm-20260102T030405Z-ab12."),
    reports: Path = typer.Option(Path("reports"), "--reports", metavar="DIR", help="Where reports go."),
    reporter: list[str] = typer.Option(
        None, "--reporter", metavar="NAME", help="A plug-in that writes files too; see bitbench plugins."
    ),
    into: Path = typer.Option(
        None, "--into", metavar="FILE", help="Write the run's performance tables into the blocks of FILE too."
    ),
    benchmark_json: Path = typer.Option(
        None, "--benchmark-json", metavar="FILE", help="Write the timed cases as a pytest-benchmark file too."
    ),
) -> None:
    """Write index.html, report.md and cases.csv of a stored run. Nothing is measured."""
    from bitbench.report import write_files

    for file in write_files(run, reports, reporter or ()):
        typer.echo(file)
    if into is not None:
        from bitbench.report.performance import write_into

        write_into(into, run)
        typer.echo(into)
    if benchmark_json is not None:
        from bitbench.pytest_plugin.exchange import export_run

        export_run(run, benchmark_json)
        typer.echo(benchmark_json)
