"""Two sides case by case: versions measured in turns, or two stored runs. No input or output.

Versions measured in turns are judged by the rule of :mod:`bitbench.analysis.rounds`. Two stored
runs had each its own session, so their times are never compared as such: what is compared is the
ratio to the suite's baseline layer, which was measured in the same launch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from bitbench.analysis.comparability import differences
from bitbench.analysis.comparison import Compared, Comparison, Difference
from bitbench.analysis.moderation import Prior, like
from bitbench.analysis.moved import HEADLINES, compare_figure, compared_metrics, failure, kind_of
from bitbench.analysis.rounds import Trial, flagged, leans_slower, priors, settle
from bitbench.analysis.statistics import variance
from bitbench.analysis.stored import compare_runs as compare_runs
from bitbench.analysis.summary import CaseSummary, case_alone
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Verdict, Word, not_comparable
from bitbench.errors import ToolError, UserError
from bitbench.store.reader import RunData, collector_paused
from bitbench.store.schema import Case, Record, RunInfo

PROOF_WORKLOAD = "self_proof"
"""Kind of the workload by which a gate proves itself; its cases are judged one by one."""

_SIDES: tuple[Literal["base", "head"], ...] = ("base", "head")
_NO_EFFECTS: Mapping[str, float] = MappingProxyType({})


@dataclass
class _Pair:
    """One case on both sides: its first round, and its confirmation round where there is one."""

    case: Case
    first: dict[str, dict[int, Record]] = field(default_factory=lambda: {"base": {}, "head": {}})
    again: dict[str, dict[int, Record]] = field(default_factory=lambda: {"base": {}, "head": {}})

    def alone(self, side: str) -> CaseSummary:
        """One side over both rounds."""
        return case_alone(self.case, {**self.first[side], **self.again[side]})


@dataclass(frozen=True)
class _Timed:
    """Logarithms of base / head of a timed case, one a launch, ready to be judged."""

    first: list[float]
    again: list[float]


@collector_paused()
def compare_sides(
    run: RunData,
    *,
    minimum_effects: Mapping[str, float] = _NO_EFFECTS,
    family: Collection[str] | None = None,
) -> Comparison:
    """Two versions measured in turns (``bitbench compare``, ``gate``, ``calibrate``), case by case.

    Parameters
    ----------
    minimum_effects
        By case id, the relative difference up to which a time counts as the same; else
        :data:`~bitbench.analysis.verdicts.MINIMUM_EFFECT`.
    family
        Ids of the timed cases that are judged together, such as those that gate; None means all
        that are neither controls nor the gate's own proof. Controls form a family of their own,
        the remaining cases another, and each case of the proof stands alone.

    Raises
    ------
    UserError
        The run has no two sides.
    ToolError
        Nothing was measured.

    Notes
    -----
    Records of launches beyond ``case.launches`` are the confirmation round. Only launches in which
    both sides were measured count for times. A case with any failed record on either side is *not
    comparable*; it regresses where the head alone failed.
    """
    info = run.info
    against, head = _names(info)
    if not run.records:
        raise ToolError(
            f"run {info.run} holds no measurement", "it was interrupted before its first launch; run it again"
        )
    pairs = {case.id: _Pair(case) for case in run.cases}
    for record in run.records:
        pair = pairs.get(record.case)
        if pair is not None and record.side:
            within = pair.first if record.launch < pair.case.launches else pair.again
            within[record.side][record.launch] = record

    layers: dict[str, dict[str, Any]] = dict(info.suite["layers"])
    results: dict[str, list[Compared]] = {}
    timed: dict[str, _Timed] = {}
    for pair in pairs.values():
        results[pair.case.id], times = _compare_pair(pair, against, layers)
        if times is not None:
            timed[pair.case.id] = times
    cases = {case.id: case for case in run.cases}
    verdicts = _judge_times(cases, layers, timed, minimum_effects, family, against)
    for id, verdict in verdicts.items():
        results[id][0] = replace(results[id][0], verdict=verdict)
    ordered = tuple(result for case in run.cases for result in results[case.id])
    return Comparison(
        base=against,
        head=head,
        paired=True,
        differences=_side_differences(info),
        results=ordered,
        contaminated=_contamination(ordered),
        notes=(*run.warnings, *_notes(info, pairs)),
    )


def needs_confirmation(comparison: Comparison, family: Collection[str] | None = None) -> set[str]:
    """Ids of the cases that a second round of fresh launches has to measure.

    Of the family (None: of all cases that are not the gate's proof): what the first round flags as
    slower or faster at the screening level, and what it leaves undecided with an estimate slower
    than the minimum effect. Controls that seem to move are measured again too, whoever asks.
    """
    timed = [r for r in comparison.results if r.kind == "time" and r.case.workload != PROOF_WORKLOAD]
    members = [r for r in timed if not r.control and (family is None or r.case.id in family)]
    found: set[str] = set()
    for group in (members, [r for r in timed if r.control]):
        verdicts = [r.verdict for r in group]
        slower, faster = flagged(verdicts)
        found |= {group[i].case.id for i in slower | faster}
        found |= {r.case.id for r in group if leans_slower(r.verdict)}
    return found


def is_control(case: Case, layers: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the change cannot affect this timed case: torch's own layer, the same on both sides."""
    return (
        case.phase == "timed"
        and case.workload != PROOF_WORKLOAD
        and layers.get(case.layer, {}).get("kind") == "linear"
    )


def _names(info: RunInfo) -> tuple[str, str]:
    """What the user calls the sides."""
    if set(info.sides) != set(_SIDES):
        raise UserError(
            f"run {info.run} has no two sides: it measured one version of the library",
            "measure two in turns with: bitbench compare --base REF, or compare two runs with: "
            "bitbench compare RUN RUN",
        )
    names = []
    for side in _SIDES:
        code = info.sides[side]
        names.append(code.label or (code.commit[:8] if code.commit else side))
    return names[0], names[1]


def _side_differences(info: RunInfo) -> tuple[Difference, ...]:
    """What else than the code differs between two sides that share machine and session."""
    base, head = (info.model_copy(update={"code": info.sides[side]}) for side in _SIDES)
    return differences(base, head)


def _compare_pair(
    pair: _Pair, against: str, layers: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Compared], _Timed | None]:
    """Everything that is compared of one case, times first and still to be judged."""
    case = pair.case
    base, head = pair.alone("base"), pair.alone("head")
    control = is_control(case, layers)
    if not (base.ok and head.ok):
        metrics = ["time.latency"] if case.phase == "timed" else compared_metrics(base.series, head.series)
        reason, moved = failure(base, head)
        verdict = not_comparable(against, reason)
        return [
            Compared(
                case,
                metric,
                kind_of(metric),
                verdict,
                base.value(metric),
                head.value(metric),
                moved,
                control=control,
            )
            for metric in metrics or [HEADLINES[case.replicate]]
        ], None
    results, times = [], None
    if case.phase == "timed":
        found, times = _time(pair, base, head, against, control)
        results.append(found)
    for metric in compared_metrics(base.series, head.series):
        if metric in base.series and metric in head.series:
            results.append(compare_figure(case, metric, base.series[metric], head.series[metric], against))
        else:
            side = "head" if metric in base.series else "base"
            verdict = not_comparable(against, f"{side} does not report it")
            results.append(Compared(case, metric, kind_of(metric), verdict))
    return results, times


