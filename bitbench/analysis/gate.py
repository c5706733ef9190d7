"""The gate: which differences between two versions turn the build red, and whether to believe it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bitbench.analysis.comparison import Compared, Comparison
from bitbench.errors import Exit


class Role(StrEnum):
    """What a compared figure counts for."""

    GATING = "gating"
    SHOWN = "shown"  # measured and listed, but too noisy here, or never calibrated, to decide anything
    CONTROL = "control"  # the change cannot affect it: it must be the same
    PROOF = "proof"  # the gate's own null pair and injected slowdown


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    BROKEN = "broken"  # the gate could not prove itself, or nothing was measured


@dataclass(frozen=True)
class GateRow:
    """One figure as the gate sees it."""

    compared: Compared
    role: Role
    threshold: float
    """Relative slowdown beyond which it fails: its own, from calibration. 0 for exact figures."""
    why: str = ""
    """Why it is only shown: ``spread 4.1 % exceeds 3 %``, ``never calibrated on this machine``."""

    @property
    def fails(self) -> bool:
        return self.role is Role.GATING and self.compared.regressed


@dataclass(frozen=True)
class Proof:
    """Whether the gate sees what it must see in this very run."""

    null: Compared | None
    """One thing against itself: must be *same*."""
    slowed: Compared | None
    """Head slowed down on purpose: must be *slower*."""
    slowdown: float
    """By how much."""
    failure: str = ""
    """Why the proof failed; empty when it holds."""


@dataclass(frozen=True)
class GateResult:
    """What the gate answers, and why."""

    comparison: Comparison
    rows: tuple[GateRow, ...]
    outcome: Outcome
    reason: str
    """One line: ``2 of 14 gating figures are worse``."""
    proof: Proof | None = None
    """None where nothing was timed in turns (a stored run against a baseline)."""
    warnings: tuple[str, ...] = ()

    def exit_code(self, *, strict: bool = False) -> Exit:
        if self.outcome is Outcome.BROKEN:
            return Exit.TOOL
        if self.outcome is Outcome.FAILED:
            return Exit.FAILED
        if self.outcome is Outcome.INCONCLUSIVE and strict:
            return Exit.INCONCLUSIVE
        return Exit.OK
