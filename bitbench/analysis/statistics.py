"""Estimates and intervals over replicates. Pure functions on numbers.

The unit of replication is what a workload declares: launches for time, seeds for training,
documents for perplexity, images for accuracy, nothing for bytes. Samples inside one process are
never the unit: two processes running the same code can differ by more than any two blocks of one
process do (memory layout, page placement), and an interval over blocks is blind to that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from bitbench.analysis.student import student_quantile

DISPLAY_CONFIDENCE = 0.95
"""Level of the intervals that are printed."""

MIN_REPLICATES = 3
"""Replicates below which no interval is given. Two leave one degree of freedom: Student's quantile is
then 12.7 at 95 % and 63.7 at 99 %, and two launches 30 % apart give bounds that differ by orders of
magnitude. Such an interval tells a reader nothing; the two values themselves do."""

Scale = Literal["log", "linear", "exact", "share", "change"]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, or without one where no interval can be given."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    """Replicates behind the value."""
    confidence: float = DISPLAY_CONFIDENCE
    exact: bool = False
    """Counted, not measured: it needs no interval."""
    least: float | None = None
    most: float | None = None
    """Smallest and largest replicate where there are several, yet too few for an interval."""

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The range to judge by: the interval, the value itself where exact, else None."""
        if self.exact:
            return self.value, self.value
        if self.low is None or self.high is None:
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Series:
    """One figure, one value per replicate.

    ``values`` maps the number of the replicate (launch, seed, document) to its value; the number
    is what pairs two series. ``scale`` says on which scale the replicates scatter evenly:
    ``log`` for times, rates and ratios, ``linear`` for mean shares and bits, ``exact`` for counts,
    ``share`` where a replicate is right (1) or wrong (0), ``change`` for differences of two such.
    """

    values: Mapping[int, float]
    scale: Scale

    def estimate(self, confidence: float = DISPLAY_CONFIDENCE) -> Estimate:
        """Mean over replicates, on the series' own scale, with its interval."""
        values = list(self.values.values())
        if self.scale == "exact":
            return Estimate(values[0], n=len(values), confidence=confidence, exact=True)
        if self.scale == "log":
            return log_mean(values, confidence)
        if self.scale == "share":
            return share(values, confidence)
        if self.scale == "change":
            return change(values, confidence)
        return linear_mean(values, confidence)

    def ratio_to(self, other: Series) -> Series | None:
        """``self / other``, replicate by replicate; None where they share no replicate, and for what is
        right or wrong: see :meth:`minus`.

        Notes
        -----
        Both sides of a replicate were measured side by side (same process, same document, same
        seed), so what is common to both cancels before the spread is taken.
        """
        if self.scale == "exact" and other.scale == "exact":
            return Series({0: _first(self) / _first(other)}, "exact")
        shared = self._shared(other)
        if not shared or self.scale in ("share", "change"):
            return None
        return Series({key: self.values[key] / other.values[key] for key in shared}, "log")

    def minus(self, other: Series) -> Series | None:
        """``self - other`` of two shares, replicate by replicate; None where they share no replicate."""
        shared = self._shared(other)
        if not shared:
            return None
        return Series({key: self.values[key] - other.values[key] for key in shared}, "change")

    def _shared(self, other: Series) -> list[int]:
        return [key for key in self.values if key in other.values]


def _first(series: Series) -> float:
    return next(iter(series.values.values()))


def launch_latency(samples_ns: Sequence[int], calls: int) -> float:
    """Seconds a call took in one launch: the median over its timed blocks.

    Notes
    -----
    The median, because interruptions only ever lengthen a block: the mean would report the
    scheduler, the minimum a best case that no user sees.
    """
    return statistics.median(samples_ns) / calls * 1e-9


def launch_mean(samples_ns: Sequence[int], calls: int) -> float:
    """Seconds a call took in one launch: the mean over its timed blocks, interruptions included."""
    return statistics.fmean(samples_ns) / calls * 1e-9


def linear_mean(values: Sequence[float], confidence: float = DISPLAY_CONFIDENCE) -> Estimate:
    """Arithmetic mean with a Student interval, or below :data:`MIN_REPLICATES` with the range.

    Notes
    -----
    Assumes independent replicates with a roughly normal spread. With the few replicates that
    are affordable (five launches), Student's quantile carries the uncertainty of the spread
    itself; a bootstrap of five values would give intervals far too short.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < MIN_REPLICATES:
        least, most = (min(values), max(values)) if n > 1 else (None, None)
        return Estimate(mean, n=n, confidence=confidence, least=least, most=most)
    if not math.isfinite(mean):
        return Estimate(mean, n=n, confidence=confidence)
    half = student_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance(values, mean) / n)
    return Estimate(mean, mean - half, mean + half, n, confidence)


def share(values: Sequence[float], confidence: float = DISPLAY_CONFIDENCE) -> Estimate:
    """Share of ones among ``values`` of 0 and 1, with Wilson's interval.

    Notes
    -----
    Wilson, Journal of the American Statistical Association 22 (1927): the shares that a normal test with
    the variance of a binomial count would not reject. Unlike the mean plus and minus its error it has
    the coverage it claims near 0 and 1 too, where none or all are right: it has a width even there.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < MIN_REPLICATES:
        return Estimate(mean, n=n, confidence=confidence)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    middle = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and 1 the bound is the share itself, but for rounding.
    return Estimate(mean, min(mean, middle - half), max(mean, middle + half), n, confidence)


def change(values: Sequence[float], confidence: float = DISPLAY_CONFIDENCE) -> Estimate:
    """Mean of ``values`` of -1, 0 and +1, each what one side has right less what the other has.

    Notes
    -----
    Agresti and Min, Statistics in Medicine 24 (2005): the normal interval of a difference of two shares
    of the same things, after half a thing is added to each of the four outcomes (both right, one, the
    other, none). What both have right or wrong cancels, so that the interval is far shorter than
    those of the two shares suggest; and it has a width where all outcomes were the same.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < MIN_REPLICATES:
        return Estimate(mean, n=n, confidence=confidence)
    gained = sum(value > 0 for value in values) + 0.5
    lost = sum(value < 0 for value in values) + 0.5
    total = n + 2
    middle = (gained - lost) / total
    scatter = gained + lost - (gained - lost) ** 2 / total
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(scatter) / total
    return Estimate(mean, middle - half, middle + half, n, confidence)


def variance(values: Sequence[float], mean: float) -> float:
    """Unbiased variance of at least two values around their ``mean``."""
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def log_mean(values: Sequence[float], confidence: float = DISPLAY_CONFIDENCE) -> Estimate:
    """Geometric mean with an interval from the logarithms. Values must be positive.

    Notes
    -----
    Disturbances of a time act as factors, so logarithms scatter evenly; the interval of a ratio
    is then the mirror image of the interval of its inverse, and no bound can be negative.
    """
    logs = linear_mean([math.log(value) for value in values], confidence)
    return Estimate(
        value=_exp(logs.value),
        low=None if logs.low is None else _exp(logs.low),
        high=None if logs.high is None else _exp(logs.high),
        n=logs.n,
        confidence=confidence,
        least=None if logs.least is None else min(values),
        most=None if logs.most is None else max(values),
    )


def replicates(n: int) -> str:
    """``1 replicate gives``, ``2 replicates give``: the start of a reason."""
    return "1 replicate gives" if n == 1 else f"{n} replicates give"


def _exp(x: float) -> float:
    """Exponential that answers infinity where a double cannot hold the result."""
    return math.exp(x) if x < 709.0 else math.inf
