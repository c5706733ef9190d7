"""Figures that are counted or computed rather than timed: equal, or moved, and which way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from bitbench.analysis.comparison import Compared, Kind
from bitbench.analysis.figures import ACCURACY_TOLERANCES
from bitbench.analysis.statistics import MIN_REPLICATES, Estimate, Series
from bitbench.analysis.summary import MISSING, CaseSummary
from bitbench.analysis.verdicts import Verdict, Word, judge
from bitbench.store.metrics import METRICS
from bitbench.store.schema import Case, Status

HEADLINES = {
    "launches": "time.latency",
    "seeds": "training.bits_per_byte",
    "documents": "quality.perplexity",
    "images": "quality.accuracy",
    "exact": "memory.layer_bytes",
}
"""The figure that stands for a case which has none: by what it is replicated over."""


def kind_of(metric: str) -> Kind:
    """How a metric is judged."""
    if metric.startswith("time."):
        return "time"
    return "accuracy" if metric in ACCURACY_TOLERANCES else "exact"


def compared_metrics(*sides: Mapping[str, Series]) -> list[str]:
    """Metrics of a case that are held against each other by equality or tolerance: bytes as they are
    counted (ratios of bytes say the same again) and accuracies."""
    return [
        metric
        for metric in dict.fromkeys(name for side in sides for name in side)
        if metric in ACCURACY_TOLERANCES
        or (METRICS[metric].unit == "B" and any(s[metric].scale == "exact" for s in sides if metric in s))
    ]


def compare_figure(case: Case, metric: str, base: Series, head: Series, against: str) -> Compared:
    """One such figure on both sides.

    Bytes are judged by equality. An accuracy is judged within the relative tolerance of its metric;
    where it is replicated over three seeds or more, by the interval of its ratio seed by seed.
    """
    a, b = base.estimate(), head.estimate()
    tolerance = ACCURACY_TOLERANCES.get(metric)
    if tolerance is None:
        verdict, moved = _by_value(metric, a.value, b.value, 0.0, against)
        return Compared(case, metric, "exact", verdict, a, b, moved)
    ratio = base.ratio_to(head)
    if case.replicate == "seeds" and ratio is not None and _can_be_judged(ratio):
        verdict, moved = _by_interval(metric, ratio, tolerance, against)
    else:
        verdict, moved = _by_value(metric, a.value, b.value, tolerance, against)
    return Compared(case, metric, "accuracy", verdict, a, b, moved)


def _can_be_judged(ratio: Series) -> bool:
    """Whether an interval can be given: enough replicates, and each a number that has a logarithm."""
    values = ratio.values.values()
    return len(values) >= MIN_REPLICATES and all(0 < value < math.inf for value in values)


def failure(base: CaseSummary, head: CaseSummary) -> tuple[str, Literal["", "better", "worse"]]:
    """Why two sides cannot be compared, and whether the head alone is to blame."""
    reasons = [
        f"{side} is {found.status}: {found.reason}"
        for side, found in zip(("base", "head"), (base, head), strict=True)
        if not found.ok
    ]
    at_fault = {
        side
        for side, other, found in (("base", "head", base), ("head", "base", head))
        if _at_fault(found, other)
    }
    if at_fault == {"head"}:
        return "; ".join(reasons), "worse"
    return "; ".join(reasons), "better" if at_fault == {"base"} else ""


def _at_fault(found: CaseSummary, other: str) -> bool:
    """Whether a side failed by itself. Not: interrupted before it, a number not to be believed
    (which says nothing about the code), or an error that only names the other side."""
    own = [f for f in found.failures if f.status != Status.INVALID and f"{other} side" not in f.reason]
    return found.status != MISSING and bool(own)


def way(metric: str, before: float, after: float, allowed: float) -> Literal["", "better", "worse"]:
    """Which way a figure moved by more than ``allowed``. What is no number any more is worse, and so is
    any move of a figure of which neither way is better."""
    if before == after or (math.isnan(before) and math.isnan(after)):
        return ""
    if abs(after - before) <= allowed < math.inf:
        return ""
    if math.isfinite(before) != math.isfinite(after):
        return "worse" if math.isfinite(before) else "better"
    better = METRICS[metric].better
    return "better" if better == ("higher" if after > before else "lower") else "worse"


def _by_value(
    metric: str, a: float, b: float, tolerance: float, against: str
) -> tuple[Verdict, Literal["", "better", "worse"]]:
    effect = Estimate(a / b, exact=True) if a > 0 and b > 0 and math.isfinite(a / b) else None
    moved = way(metric, a, b, tolerance * max(abs(a), abs(b)))
    if not moved:
        return Verdict(Word.SAME, against, "", effect, tolerance), ""
    reason = "no longer equal" if tolerance == 0.0 else f"differs by more than {tolerance:.2g} of itself"
    return Verdict(Word.MOVED, against, reason, effect, tolerance), moved


def _by_interval(
    metric: str, ratio: Series, tolerance: float, against: str
) -> tuple[Verdict, Literal["", "better", "worse"]]:
    """``ratio`` is base / head, judged as a speed-up is: *faster* where the head's figure is lower."""
    judged = judge(ratio, against, minimum_effect=tolerance)
    if judged.word not in (Word.FASTER, Word.SLOWER):
        return judged, ""
    lower = judged.word is Word.FASTER
    moved: Literal["better", "worse"] = "better" if lower == (METRICS[metric].better == "lower") else "worse"
    reason = f"differs by more than {tolerance:.2g} of itself over {len(ratio.values)} seeds"
    return Verdict(Word.MOVED, against, reason, judged.effect, tolerance, judged.detectable), moved
