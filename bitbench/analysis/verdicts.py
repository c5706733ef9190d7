"""One word on two things measured side by side: faster, slower, same, inconclusive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from bitbench.analysis.discovery import benjamini_hochberg
from bitbench.analysis.moderation import Prior, moderate
from bitbench.analysis.statistics import MIN_REPLICATES, Estimate, Series, log_mean, replicates, variance
from bitbench.analysis.student import student_quantile, student_tail

JUDGE_CONFIDENCE = 0.99
"""Level of every decision. A report holds a few hundred comparisons: at 95 % several would be
wrong by chance alone; at 99 %, together with the minimum effect, hardly one is."""

MINIMUM_EFFECT = 0.01
"""Differences within 1 % count as none: the same code built in another order differs by up to
that much from launch to launch, and nobody chooses a layer for it."""

DETECTION = 0.8
"""Probability for which :attr:`Verdict.detectable` is stated."""

ONE_SIDED = (1 - JUDGE_CONFIDENCE) / 2


class Word(StrEnum):
    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not comparable"
    MOVED = "moved"  # figures that are counted, not timed: no longer equal


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
    p_slower: float | None = None
    """One-sided p-value of *slower*, as measured, never corrected."""
    p_faster: float | None = None
    """One-sided p-value of *faster*, as measured, never corrected."""


def judge(
    speedup: Series, against: str, *, minimum_effect: float = MINIMUM_EFFECT, prior: Prior | None = None
) -> Verdict:
    """Verdict on a speed-up measured launch by launch.

    Notes
    -----
    With the interval at 99 % and the minimum effect e: *faster* if it lies wholly above 1 + e,
    *slower* if wholly below 1 / (1 + e), *same* if wholly between the two (equivalence is shown,
    not assumed), else *inconclusive*. The bounds are reciprocal, so that swapping the two layers
    swaps the words. Fewer than three launches give no interval and therefore no decision.

    The interval is Student's; with a ``prior`` from like cases its variance is moderated
    (:mod:`bitbench.analysis.moderation`).
    """
    values = list(speedup.values.values())
    if len(values) < MIN_REPLICATES:
        return undecided(values, against, minimum_effect)
    return judge_logs([math.log(v) for v in values], against, minimum_effect=minimum_effect, prior=prior)


def judge_logs(
    logs: Sequence[float],
    against: str = "",
    *,
    minimum_effect: float = MINIMUM_EFFECT,
    prior: Prior | None = None,
) -> Verdict:
    """:func:`judge` for logarithms of the speed-up, one a launch."""
    n = len(logs)
    if n < MIN_REPLICATES:
        return undecided([math.exp(x) for x in logs], against, minimum_effect)
    mean = math.fsum(logs) / n
    spread, df = moderate(variance(logs, mean), n - 1, prior)
    return _decide(mean, math.sqrt(spread / n), df, n, against, minimum_effect)


def judge_unpaired(
    base: Sequence[float],
    head: Sequence[float],
    against: str = "",
    *,
    minimum_effect: float = MINIMUM_EFFECT,
    prior: Prior | None = None,
) -> Verdict:
    """Verdict on two sides that share no launch; effect is the difference of their means.

    ``base`` and ``head`` are logarithms of a speed-up (of the same figure against the same
    reference), one a launch; above 1 means that head's is larger.

    Notes
    -----
    Each side keeps its own variance, moderated by ``prior``; degrees of freedom by Welch and
    Satterthwaite. Equal spreads are not assumed: the sides come from two sessions.
    """
    counts = len(base), len(head)
    if min(counts) < MIN_REPLICATES:
        why = f"{replicates(min(counts))} no interval"
        return Verdict(Word.INCONCLUSIVE, against, why, minimum_effect=minimum_effect)
    means = [math.fsum(side) / len(side) for side in (base, head)]
    squares, dfs = [], []
    for side, mean in zip((base, head), means, strict=True):
        spread, df = moderate(variance(side, mean), len(side) - 1, prior)
        squares.append(spread / len(side))
        dfs.append(df)
    total = sum(squares)
    df = total**2 / sum(s * s / d for s, d in zip(squares, dfs, strict=True)) if total > 0 else min(dfs)
    return _decide(means[1] - means[0], math.sqrt(total), df, min(counts), against, minimum_effect)


def undecided(values: Sequence[float], against: str, minimum_effect: float = MINIMUM_EFFECT) -> Verdict:
    """Verdict on too few launches: nothing is decided by them."""
    effect = log_mean(values, JUDGE_CONFIDENCE) if values else None
    why = f"{replicates(len(values))} no interval"
    return Verdict(Word.INCONCLUSIVE, against, why, effect, minimum_effect)


def not_comparable(against: str, reason: str) -> Verdict:
    """Verdict where one side has no number to be believed."""
    return Verdict(Word.NOT_COMPARABLE, against, reason)


def correct(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same verdicts as one family, in the order given.

    Notes
    -----
    The p-values of *slower* are corrected over all that have an interval (Benjamini-Hochberg), and
    those of *faster* for themselves: many gains must not make a false alarm easier. A *faster* or
    *slower* that does not survive becomes *inconclusive*. *Same* needs no correction: it is shown
    by its interval, and calling a small difference none harms nobody.
    """
    judged = [i for i, v in enumerate(verdicts) if v.p_slower is not None]
    slower = dict(zip(judged, benjamini_hochberg([verdicts[i].p_slower or 0.0 for i in judged]), strict=True))
    faster = dict(zip(judged, benjamini_hochberg([verdicts[i].p_faster or 0.0 for i in judged]), strict=True))
    result = list(verdicts)
    for i in judged:
        verdict = verdicts[i]
        p = faster[i] if verdict.word is Word.FASTER else slower[i]
        result[i] = replace(verdict, p=p, corrected_over=len(judged))
        if verdict.word in (Word.FASTER, Word.SLOWER) and p > ONE_SIDED:
            why = f"does not stand out among {len(judged)} cases judged together"
            result[i] = replace(result[i], word=Word.INCONCLUSIVE, reason=why)
    return result


def _decide(mean: float, error: float, df: float, n: int, against: str, minimum_effect: float) -> Verdict:
    """Word for a mean log ratio with its standard error and degrees of freedom."""
    bound = math.log1p(minimum_effect)
    quantile = student_quantile(1 - ONE_SIDED, df)
    low, high = mean - quantile * error, mean + quantile * error
    effect = Estimate(_exp(mean), _exp(low), _exp(high), n, JUDGE_CONFIDENCE)
    p_slower, p_faster = _tail(-mean - bound, error, df), _tail(mean - bound, error, df)
    reason = ""
    if low > bound:
        word = Word.FASTER
    elif high < -bound:
        word = Word.SLOWER
    elif low >= -bound and high <= bound:
        word = Word.SAME
    else:
        word, reason = Word.INCONCLUSIVE, "the interval reaches across a bound"
    detectable = _exp(bound + (quantile + student_quantile(DETECTION, df)) * error) - 1
    p = p_faster if word is Word.FASTER else p_slower
    return Verdict(
        word,
        against,
        reason,
        effect,
        minimum_effect,
        detectable,
        p,
        p_slower=p_slower,
        p_faster=p_faster,
    )


def _tail(beyond: float, error: float, df: float) -> float:
    """One-sided p-value of a mean that lies ``beyond`` its bound; without any spread it is certain."""
    if error == 0.0:
        return 0.0 if beyond > 0 else 1.0
    return student_tail(beyond / error, df)


def _exp(x: float) -> float:
    """Exponential that answers infinity where a double cannot hold the result."""
    return math.exp(x) if x < 709.0 else math.inf