def _time(
    pair: _Pair, base: CaseSummary, head: CaseSummary, against: str, control: bool
) -> tuple[Compared, _Timed | None]:
    """The time of a case that went well on both sides; its verdict comes with its family's."""
    above, below = base.series.get("time.latency"), head.series.get("time.latency")
    ratio = None if above is None or below is None else above.ratio_to(below)
    if above is None or below is None or ratio is None:
        verdict = not_comparable(against, "no launch measured both sides")
        return Compared(pair.case, "time.latency", "time", verdict, control=control), None
    logs = {launch: math.log(value) for launch, value in ratio.values.items()}
    first = [x for launch, x in logs.items() if launch < pair.case.launches]
    again = [x for launch, x in logs.items() if launch >= pair.case.launches]
    spread = math.sqrt(variance(first, math.fsum(first) / len(first))) if len(first) > 1 else None
    verdict = Verdict(Word.INCONCLUSIVE, against)
    result = Compared(
        pair.case,
        "time.latency",
        "time",
        verdict,
        above.estimate(),
        below.estimate(),
        spread=spread,
        control=control,
    )
    return result, _Timed(first, again)


def _judge_times(
    cases: Mapping[str, Case],
    layers: Mapping[str, Mapping[str, Any]],
    timed: Mapping[str, _Timed],
    minimum_effects: Mapping[str, float],
    family: Collection[str] | None,
    against: str,
) -> dict[str, Verdict]:
    """Verdicts by case id, each family by itself, variances pooled over all."""
    trials = {
        id: Trial(times.first, times.again, like(cases[id]), minimum_effects.get(id, MINIMUM_EFFECT))
        for id, times in timed.items()
    }
    known: dict[Any, Prior | None] = priors(list(trials.values()))
    groups: dict[str, list[str]] = {}
    for id in trials:
        if cases[id].workload == PROOF_WORKLOAD:
            name = id
        elif is_control(cases[id], layers):
            name = "controls"
        else:
            name = "family" if family is None or id in family else "shown"
        groups.setdefault(name, []).append(id)
    verdicts: dict[str, Verdict] = {}
    for ids in groups.values():
        settled = settle([trials[id] for id in ids], against, known=known)
        verdicts.update(zip(ids, settled, strict=True))
    return verdicts


def _contamination(results: Collection[Compared]) -> str:
    """Why the session cannot be trusted; empty when it can."""
    moved = [r for r in results if r.control and r.verdict.word in (Word.SLOWER, Word.FASTER)]
    if not moved:
        return ""
    worst = max(moved, key=lambda r: abs(math.log(r.verdict.effect.value)) if r.verdict.effect else 0.0)
    effect = worst.verdict.effect
    size = f" ({effect.value:.3f}x)" if effect is not None else ""
    count = "1 control" if len(moved) == 1 else f"{len(moved)} controls"
    return (
        f"{count} moved that the change cannot affect: {worst.case.label} came out "
        f"{worst.verdict.word.value}{size}; something else than the code differed between the sides"
    )


def _notes(info: RunInfo, pairs: Mapping[str, _Pair]) -> tuple[str, ...]:
    notes = []
    if info.slowdown:
        notes.append(f"the head was slowed down on purpose, by up to {100 * info.slowdown:.3g} %")
    again = sum(1 for pair in pairs.values() if any(pair.again.values()))
    if again:
        named = "1 case was" if again == 1 else f"{again} cases were"
        notes.append(f"{named} measured again in a confirmation round of fresh launches, orders reversed")
    return tuple(notes)
