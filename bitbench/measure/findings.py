"""What an examination of the machine finds: see :mod:`bitbench.measure.fitness`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    FIT = "fit"
    DEGRADED = "degraded"
    UNFIT = "unfit"


@dataclass(frozen=True)
class Finding:
    """One fact about the machine and what it means for measuring."""

    what: str
    level: Level
    found: str
    why: str = ""
    """What it does to the numbers. A fit machine may have such facts too: things worth knowing."""
    remedy: str = ""
    """The command that mends it, or where no command does, what to do."""


def fit(what: str, found: str, why: str = "", remedy: str = "") -> Finding:
    return Finding(what, Level.FIT, found, why, remedy)


def degraded(what: str, found: str, why: str, remedy: str) -> Finding:
    return Finding(what, Level.DEGRADED, found, why, remedy)


def unfit(what: str, found: str, why: str, remedy: str) -> Finding:
    return Finding(what, Level.UNFIT, found, why, remedy)
