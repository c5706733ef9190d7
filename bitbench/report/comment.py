"""The gate as a pull-request comment that is updated in place ("sticky").

The first line is a hidden marker: whoever posts the comment looks for an earlier one that starts
with it and replaces that. GitHub takes :data:`~bitbench.report.markdown.LIMIT` characters; long
tables are cut to fit and say so, the verdict and what fails never are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined

from bitbench.analysis.comparison import Compared
from bitbench.analysis.gate import GateResult, GateRow, Outcome, Role
from bitbench.analysis.verdicts import Word
from bitbench.report.compared import (
    by_figure,
    difference_table,
    failure,
    figure_table,
    proof_line,
    time_table,
    word,
)
from bitbench.report.markdown import LIMIT, inline, prose, table
from bitbench.report.tables import Table

MARKER = "<!-- bitbench gate: {name} -->"
_FAILING_LISTED = 40
_ROWS = (250, 100, 40, 10, 0)
"""Rows of each table that are tried, most first, until the comment is short enough."""
_TITLES = {
    Outcome.PASSED: "✅ No regression",
    Outcome.FAILED: "❌ Regression",
    Outcome.INCONCLUSIVE: "⚠️ Inconclusive",
    Outcome.BROKEN: "🛑 The gate is broken: nothing can be concluded",
}


@dataclass(frozen=True)
class _Parts:
    """What the template fills in."""

    marker: str
    title: str
    name: str
    reason: str
    sides: str
    contaminated: str
    failing: list[str]
    unlisted: int
    improved: list[str]
    moved: Table | None
    tables: list[Table]
    proof: str
    differences: Table | None
    missing: list[str]
    warnings: list[str]
    notes: list[str]
    command: str


def marker(name: str = "gate") -> str:
    """The hidden first line of the comment called ``name``: several gates keep their own comments."""
    return MARKER.format(name=re.sub(r"[^\w./ -]", "", name).replace("--", "-"))


def comment(result: GateResult, *, name: str = "gate", command: str = "") -> str:
    """The comment in GitHub's Markdown, at most :data:`~bitbench.report.markdown.LIMIT` characters.

    Parameters
    ----------
    name
        Tells the comments of several gates of one pull request apart; usually the suite's name.
    command
        What reproduces the result on the reader's machine. Empty leaves that part out.
    """
    template = _environment().get_template("comment.md.j2")
    text = ""
    for rows in _ROWS:
        text = template.render(gate=_parts(result, name, command, rows))
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        if len(text) <= LIMIT:
            return text
    # Only names thousands of characters long come here: the head of the comment still says it all.
    return text[: LIMIT - 80].rstrip() + "\n\n... cut: too long for a pull request.\n"


def _environment() -> Environment:
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
    return environment


def _parts(result: GateResult, name: str, command: str, rows: int) -> _Parts:
    compared = result.comparison
    seen = by_figure(result.rows)
    failing = [row for row in result.rows if row.fails]
    moved = [found for found in compared.results if found.moved]
    tables = [
        time_table(_worst_first(compared.results, seen), seen, title="All times"),
        figure_table(compared.results, seen, title="All bytes and accuracies"),
    ]
    sides = f"`{_plain(compared.head)}` against `{_plain(compared.base)}`"
    how = "measured in turns on one machine" if compared.paired else "against stored figures"
    return _Parts(
        marker=marker(name),
        title=_TITLES[result.outcome],
        name=name,
        reason=result.reason,
        sides=f"{sides}, {how}. {_counted(result.rows)}",
        contaminated=compared.contaminated,
        failing=[failure(row) for row in failing[: min(rows, _FAILING_LISTED)]],
        unlisted=max(0, len(failing) - min(rows, _FAILING_LISTED)),
        improved=[_improvement(row) for row in result.rows if _faster(row)][:10],
        moved=_cut(figure_table(moved, title="Moved figures"), rows),
        tables=[short for made in tables if (short := _cut(made, rows)) is not None],
        proof=proof_line(result),
        differences=_cut(difference_table(compared), rows),
        missing=[
            *(f"only in the base: {label}" for label in compared.only_base[:rows]),
            *(f"only in the head: {label}" for label in compared.only_head[:rows]),
        ],
        warnings=list(result.warnings),
        notes=list(compared.notes),
        command=command.replace("`", ""),
    )


def _plain(text: str) -> str:
    """Text inside a code span: one line, no backticks."""
    return " ".join(text.replace("`", "'").split())


def _counted(rows: Sequence[GateRow]) -> str:
    """``Figures: 12 gating, 3 only shown, 2 as control.``"""
    told = {Role.GATING: "gating", Role.SHOWN: "only shown", Role.CONTROL: "as control"}
    found = {role: sum(row.role is role for row in rows) for role in told}
    parts = [f"{found[role]} {word}" for role, word in told.items() if found[role]]
    return f"Figures: {', '.join(parts)}." if parts else "No figure was judged."


def _worst_first(results: Sequence[Compared], seen: dict[tuple[str, str], GateRow]) -> list[Compared]:
    """So that a table that is cut loses what matters least; equals keep their order."""
    order = {"slower": 1, "faster": 2, "inconclusive": 3, "not comparable": 3, "same": 4}

    def rank(result: Compared) -> int:
        row = seen.get((result.case.id, result.metric))
        return 0 if row is not None and row.fails else order.get(word(result), 3)

    return sorted(results, key=rank)


def _faster(row: GateRow) -> bool:
    return row.role is Role.GATING and (
        row.compared.moved == "better" or row.compared.verdict.word is Word.FASTER
    )


def _improvement(row: GateRow) -> str:
    return failure(row).partition(" (allowed")[0]


def _cut(data: Table | None, rows: int) -> Table | None:
    """The table with its first ``rows`` rows, and a note that counts the others."""
    if data is None or len(data.rows) <= rows:
        return data
    note = f"{len(data.rows) - rows} more rows are in the job's artifact."
    return replace(data, rows=data.rows[:rows], note=note)
