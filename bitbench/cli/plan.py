"""``bitbench plan``: what a run would do, without torch and without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.suite.expand import Plan


def plan(
    suite: Path = typer.Argument(..., metavar="SUITE", help="Suite file.", show_default=False),
    quick: bool = typer.Option(False, "--quick", help="The plan of a quick run."),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    launches: int = typer.Option(None, "--launches", min=1, help="Launches in place of the suite's."),
    seed: int = typer.Option(None, "--seed", min=0, help="Seed in place of the suite's."),
    device: str = typer.Option(
        None, "--device", metavar="cpu|cuda", help="Leave out other devices' entries."
    ),
    as_json: bool = typer.Option(False, "--json", help="The plan as JSON, case ids included."),
    resolved: bool = typer.Option(
        False, "--resolved", help="The suite with every default spelt out, as YAML."
    ),
) -> None:
    """Show the points, layers, launches and estimated time of a suite."""
    from bitbench.cli.run import device_name
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite

    loaded = load_suite(suite)
    if resolved:
        import yaml

        typer.echo(yaml.safe_dump(loaded.resolved(), sort_keys=False, width=100), nl=False)
        return
    made = expand(
        loaded, quick=quick, only=only or None, launches=launches, seed=seed, device=device_name(device)
    )
    if as_json:
        import json

        typer.echo(json.dumps(as_data(made), indent=2))
        return
    from rich.console import Console

    show(made, Console())


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    return {
        "suite": plan.suite.name,
        "quick": plan.quick,
        "launches": plan.launches,
        "seed": plan.seed,
        "estimate_s": round(plan.estimate_seconds(), 1),
        "data": plan.data(),
        "points": [
            {
                "id": point.id,
                "workload": point.workload,
                "params": point.params,
                "phase": point.phase,
                "replicate": point.replicate,
                "launches": point.launches,
                "layers": point.layers,
                "estimate_s": round(plan.point_seconds(point), 2),
            }
            for point in plan.points
        ],
        "cases": [case.model_dump(mode="json") for case in plan.cases],
    }


def show(plan: Plan, console: Console) -> None:
    """Print the plan: a table on a terminal, lines of columns elsewhere (``grep`` and ``cut``)."""
    rows = [
        (
            point.label,
            _times(point.launches, point.replicate),
            _layers(point.layers, plan),
            duration(plan.point_seconds(point)),
        )
        for point in plan.points
    ]
    head = ("point", "measured", "layers", "time")
    if console.is_terminal:
        from rich.table import Table

        table = Table(*head, box=None, header_style="bold", pad_edge=False)
        table.columns[3].justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        for row in (head, *rows):
            print("\t".join(row), file=console.file)
    print(
        f"{plan.suite.name}: {plan.counts()}; about {duration(plan.estimate_seconds())}",
        file=console.file,
    )
    data = plan.data()
    if data:
        print(f"data: {', '.join(data)} (fetched once, then cached)", file=console.file)


def _times(count: int, replicate: str) -> str:
    one, many = {
        "launches": ("1 launch", f"{count} launches"),
        "seeds": ("1 seed", f"{count} seeds"),
        "exact": ("once, exact", f"{count} times, exact"),
        "documents": ("once, by document", f"{count} times, by document"),
        "images": ("once, by image", f"{count} times, by image"),
    }[replicate]
    return one if count == 1 else many


def _layers(names: list[str], plan: Plan) -> str:
    everything = list(plan.suite.layers)
    missing = [n for n in everything if n not in names]
    if not missing:
        return f"all {len(everything)}"
    if len(missing) * 2 < len(everything) and len(missing) <= 2:
        return f"all but {', '.join(missing)}"
    return ", ".join(names)


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``7 min 30 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
