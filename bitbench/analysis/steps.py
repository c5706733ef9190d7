"""Steps in a history: when did a figure change its level, and by how much? Pure functions.

A history is fitted by a function that is constant between a few jumps. Every jump costs a penalty,
so that the fit follows changes of level and not the scatter of single values.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

MINIMUM_STEP = 0.02
"""Relative change below which a step is not worth telling. Two runs of the same code on different
days differ by about one per cent."""

MINIMUM_VALUES = 4
"""Values below which no step is told: nothing shows how far they scatter."""

_NORMAL_MAD = 0.6744897501960817
"""Median of the absolute value of a standard normal variable."""
_TINY = 1e-12


@dataclass(frozen=True)
class Segment:
    """A stretch of one level: values ``start`` to ``stop`` - 1."""

    start: int
    stop: int
    level: float
    """Geometric mean of its values (arithmetic on a linear scale)."""


@dataclass(frozen=True)
class Step:
    """A change of level."""

    at: int
    """Position of the first value of the new level."""
    before: float
    after: float

    @property
    def change(self) -> float:
        """Relative change: 0.1 means a tenth more than before."""
        if self.before == 0:
            return math.inf if self.after > 0 else -math.inf
        return (self.after - self.before) / abs(self.before)


def steps(values: Sequence[float], *, noise: float = 0.0, minimum: float = MINIMUM_STEP) -> list[Step]:
    """Changes of level in ``values``, oldest first.

    Parameters
    ----------
    values
        One figure over runs, in order of time.
    noise
        Least relative standard deviation from run to run to assume. The scatter is estimated from
        the values; of few values, or of rounded ones, the estimate can be far too small.
    minimum
        Relative change below which two levels count as one.

    Raises
    ------
    ValueError
        A value is not finite, or noise or minimum is negative.
    """
    found = segments(values, noise=noise, minimum=minimum)
    return [Step(after.start, before.level, after.level) for before, after in itertools.pairwise(found)]


def changes(values: Sequence[float]) -> list[Step]:
    """Every change of an exact figure, oldest first: what is counted does not scatter."""
    pairs = enumerate(itertools.pairwise(values), start=1)
    return [Step(at, before, after) for at, (before, after) in pairs if before != after]


def segments(values: Sequence[float], *, noise: float = 0.0, minimum: float = MINIMUM_STEP) -> list[Segment]:
    """Stretches of one level that cover ``values``; see :func:`steps`.

    Notes
    -----
    Minimises the sum of squared residuals plus a penalty per jump (the Potts functional), exactly,
    by dynamic programming in O(n^2) (Friedrich, Kempe, Liebscher, Winkler 2008). Positive values
    are fitted as logarithms, so that a factor counts the same anywhere; a history that touches
    zero is fitted as it stands, relative to its largest value.

    The penalty is that of Schwarz' criterion with a place and a level to pay for at each jump,
    3 sigma^2 ln n, widened for the few values from which sigma is known. sigma is the median
    absolute difference of neighbours: a step enters it once, drift hardly.
    """
    if noise < 0 or minimum < 0:
        raise ValueError(f"noise and minimum cannot be negative, got {noise} and {minimum}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a history holds finite values only")
    if not values:
        return []
    if len(values) < MINIMUM_VALUES:
        return [Segment(0, len(values), _level(values, min(values) > 0))]
    logarithmic = min(values) > 0
    scale = 1.0 if logarithmic else max(abs(value) for value in values) or 1.0
    fitted = [math.log(value) if logarithmic else value / scale for value in values]
    sigma = max(scatter(fitted), noise, _TINY)
    bounds = _merged(fitted, _fit(fitted, _penalty(len(fitted), sigma)), _threshold(minimum, logarithmic))
    return [
        Segment(start, stop, _level(values[start:stop], logarithmic))
        for start, stop in itertools.pairwise(bounds)
    ]


def scatter(values: Sequence[float]) -> float:
    """Standard deviation of the values about their level, robustly, from differences of neighbours;
    0 below three values."""
    differences = [abs(b - a) for a, b in itertools.pairwise(values)]
    if len(differences) < 2:
        return 0.0
    return statistics.median(differences) / (_NORMAL_MAD * math.sqrt(2))


def _penalty(n: int, sigma: float) -> float:
    # Sigma from few differences is often far too small: about its 1 % quantile, by simulation.
    widening = 1 + 12 / max(1, n - 1)
    return 3 * sigma**2 * math.log(max(n, 2)) * widening


def _fit(values: Sequence[float], penalty: float) -> list[int]:
    """Bounds of the optimal segments: 0, the positions of jumps, len(values)."""
    n = len(values)
    sums, squares = [0.0], [0.0]
    centre = math.fsum(values) / n  # keeps squares small, so that their differences stay exact
    for value in values:
        sums.append(sums[-1] + (value - centre))
        squares.append(squares[-1] + (value - centre) ** 2)
    best = [-penalty] + [math.inf] * n
    last = [0] * (n + 1)
    for stop in range(1, n + 1):
        for start in range(stop):
            total = sums[stop] - sums[start]
            residual = max(0.0, squares[stop] - squares[start] - total * total / (stop - start))
            cost = best[start] + penalty + residual
            if cost < best[stop]:
                best[stop], last[stop] = cost, start
    bounds = [n]
    while bounds[-1] > 0:
        bounds.append(last[bounds[-1]])
    return bounds[::-1]


def _merged(values: Sequence[float], bounds: list[int], threshold: float) -> list[int]:
    """Without the jumps smaller than ``threshold``, the smallest first: joining two segments moves
    the level that the next jump is measured from."""
    kept = list(bounds)
    while len(kept) > 2:
        levels = [math.fsum(values[start:stop]) / (stop - start) for start, stop in itertools.pairwise(kept)]
        jumps = [abs(b - a) for a, b in itertools.pairwise(levels)]
        least = min(range(len(jumps)), key=jumps.__getitem__)
        if jumps[least] >= threshold:
            break
        del kept[least + 1]
    return kept


def _threshold(minimum: float, logarithmic: bool) -> float:
    return math.log1p(minimum) if logarithmic else minimum


def _level(values: Sequence[float], logarithmic: bool) -> float:
    if min(values) == max(values):
        return values[0]
    if logarithmic:
        return math.exp(math.fsum(math.log(value) for value in values) / len(values))
    return math.fsum(values) / len(values)
