"""``bitbench selftest``: does the ruler measure what it should?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from bitbench.errors import Exit

if TYPE_CHECKING:
    from bitbench.measure.selftest import Check


def selftest(
    as_json: bool = typer.Option(False, "--json", help="The checks as JSON."),
) -> int:
    """Hold clocks, timers and the counting of bytes against things of known size.

    Spins of known duration, an empty call, an identical twin and one that does a tenth more work,
    tensors of known bytes, and on a GPU a kernel of known cycles. Takes some ten seconds. Ends with
    0 when all is right, 3 when a check fails: then either the machine is too busy to measure on
    (see bitbench doctor), or what is measured here cannot be trusted.
    """
    from bitbench.measure.selftest import Outcome, examine

    checks = []
    for check in examine(word):
        checks.append(check)
        if not as_json:
            _show(check)
    failed = [check for check in checks if check.outcome is Outcome.FAIL]
    if as_json:
        import json
        from dataclasses import asdict

        told = {"passed": not failed, "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(told, indent=2))
    elif failed:
        what = "1 check failed" if len(failed) == 1 else f"{len(failed)} checks failed"
        typer.echo(f"\n{what}: times and bytes measured here cannot be trusted now; see bitbench doctor")
    else:
        typer.echo("\nthe ruler is right")
    return int(Exit.TOOL if failed else Exit.OK)


def word(speedup: Mapping[int, float]) -> str:
    """The verdict that a suite would give on this speed-up, one value a launch."""
    from bitbench.analysis.statistics import Series
    from bitbench.analysis.verdicts import judge

    return judge(Series(speedup, "log"), "its twin").word.value


def _show(check: Check) -> None:
    from rich.console import Console
    from rich.text import Text

    style = {"pass": "green", "fail": "red", "n/a": "yellow"}[check.outcome]
    line = Text(f"{check.outcome:<5}", style=style)
    line.append(f"{check.what:<32}", style="bold")
    line.append(check.measured)
    line.append(f"   (known: {check.expected})", style="dim")
    if check.tries > 1:
        line.append(f"   try {check.tries}", style="dim")
    Console().print(line, soft_wrap=True)
