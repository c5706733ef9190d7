"""Figures held against a baseline: bytes by equality, accuracy within its tolerance, ratios of times
by their intervals. Pure functions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from bitbench.analysis.comparison import Compared
from bitbench.analysis.moved import way
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.stored import SESSION_EFFECT
from bitbench.analysis.verdicts import Verdict, Word, judge_unpaired, not_comparable
from bitbench.store.figures import Figure, FigureKind, FigureSet
from bitbench.store.schema import Case, Phase, Replicate, Status

AGAINST = "the baseline"

SESSION_SPREADS = 2.0
"""A ratio of times from another session may differ by this many of its launch-to-launch spreads before
it counts, and by :data:`~bitbench.analysis.stored.SESSION_EFFECT` at least: what changes between two
sessions also changes between launches, and no number of launches within one session shows it."""

COUNTED: tuple[FigureKind, ...] = ("exact", "accuracy")
ALL_KINDS: tuple[FigureKind, ...] = ("exact", "accuracy", "time")

_PHASES: dict[FigureKind, tuple[Phase, Replicate]] = {
    "exact": ("once", "exact"),
    "accuracy": ("once", "documents"),
    "time": ("timed", "launches"),
}


@dataclass(frozen=True)
class Held:
    """A measurement against a baseline."""

    results: tuple[Compared, ...] = ()
    unmeasured: tuple[str, ...] = ()
    """``label metric`` of accepted figures whose case was not to be measured."""
    unaccepted: tuple[str, ...] = ()
    """``label metric`` of measured figures that nobody has accepted yet."""


def hold(
    head: FigureSet,
    accepted: FigureSet,
    *,
    cases: Mapping[str, Case],
    lost: Mapping[str, str] | None = None,
    kinds: Collection[FigureKind] = ALL_KINDS,
    against: str = AGAINST,
) -> Held:
    """Each accepted figure of these ``kinds`` against the measured one of its label and metric.

    ``cases`` are those that were to be measured, by label. An accepted figure of one of them that
    is missing is a result too: *not comparable*, and worse unless it cannot be measured here at all
    (status ``unsupported``), or is a time that was measured and not believed (``invalid``). ``lost``
    says why, by label.
    """
    results, unmeasured = [], []
    for label, own in accepted.figures.items():
        for metric, before in own.items():
            if before.kind not in kinds:
                continue
            after = head.figures.get(label, {}).get(metric)
            if after is None and label not in cases:
                unmeasured.append(f"{label} {metric}")
                continue
            case = cases.get(label) or case_of(label, before.kind)
            if after is None or after.kind != before.kind:
                why = (lost or {}).get(label) or f"{metric} was not measured"
                results.append(_missing(case, metric, before, why, against))
            else:
                results.append(_compared(case, metric, before, after, against))
    unaccepted = [
        f"{label} {metric}"
        for label, own in head.figures.items()
        for metric, figure in own.items()
        if figure.kind in kinds and metric not in accepted.figures.get(label, {})
    ]
    return Held(tuple(results), tuple(unmeasured), tuple(unaccepted))


def case_of(label: str, kind: FigureKind = "time") -> Case:
    """A case with this label, for figures whose own case is not known (another tool's file)."""
    first, slash, rest = label.partition("/")
    middle, _, last = rest.rpartition("/")
    phase, replicate = _PHASES[kind]
    return Case(
        id=hashlib.sha256(label.encode()).hexdigest()[:12],
        point=hashlib.sha256(f"{first}/{middle}".encode()).hexdigest()[:12],
        workload=first if slash else "benchmark",
        entry=0,
        phase=phase,
        replicate=replicate,
        launches=1,
        layer=last if slash else label,
        params={"measure": middle} if middle else {},
        numerics="",
    )


def session_threshold(before: Figure, after: Figure) -> float:
    """Relative difference up to which two sessions' ratios count as the same."""
    spread = _spread(before, after)
    return SESSION_EFFECT if spread is None else max(SESSION_EFFECT, math.expm1(SESSION_SPREADS * spread))


def _spread(before: Figure, after: Figure) -> float | None:
    """Launch-to-launch spread of the two together; None where one has too few launches."""
    if before.log_sd is None or after.log_sd is None:
        return None
    return math.sqrt((before.log_sd**2 + after.log_sd**2) / 2)


def _missing(case: Case, metric: str, before: Figure, why: str, against: str) -> Compared:
    # A time that is not to be believed says nothing about the code.
    excused = (Status.UNSUPPORTED, *((Status.INVALID,) if before.kind == "time" else ()))
    moved: Literal["", "worse"] = "" if why.startswith(excused) else "worse"
    verdict = not_comparable(against, why)
    return Compared(case, metric, before.kind, verdict, base=_estimate(before), moved=moved)


def _compared(case: Case, metric: str, before: Figure, after: Figure, against: str) -> Compared:
    if before.kind == "time":
        return _time(case, metric, before, after, against)
    moved = way(metric, before.value, after.value, before.tolerance * abs(before.value))
    verdict = Verdict(Word.MOVED if moved else Word.SAME, against, minimum_effect=before.tolerance)
    return Compared(case, metric, before.kind, verdict, _estimate(before), _estimate(after), moved)


def _time(case: Case, metric: str, before: Figure, after: Figure, against: str) -> Compared:
    verdict = judge_unpaired(
        launches_like(before),
        launches_like(after),
        against,
        minimum_effect=session_threshold(before, after),
    )
    spread = _spread(before, after)
    return Compared(
        case, metric, "time", verdict, base=_estimate(before), head=_estimate(after), spread=spread
    )


def launches_like(figure: Figure) -> list[float]:
    """Logarithms with the stored number, mean and standard deviation: all that a judgement reads of them."""
    n, mean, spread = figure.launches, figure.log_mean, figure.log_sd
    if mean is None or spread is None or n < 2:
        return [math.log(figure.value)] if figure.value > 0 else []
    step = spread * math.sqrt((n - 1) / (n - n % 2))
    return [mean + step] * (n // 2) + [mean - step] * (n // 2) + [mean] * (n % 2)


def _estimate(figure: Figure) -> Estimate:
    return Estimate(figure.value, n=max(1, figure.launches), exact=figure.kind == "exact")
