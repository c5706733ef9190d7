"""The report as Markdown, fit for a pull request."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from bitbench.report.context import ReportContext
from bitbench.report.tables import Cell, Table

_SPECIAL = re.compile(r"([\\`*|~]|\](?=[(\[:]))")
"""What starts markup inside a line; a bracket only before what would make it a link."""


def render(context: ReportContext) -> str:
    """The report without plots and without the table of every case."""
    environment = Environment(
        loader=PackageLoader("bitbench.report"),
        autoescape=False,  # not HTML: the filters below escape what Markdown reads
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = table
    environment.filters["inline"] = inline
    environment.filters["prose"] = prose
    text = environment.get_template("report.md.j2").render(report=context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def inline(text: str) -> str:
    """Data as literal text on one line: nothing in it is read as Markdown or HTML."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def prose(text: str) -> str:
    """A sentence of ours: it may hold ``**strong**`` and code, but no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def table(data: Table) -> str:
    """A pipe table; the smaller lines of a cell follow after a line break.

    Columns are not padded: a pull request takes 65,536 characters, and padding is half of a table.
    """
    padded = tabulate(
        [[cell(item) for item in row] for row in data.rows],
        headers=[inline(column.title) for column in data.columns],
        tablefmt="pipe",
        colalign=["right" if column.numeric else "left" for column in data.columns],
        disable_numparse=True,
    )
    return re.sub(r"-{4,}", "---", re.sub(r" {2,}", " ", padded))


def cell(item: Cell) -> str:
    """``**pass**``, ``20.0x<br>[19.8, 20.2]``."""
    head = inline(item.text)
    if head and item.badge:
        head = f"**{head}**"
    return "<br>".join([head, *(inline(note) for note in item.notes)])
