"""One HTML file that opens offline: style, script and plots inside it, nothing fetched."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bitbench.report.context import ReportContext
from bitbench.report.tables import Cell, Section


def render(context: ReportContext) -> str:
    """The report as one HTML document. Every text is escaped; only the plots are markup."""
    environment = Environment(
        loader=PackageLoader("bitbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    environment.filters["markup"] = Markup
    template = environment.get_template("index.html.j2")
    return template.render(report=context, targets=_targets(context))


def prose(text: str) -> Markup:
    """Escaped text in which ``**strong**`` and ```code``` are set as such."""
    marked = str(escape(text))
    marked = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", marked)
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", marked))


def _targets(context: ReportContext) -> set[str]:
    """Ids of cases that have a row of their own to link to."""
    return {cell.case for section in context.sections for cell in _anchors(section) if cell.case}


def _anchors(section: Section) -> list[Cell]:
    return [row[0] for table in section.tables for row in table.rows] if section.id == "cases" else []
