"""The command line: one subcommand a file. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from bitbench.errors import Exit, UserError

COMMANDS = (
    *("run", "validate", "plan", "report", "claims", "compare", "gate", "calibrate", "rates", "baseline"),
    *("history", "data", "doctor", "selftest", "plugins"),
)
"""Each is a function of that name in the module ``bitbench.cli.<name>``, with typer options as
its defaults; its docstring is its help."""


def create_app() -> typer.Typer:
    """The typer application with all commands."""
    made = typer.Typer(
        name="bitbench",
        help="Benchmark binary, ternary and k-ternary layers, and check what is claimed of them.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # flows the docstrings' lines into paragraphs
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        made.command(name)(_to_the_end(getattr(importlib.import_module(f"bitbench.cli.{name}"), name)))
    made.callback(result_callback=_leave)(_root)
    return made


def _to_the_end(command: Callable[..., object]) -> Callable[..., object]:
    """``command`` so that a reader who leaves (``| head``) ends it with 3.

    Rich and click answer that with 1, which here says that a claim failed.
    """

    @functools.wraps(command)
    def called(*args: Any, **options: Any) -> object:
        try:
            return command(*args, **options)
        except (BrokenPipeError, SystemExit) as error:  # rich turns the one into the other
            if isinstance(error, SystemExit) and error.code != 1:
                raise
            with open(os.devnull, "w") as nowhere:  # or the interpreter's last flush would complain
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            return int(Exit.TOOL)

    return called


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"bitbench {version('bitbench')}")
    except PackageNotFoundError:
        typer.echo("bitbench, run from its sources without being installed")
    raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and leave.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Options of the program itself."""


def _leave(code: object, **_: object) -> None:
    """What a command returns is its exit code; None means fine."""
    if isinstance(code, int):
        raise typer.Exit(int(code))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (see :class:`bitbench.errors.Exit`).

    Mistakes of the user become one message on stderr; anything else is a fault of the tool and
    keeps its traceback. Typer answers wrong usage with 2 and an interrupt with 130.
    """
    try:
        create_app()(arguments, prog_name="bitbench")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(Exit.OK)
    return int(Exit.OK)
