"""Two stored runs held against each other: exact figures, and times relative to a common layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bitbench.analysis.comparability import differences, hard, said
from bitbench.analysis.comparison import Compared, Comparison, Difference
from bitbench.analysis.moderation import common_priors, like
from bitbench.analysis.moved import HEADLINES, compare_figure, compared_metrics, failure, kind_of
from bitbench.analysis.statistics import Series, variance
from bitbench.analysis.summary import CaseSummary, Summary, summarise
from bitbench.analysis.verdicts import Verdict, Word, correct, judge_unpaired, not_comparable
from bitbench.errors import ToolError, UserError
from bitbench.store.reader import RunData, collector_paused

SESSION_EFFECT = 0.03
"""Relative difference between two runs that counts as none. What a whole session does to a ratio
(which pages, which neighbours, how warm) is the same in all its launches and thus in no interval;
versions that matter are measured in turns."""

RATIO = "time.speedup"


@collector_paused()
def compare_runs(a: RunData, b: RunData) -> Comparison:
    """``b`` (head) against ``a`` (base), case by case.

    Of a run that compared two versions, the head's first round is taken.

    Raises
    ------
    ToolError
        One of the runs holds no measurement.
    UserError
        They have no case in common.

    Notes
    -----
    Bytes are judged by equality and accuracies within their tolerance. Times are judged on
    ``time.speedup``, the ratio to the suite's baseline layer of the same launch, and only where no
    hard difference of machine or software forbids it; the sides share no launch, so intervals are
    those of a difference of two means. Absolute times are told in a note.
    """
    for run in (a, b):
        if not run.records:
            raise ToolError(
                f"run {run.info.run} holds no measurement", "finish it with: bitbench run --resume"
            )
    base, head = summarise(a, judged=False), summarise(b, judged=False)
    others = {found.case.id: found for found in head.cases}
    known = {found.case.id for found in base.cases}
    shared = [(found, others[found.case.id]) for found in base.cases if found.case.id in others]
    if not shared:
        raise UserError(
            f"runs {a.info.run} and {b.info.run} have no case in common",
            f"they are of the suites {a.info.suite['name']!r} and {b.info.suite['name']!r}; compare two "
            "runs of one suite",
        )
    found = differences(a.info, b.info)
    results: list[Compared] = []
    for one, other in shared:
        results.extend(_compare_case(one, other, base.baseline, found, a.info.run))
    return Comparison(
        base=a.info.run,
        head=b.info.run,
        paired=False,
        differences=found,
        results=tuple(_judge_ratios(results, base, head)),
        only_base=tuple(c.case.label for c in base.cases if c.case.id not in others),
        only_head=tuple(c.case.label for c in head.cases if c.case.id not in known),
        notes=(*a.warnings, *b.warnings, *_notes(shared, base.baseline, found)),
    )


def _compare_case(
    base: CaseSummary, head: CaseSummary, baseline: str, found: Sequence[Difference], against: str
) -> list[Compared]:
    case = base.case
    forbidden = {affects: hard(found, affects) for affects in ("time", "accuracy")}
    compared = compared_metrics(base.series, head.series)
    timed = [RATIO] if case.phase == "timed" and case.layer != baseline else []
    if not (base.ok and head.ok):
        reason, moved = failure(base, head)
        # On another machine, running out of memory or missing a package says nothing of the code.
        moved = "" if forbidden["time"] else moved
        return [
            Compared(
                case,
                metric,
                kind_of(metric),
                not_comparable(against, reason),
                base.value(metric),
                head.value(metric),
                moved,
            )
            for metric in [*timed, *compared] or [HEADLINES[case.replicate]]
        ]
    results = []
    for metric in [*timed, *compared]:
        one, other, kind = base.series.get(metric), head.series.get(metric), kind_of(metric)
        reason = ""
        if kind != "exact" and forbidden[kind]:
            reason = f"not the same: {said(forbidden[kind])}"
        elif one is None or other is None:
            side = "base" if one is None else "head"
            reason = (
                f"{baseline} was not measured beside it in {side}"
                if metric == RATIO
                else f"{side} does not report it"
            )
        if reason or one is None or other is None or kind == "time":
            verdict = not_comparable(against, reason) if reason else Verdict(Word.INCONCLUSIVE, against)
            results.append(Compared(case, metric, kind, verdict, base.value(metric), head.value(metric)))
        else:
            results.append(compare_figure(case, metric, one, other, against))
    return results


def _judge_ratios(results: Sequence[Compared], base: Summary, head: Summary) -> list[Compared]:
    """The same results with the ratios to the baseline layer judged as one family."""
    sides = [{c.case.id: c for c in summary.cases} for summary in (base, head)]
    waiting = [
        i for i, r in enumerate(results) if r.kind == "time" and r.verdict.word is not Word.NOT_COMPARABLE
    ]
    logs = {i: [_logs(side[results[i].case.id].series[RATIO]) for side in sides] for i in waiting}
    common = common_priors(
        (like(results[i].case), (results[i].case.point, which), side)
        for i in waiting
        for which, side in enumerate(logs[i])
    )
    verdicts = correct(
        [
            judge_unpaired(
                logs[i][0],
                logs[i][1],
                results[i].verdict.against,
                minimum_effect=SESSION_EFFECT,
                prior=common.get(like(results[i].case)),
            )
            for i in waiting
        ]
    )
    judged = dict(zip(waiting, verdicts, strict=True))
    return [
        Compared(r.case, r.metric, r.kind, judged[i], r.base, r.head, spread=_spread(logs[i][1]))
        if i in judged
        else r
        for i, r in enumerate(results)
    ]


def _logs(series: Series) -> list[float]:
    return [math.log(value) for value in series.values.values()]


def _spread(logs: Sequence[float]) -> float | None:
    return math.sqrt(variance(logs, math.fsum(logs) / len(logs))) if len(logs) > 1 else None


def _notes(
    shared: Sequence[tuple[CaseSummary, CaseSummary]], baseline: str, found: Sequence[Difference]
) -> tuple[str, ...]:
    """What is told but not judged."""
    notes = []
    factors = [
        one.value / other.value
        for base, head in shared
        if base.case.layer == baseline
        and (one := base.value("time.latency")) is not None
        and (other := head.value("time.latency")) is not None
    ]
    if factors:
        notes.append(
            f"absolute times are not judged between two sessions; {baseline} itself took "
            f"1 / {statistics.median(factors):.3f} of its time in the head (median of {len(factors)} cases)"
        )
    if hard(found, "time"):
        notes.append("times are not compared: see what differs")
    return tuple(notes)
