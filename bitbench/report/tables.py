"""Tables as data: what a cell says, how it sorts, where it comes from. Renderings come after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bitbench.analysis.statistics import Estimate
from bitbench.analysis.verdicts import Verdict, Word
from bitbench.report.numbers import ABSENT, interval, percent
from bitbench.report.numbers import estimate as number


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    notes: tuple[str, ...] = ()
    """Smaller lines below the text: an interval, a second figure."""
    sort: float | str | None = None
    """Key to sort by; None means the text."""
    tone: str = ""
    """``good``, ``bad``, ``warn`` or ``muted``: colour, always beside a word that says the same."""
    case: str = ""
    """Id of the case behind the figure."""
    code: bool = False
    """Set in a fixed-width face: a name from the suite."""
    badge: bool = False

    @property
    def sort_key(self) -> str:
        if self.sort is None:
            return self.text
        return f"{self.sort:.9g}" if isinstance(self.sort, float) else self.sort


@dataclass(frozen=True)
class Column:
    title: str
    help: str = ""
    """What the column holds, shown when pointed at."""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    id: str
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    note: str = ""
    filterable: bool = False
    html_only: bool = False
    """Too long for a pull request."""


@dataclass(frozen=True)
class Figure:
    id: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    prose: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    folded: bool = False
    """Shown closed at first."""


def absent(why: str = "") -> Cell:
    """A cell without a figure, and why. Sorts last."""
    return Cell(ABSENT, (why,) if why else (), sort=float("inf"), tone="muted")


def name_cell(name: str, note: str = "") -> Cell:
    return Cell(name, (note,) if note else (), code=True)


def share_cell(found: Estimate | None, *, case: str) -> Cell:
    """A share as a percentage."""
    return absent() if found is None else Cell(percent(found.value), sort=found.value, case=case)


def figure_cell(
    found: Estimate | None, unit: str = "", *, case: str = "", notes: Sequence[str] = (), why: str = ""
) -> Cell:
    """A figure with its interval on the line below."""
    if found is None:
        return absent(why)
    lines = tuple(line for line in (interval(found, unit), *notes) if line)
    return Cell(number(found, unit), lines, sort=float(found.value), case=case)


def without_empty(table: Table) -> Table:
    """The table without the columns of which this run measured nothing. A column that is empty
    because something failed stays, with the reason."""
    kept = [
        i
        for i in range(len(table.columns))
        if not table.rows or any(row[i].text != ABSENT or row[i].notes for row in table.rows)
    ]
    return replace(
        table, columns=[table.columns[i] for i in kept], rows=[[row[i] for i in kept] for row in table.rows]
    )


def verdict_tone(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    return {Word.FASTER: "good", Word.SLOWER: "bad", Word.SAME: "", Word.INCONCLUSIVE: "muted"}.get(
        verdict.word, "warn"
    )
