"""Two versions of the library, or two runs, compared case by case: the records of that. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bitbench.analysis.statistics import Estimate
from bitbench.analysis.verdicts import Verdict, Word
from bitbench.store.schema import Case

Kind = Literal["time", "exact", "accuracy"]
"""How a figure is judged: by its interval over launches, by equality, within a stated tolerance."""

Weight = Literal["hard", "soft"]


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same on both sides."""

    what: str
    """In the user's words: ``processor``, ``torch``, ``threads``."""
    base: str
    head: str
    weight: Weight
    """``hard``: times (or, for ``affects == "accuracy"``, accuracies) cannot be compared.
    ``soft``: they can, with this note."""
    affects: Literal["time", "accuracy", "all"] = "time"


@dataclass(frozen=True)
class Compared:
    """One figure of one case on both sides."""

    case: Case
    metric: str
    """A name in :data:`bitbench.store.metrics.METRICS`."""
    kind: Kind
    verdict: Verdict
    """Its effect is base / head for times: above 1 means that head is faster. Exact and accuracy
    figures are *same*, *moved* (``moved`` says which way), *inconclusive* or *not comparable*."""
    base: Estimate | None = None
    head: Estimate | None = None
    moved: Literal["", "better", "worse"] = ""
    """Exact and accuracy figures: beyond equality or tolerance, and which way. Any figure that is
    *not comparable* because one side alone failed: ``worse`` where that is the head."""
    spread: float | None = None
    """Standard deviation over launches of the log ratio base / head; None where not measured."""
    control: bool = False
    """A case that the change cannot affect (``nn.Linear``): it has to be *same*."""

    @property
    def regressed(self) -> bool:
        return self.verdict.word is Word.SLOWER or self.moved == "worse"


@dataclass(frozen=True)
class Comparison:
    """Everything two sides say about each other."""

    base: str
    """What the base is: a run's name, or a revision such as ``main (1a2b3c4)``."""
    head: str
    paired: bool
    """Measured in turns on one machine; else two runs, each with its own session."""
    differences: tuple[Difference, ...] = ()
    results: tuple[Compared, ...] = ()
    """In plan order."""
    only_base: tuple[str, ...] = ()
    """Labels of cases that the head lacks."""
    only_head: tuple[str, ...] = ()
    contaminated: str = ""
    """Why the session cannot be trusted: a control moved. Empty when it can."""
    notes: tuple[str, ...] = field(default=())

    @property
    def measured(self) -> bool:
        """Whether anything at all could be compared."""
        return any(result.verdict.word is not Word.NOT_COMPARABLE for result in self.results)

    def regressions(self) -> list[Compared]:
        return [result for result in self.results if result.regressed]
