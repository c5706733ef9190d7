"""``bitbench validate``: is a suite sound?"""

from __future__ import annotations

from pathlib import Path

import typer


def validate(
    suites: list[Path] = typer.Argument(None, metavar="SUITE...", help="Suite files.", show_default=False),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON Schema of suites, for editors."),
) -> None:
    """Check suites without running anything: every problem at once, with file and line."""
    from bitbench.errors import Exit, UserError
    from bitbench.suite.expand import counted, expand
    from bitbench.suite.load import json_schema, load_suite
    from bitbench.suite.problems import SuiteError

    if schema:
        import json

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if not suites:
        raise UserError("no suite given", "name one or more suite files, or ask for --schema")
    broken = False
    for path in suites:
        try:
            suite = load_suite(path)
        except SuiteError as error:
            typer.echo(f"error: {error}", err=True)
            broken = True
            continue
        plan = expand(suite)
        sizes = {
            "layer": suite.layers,
            "point": plan.points,
            "case": plan.cases,
            "claim": suite.claims,
        }
        counts = (counted(len(things), name) for name, things in sizes.items())
        typer.echo(f"{path}: sound; {', '.join(counts)}")
    if broken:
        raise typer.Exit(int(Exit.USAGE))
