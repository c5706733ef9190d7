"""Variances pooled over like cases, because few launches say little about their own spread.

With ten launches a case knows its variance to within a factor of three either way, with three
launches hardly at all; Student's quantile pays for that with wide intervals. But a suite measures
many like cases on one machine, and together they say what variances look like here. Each case's
variance is drawn towards that common value, as far as the spread of the variances themselves
allows: empirical Bayes as in G. K. Smyth, "Linear models and empirical Bayes methods for assessing
differential expression in microarray experiments" (2004), section 6.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from bitbench.analysis.statistics import MIN_REPLICATES, variance
from bitbench.analysis.student import digamma, fisher_tail, trigamma, trigamma_inverse
from bitbench.store.schema import Case

MIN_LIKE = 4
"""Cases below which nothing is pooled: the spread of three variances is itself unknown."""

UNLIKE = 0.01
"""A case whose variance is so much larger than the common one that chance gives it at most this
often is judged by its own launches alone. Drawing it down would make exactly the noisiest cases
cry wolf."""

_FAR = 3.5
"""Log variances further than this many deviations from their median do not shape the common value."""


@dataclass(frozen=True)
class Prior:
    """What like cases say about a variance before the case itself has spoken."""

    variance: float
    """Common variance of the logarithms."""
    df: float
    """Degrees of freedom it is worth: infinite where the variances differ by chance only."""
    pooled_df: float
    """Degrees of freedom of all sources it comes from: no case can know more than all together."""


def like(case: Case) -> Hashable:
    """Cases with the same key have like launches: same replicate, workload, batch, cache state and busy
    neighbours."""
    wanted = ("tokens", "cache", "neighbours")
    return case.replicate, case.workload, *(case.params.get(name) for name in wanted)


@dataclass(frozen=True)
class Spread:
    """Variance of one case over its launches."""

    variance: float
    df: float
    source: Hashable = None
    """Cases with the same source share part of their noise, such as the layer that all at a point are
    compared with, and count as one; None is a source of its own."""


def fit_prior(spreads: Sequence[Spread]) -> Prior | None:
    """Common variance of like cases, and its worth.

    None with fewer than :data:`MIN_LIKE` sources of positive variance. The log of a variance
    estimate with d degrees of freedom has the mean log(truth) + digamma(d/2) - log(d/2) and the
    variance trigamma(d/2); what the estimates scatter beyond that is scatter of the truths.
    """
    found = [
        (math.log(s.variance) - digamma(s.df / 2) + math.log(s.df / 2), trigamma(s.df / 2), s)
        for s in spreads
        if s.df > 0 and 0 < s.variance < math.inf
    ]
    if len(found) < MIN_LIKE:
        return None
    middle = statistics.median(e for e, _, _ in found)
    scale = max(
        1.4826 * statistics.median(abs(e - middle) for e, _, _ in found),
        math.sqrt(max(noise for _, noise, _ in found)),
    )
    kept = [entry for entry in found if abs(entry[0] - middle) <= _FAR * scale]
    worths: dict[Hashable, float] = {}
    for position, (_, _, spread) in enumerate(kept):
        source = ("alone", position) if spread.source is None else ("shared", spread.source)
        worths[source] = max(spread.df, worths.get(source, 0.0))
    if len(worths) < MIN_LIKE:
        return None
    count = len(kept)
    mean = math.fsum(e for e, _, _ in kept) / count
    scatter = math.fsum((e - mean) ** 2 for e, _, _ in kept) / (count - 1)
    excess = scatter - math.fsum(noise for _, noise, _ in kept) / count
    pooled = math.fsum(worths.values())
    if excess <= 0:
        return Prior(math.exp(mean), math.inf, pooled)
    worth = 2 * trigamma_inverse(excess)
    return Prior(math.exp(mean + digamma(worth / 2) - math.log(worth / 2)), worth, pooled)


def common_priors(
    series: Iterable[tuple[Hashable, Hashable, Sequence[float]]],
) -> dict[Hashable, Prior | None]:
    """Prior for each kind of like cases. Of each case: its kind, the source of its noise (see
    :class:`Spread`), and its logarithms, one a launch."""
    groups: dict[Hashable, list[Spread]] = {}
    for kind, source, logs in series:
        if len(logs) >= MIN_REPLICATES:
            own = Spread(variance(logs, math.fsum(logs) / len(logs)), len(logs) - 1, source)
            groups.setdefault(kind, []).append(own)
    return {kind: fit_prior(spreads) for kind, spreads in groups.items()}


def moderate(variance: float, df: float, prior: Prior | None) -> tuple[float, float]:
    """Variance and degrees of freedom to judge a case by: its own, drawn towards the common ones."""
    if prior is None or fisher_tail(variance / prior.variance, df, prior.df) < UNLIKE:
        return variance, df
    total = min(df + prior.df, max(prior.pooled_df, df))
    if math.isinf(prior.df):
        return prior.variance, total
    return (prior.df * prior.variance + df * variance) / (prior.df + df), total
