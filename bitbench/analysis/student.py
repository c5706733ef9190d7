"""Student's and Fisher's distributions, and the gamma function's derivatives. Scalars, no numpy.

Degrees of freedom are real numbers here: a moderated variance has those of its own launches plus
those its prior is worth. The formulas are of Abramowitz and Stegun, *Handbook of Mathematical
Functions*, chapters 6 and 26.
"""

from __future__ import annotations

import math
from functools import lru_cache

NORMAL_FROM = 1e6
"""Degrees of freedom from which Student's distribution is taken for the normal one: they differ by
less than 1e-6 there."""


@lru_cache(maxsize=4096)
def student_quantile(p: float, df: float) -> float:
    """Quantile of Student's t distribution, 0.5 <= p < 1, with ``df`` > 0 degrees of freedom.

    Notes
    -----
    Bisection on the distribution function. Good to about 1e-10, far below what an interval needs.
    """
    if not 0.5 <= p < 1 or not df > 0:
        raise ValueError(f"need 0.5 <= p < 1 and df > 0, got p={p}, df={df}")
    low, high = 0.0, 2.0
    while student_tail(high, df) > 1 - p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if student_tail(middle, df) > 1 - p:
            low = middle
        else:
            high = middle
        if high - low < 1e-13 * high:
            break
    return (low + high) / 2


def student_tail(t: float, df: float) -> float:
    """Probability that Student's t with ``df`` degrees of freedom exceeds ``t``.

    Notes
    -----
    Half of I_x(df/2, 1/2) with x = df / (df + t^2) for t >= 0 (A&S 26.7.1), the mirror image below.
    """
    if df >= NORMAL_FROM:
        return 0.5 * math.erfc(t / math.sqrt(2))
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    half = 0.5 * incomplete_beta(df / (df + t * t), df / 2, 0.5)
    return half if t >= 0 else 1.0 - half


def fisher_tail(f: float, df_above: float, df_below: float) -> float:
    """Probability that a ratio of two variance estimates of equal truth exceeds ``f`` (A&S 26.6.2)."""
    above, below = min(df_above, NORMAL_FROM), min(df_below, NORMAL_FROM)
    return incomplete_beta(below / (below + above * f), below / 2, above / 2)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) by its continued fraction (A&S 26.5.8)."""
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast only below this point
        return 1.0 - incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return front / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """The fraction's value, by successive ratios of its numerators and denominators.

    Both ratios are kept apart and multiplied up until they agree to double precision; a few dozen
    steps below the point above, some thousand for arguments near a million.
    """
    tiny = 1e-300
    value = numerator = 1.0
    denominator = 0.0
    for step in range(1, 20_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1.0 / ((1.0 + term * denominator) or tiny)
        numerator = (1.0 + term / numerator) or tiny
        value *= numerator * denominator
        if abs(numerator * denominator - 1.0) < 1e-15:
            break
    return value


def digamma(x: float) -> float:
    """Derivative of log gamma, x > 0: recurrence up to 10, then its asymptotic series (A&S 6.3.18)."""
    shift = 0.0
    while x < 10.0:
        shift -= 1.0 / x
        x += 1.0
    s = 1.0 / (x * x)
    series = s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    return shift + math.log(x) - 0.5 / x - series


def trigamma(x: float) -> float:
    """Second derivative of log gamma, x > 0: recurrence up to 10, then its series (A&S 6.4.12)."""
    shift = 0.0
    while x < 10.0:
        shift += 1.0 / (x * x)
        x += 1.0
    s = 1.0 / (x * x)
    series = s / x * (1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - s * 5 / 66))))
    return shift + 1.0 / x + 0.5 * s + series


def trigamma_inverse(y: float) -> float:
    """The x > 0 with ``trigamma(x) == y``, y > 0, by bisection on the logarithm: it falls everywhere."""
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        if trigamma(math.exp(middle)) > y:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
