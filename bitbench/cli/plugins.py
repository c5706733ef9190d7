"""``bitbench plugins``: which layers, workloads and reporters there are, and whether they work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from bitbench.errors import Exit

if TYPE_CHECKING:
    from bitbench.plugins import Plugin

_KINDS = {
    "bitbench.layers": "layer",
    "bitbench.workloads": "workload",
    "bitbench.reporters": "reporter",
}


def plugins(as_json: bool = typer.Option(False, "--json", help="The list as JSON.")) -> int:
    """List layer kinds, workload kinds and reporters with the package that brings each.

    Every one is loaded with torch out of reach, as on a machine that only plans and reports, and
    the cost models of layers are tried. Ends with 3 where one is broken, else with 0.
    """
    from bitbench.plugin_check import examine_all

    found = examine_all()
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"plugins": [asdict(plugin) for plugin in found]}, indent=2))
    else:
        _show(found)
    return int(Exit.TOOL if any(plugin.fault for plugin in found) else Exit.OK)


def _show(found: list[Plugin]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in ("kind", "name", "package", "class"):
        table.add_column(title, overflow="fold")
    broken = [plugin for plugin in found if plugin.fault]
    for plugin in found:
        package = " ".join(filter(None, (plugin.package or "unknown", plugin.version)))
        mark = Text(plugin.name, style="red" if plugin.fault else "")
        table.add_row(_KINDS[plugin.group], mark, Text(package), Text(plugin.target))
    console = Console()
    console.print(table)
    for plugin in broken:
        console.print(
            Text(f"broken: {_KINDS[plugin.group]} {plugin.name!r}: {plugin.fault}", "red"), soft_wrap=True
        )
