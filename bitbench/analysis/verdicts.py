"""One word on two things measured side by side: faster, slower, same, inconclusive."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bitbench.analysis.statistics import Estimate, Series, replicates

JUDGE_CONFIDENCE = 0.99
"""Level of every decision. A report holds a few hundred comparisons: at 95 % several would be
wrong by chance alone; at 99 %, together with the minimum effect, hardly one is."""

MINIMUM_EFFECT = 0.01
"""Differences within 1 % count as none: the same code built in another order differs by up to
that much from launch to launch, and nobody chooses a layer for it."""


class Word(StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Verdict:
    """A decision and what it rests on."""

    word: Word
    against: str
    """Name of the layer, run or revision compared with."""
    reason: str = ""
    effect: Estimate | None = None
    """Speed-up with its interval at :data:`JUDGE_CONFIDENCE`: 1.05 means 5 % faster than ``against``."""
    minimum_effect: float = MINIMUM_EFFECT
    """Relative difference up to which two things count as the same here."""
    detectable: float | None = None
    """Smallest relative difference that this many launches of this spread would have shown to lie
    beyond the minimum effect with a probability of 80 %; None without an interval."""
    p: float | None = None
    """One-sided p-value of *slower* (of *faster* where that is the word) against the minimum effect,
    corrected for the number of cases judged together where ``corrected_over`` > 1."""
    corrected_over: int = 1
    """Cases judged together (Benjamini-Hochberg); 1 means uncorrected."""
    rounds: int = 1
    """2 where a confirmation round of fresh launches in reversed order was made."""


def judge(speedup: Series, against: str) -> Verdict:
    """Verdict on a speed-up measured launch by launch.

    Notes
    -----
    With the interval at 99 % and the minimum effect e: *faster* if it lies wholly above 1 + e,
    *slower* if wholly below 1 / (1 + e), *same* if wholly between the two (equivalence is shown,
    not assumed), else *inconclusive*. The bounds are reciprocal, so that swapping the two layers
    swaps the words. Fewer than three launches give no interval and therefore no decision.
    """
    effect = speedup.estimate(JUDGE_CONFIDENCE)
    if effect.low is None or effect.high is None:
        return Verdict(Word.INCONCLUSIVE, against, f"{replicates(effect.n)} no interval", effect)
    upper = 1 + MINIMUM_EFFECT
    lower = 1 / upper
    if effect.low > upper:
        word = Word.FASTER
    elif effect.high < lower:
        word = Word.SLOWER
    elif effect.low >= lower and effect.high <= upper:
        word = Word.SAME
    else:
        return Verdict(Word.INCONCLUSIVE, against, "the interval reaches across a bound", effect)
    return Verdict(word, against, "", effect)


def not_comparable(against: str, reason: str) -> Verdict:
    """Verdict where one side has no number to be believed."""
    return Verdict(Word.NOT_COMPARABLE, against, reason)
