"""Reporters by name: what turns a run into files.

Peers add theirs through the entry-point group ``bitbench.reporters``; they write only when asked
for by name (``bitbench report RUN --reporter NAME``), so that installing a package never changes
what a run leaves behind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from bitbench.plugins import Registry

if TYPE_CHECKING:
    from bitbench.analysis.summary import Summary
    from bitbench.report.context import ReportContext


class Source:
    """What reporters render from. Each part is made once, when first asked for."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    @cached_property
    def context(self) -> ReportContext:
        """Sections, tables and plots, as the built-in reports show them."""
        from bitbench.report import context, plots

        return context.context_of(self.summary, plots.figures(self.summary))


class Reporter(ABC):
    """One way to tell a run. Stateless; registered once under its name. Imports no torch."""

    name: ClassVar[str]

    @abstractmethod
    def files(self, source: Source) -> Mapping[str, str]:
        """File names (no folders) and their text, which is written as UTF-8."""


class Html(Reporter):
    name = "html"

    def files(self, source: Source) -> Mapping[str, str]:
        from bitbench.report import html

        return {"index.html": html.render(source.context)}


class Markdown(Reporter):
    name = "markdown"

    def files(self, source: Source) -> Mapping[str, str]:
        from bitbench.report import markdown

        return {"report.md": markdown.render(source.context)}


class Csv(Reporter):
    name = "csv"

    def files(self, source: Source) -> Mapping[str, str]:
        from bitbench.report import csv

        return {"cases.csv": csv.render(source.summary)}


BUILTIN = ("html", "markdown", "csv")
"""What every report consists of."""

REGISTRY: Registry[Reporter] = Registry(
    "bitbench.reporters",
    "reporter",
    Reporter,  # type: ignore[type-abstract]
    {
        "html": "bitbench.report.reporters:Html",
        "markdown": "bitbench.report.reporters:Markdown",
        "csv": "bitbench.report.reporters:Csv",
    },
)
