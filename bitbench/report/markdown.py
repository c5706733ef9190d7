"""The report as Markdown, fit for a pull request."""

from __future__ import annotations

import re
from dataclasses import replace

from jinja2 import Environment, PackageLoader, StrictUndefined
from tabulate import tabulate

from bitbench.report.context import ReportContext
from bitbench.report.tables import Cell, Table

_SPECIAL = re.compile(r"([\\`*|~]|\](?=[(\[:]))")
"""What starts markup inside a line; a bracket only before what would make it a link."""


LIMIT = 65_536
"""Characters that a pull request takes."""
_KEPT = ("overview", "failures")
"""Sections whose tables stay whatever their length: the answer, and what is missing from it."""


def render(context: ReportContext) -> str:
    """The report without plots and without the table of every case.

    Where it would be longer than :data:`LIMIT`, the longest folded tables are replaced by a line
    that says where they are, until it fits.
    """
    text = _render(context)
    while len(text) > LIMIT:
        found = [
            data
            for section in context.sections
            for data in section.tables
            if section.id not in _KEPT and not data.html_only
        ]
        if not found:
            break
        context = _without(context, max(found, key=lambda data: len(table(data))).id)
        text = _render(context)
    return text


def _without(context: ReportContext, table_id: str) -> ReportContext:
    """The context with one table left to the HTML."""
    sections = []
    for section in context.sections:
        prose, tables = list(section.prose), []
        for data in section.tables:
            if data.id == table_id:
                prose.append(f"{data.title}: too long for a pull request; see `index.html` or `cases.csv`.")
                data = replace(data, html_only=True)
            tables.append(data)
        sections.append(replace(section, prose=prose, tables=tables))
    return replace(context, sections=sections)


def _render(context: ReportContext) -> str:
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
