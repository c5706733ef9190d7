"""``bitbench doctor``: is this machine fit to measure on?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from bitbench.errors import Exit

if TYPE_CHECKING:
    from bitbench.measure.findings import Finding, Level


def doctor(
    as_json: bool = typer.Option(False, "--json", help="The findings as JSON."),
) -> int:
    """Look at what would disturb a measurement on this machine, and say what mends it.

    Cores, clocks, governor, other processes, hypervisor, quota, memory, GPU, instruction sets,
    kernels, compiler and disk. Nothing is changed. Ends with 0 when fit, 1 when degraded (numbers
    will be noisier or parts missing), 2 when unfit.
    """
    from bitbench.measure.findings import Level
    from bitbench.measure.fitness import examine, verdict

    findings = examine()
    worst = verdict(findings)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"verdict": worst.value, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        _show(findings, worst)
    return int({Level.FIT: Exit.OK, Level.DEGRADED: Exit.FAILED, Level.UNFIT: Exit.USAGE}[worst])


def _show(findings: list[Finding], worst: Level) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    style = {"fit": "green", "degraded": "yellow", "unfit": "red"}
    for finding in findings:
        line = Text(f"{finding.level:<9}", style=style[finding.level])
        line.append(f"{finding.what:<11}", style="bold")
        line.append(finding.found, style="default")
        console.print(line, soft_wrap=True)
        if finding.why:
            console.print(Text(f"{'':<20}{finding.why}", style="dim"), soft_wrap=True)
        if finding.remedy:
            console.print(Text(f"{'':<20}-> {finding.remedy}"), soft_wrap=True)
    console.print(Text(f"\nthis machine is {worst} for measuring", style=style[worst]))
