"""``bitbench claims``: the verdicts on a suite's claims, and the exit code they ask for."""

from __future__ import annotations

from pathlib import Path

import typer


def claims(
    run: Path = typer.Argument(..., help="Folder of the run, such as results/llm-20260102T030405Z-ab12."),
    strict: bool = typer.Option(False, "--strict", help="Exit 4 where a gating claim stays inconclusive."),
) -> None:
    """Print every claim of a stored run with its verdict; exit 1 where a gating claim does not hold."""
    from rich.console import Console

    from bitbench.analysis.claims import evaluate, exit_code
    from bitbench.analysis.summary import summarise
    from bitbench.report.console import show_claims
    from bitbench.store.reader import load_run

    summary = summarise(load_run(run))
    results = evaluate(summary)
    show_claims(results, Console())
    raise typer.Exit(int(exit_code(summary, results, strict=strict)))
