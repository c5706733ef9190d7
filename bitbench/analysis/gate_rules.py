"""What the gate makes of a comparison: which figures count, which fail, and whether to believe it.

Pure: a comparison, a calibration and what was held against a baseline go in, a
:class:`~bitbench.analysis.gate.GateResult` comes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from bitbench.analysis.calibration import MAX_SPREAD, too_noisy
from bitbench.analysis.comparison import Compared, Comparison
from bitbench.analysis.gate import GateResult, GateRow, Outcome, Proof, Role
from bitbench.analysis.held import Held
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Verdict, Word, correct
from bitbench.store.calibration import Calibration
from bitbench.workloads.self_proof import KIND, NULL, SLOWER

MIN_LAUNCHES = 10
"""Launches that a time needs to gate: fewer leave too few degrees of freedom for a tail of 0.5 %."""

THREADS = 1
"""Threads that a time needs to gate: how long several wait for each other is the scheduler's doing."""

PROMISE = 0.05
"""A case that gates is expected to show this slowdown. If, measured twice, its interval still holds
more than that, the question stays open."""

SAME_AT_LEAST = PROMISE / 2
"""Narrowest margin within which controls and the null pair have to be the same. A calibration of ten
launches may underestimate their spread by half, and a proof must not fail for being held to a
sharpness that the gate neither has nor promises."""

SAME_WITHIN = 0.05
"""Widest margin within which controls and the null pair may be called the same. With half the slowdown
that the proof puts in, *same* and *slower* exclude each other clearly."""


def minimum_effects(
    calibration: Calibration | None, gating: Collection[str], same: Collection[str]
) -> dict[str, float]:
    """Relative difference that counts as none, by case id.

    ``gating`` cases are tested for being slower than what they show without cause, ``same`` (controls
    and the null pair) for lying within what this many launches can show to be the same, from
    :data:`SAME_AT_LEAST` to :data:`SAME_WITHIN`.
    """
    cases = calibration.cases if calibration else {}
    floors = {case: max(MINIMUM_EFFECT, cases[case].floor) for case in gating if case in cases}
    margins = {
        case: min(SAME_WITHIN, max(SAME_AT_LEAST, cases[case].equivalence or SAME_WITHIN))
        for case in same
        if case in cases
    }
    return floors | margins


def barred(launches: int, threads: int) -> str:
    """Why no time may gate in a run of this kind; empty where it may."""
    if threads != THREADS:
        return f"{threads} threads; times gate on {THREADS}"
    if launches < MIN_LAUNCHES:
        return f"{launches} launches; times gate from {MIN_LAUNCHES}"
    return ""


def prove(comparison: Comparison, slowdown: float) -> Proof:
    """Whether this very run sees nothing where nothing is, and a slowdown where one was put in."""
    found = {r.case.layer: r for r in comparison.results if r.kind == "time" and _is_proof(r)}
    null, slowed = found.get(NULL), found.get(SLOWER)
    failures = []
    if null is None or slowed is None:
        failures.append("its own two cases were not measured")
    if null is not None and null.verdict.word is not Word.SAME:
        failures.append(f"the same code held against itself came out {_told(null.verdict)}")
    if slowed is not None and slowed.verdict.word is not Word.SLOWER:
        percent = f"{100 * slowdown:g} %"
        failures.append(f"a slowdown of {percent} put in on purpose came out {_told(slowed.verdict)}")
    return Proof(null, slowed, slowdown, "; ".join(failures))


def unproven(comparison: Comparison) -> set[str]:
    """Ids of the proof's cases that did not come out as they must: fresh launches may settle them. Not
    those that could not be measured at all."""
    wanted = {NULL: Word.SAME, SLOWER: Word.SLOWER}
    return {
        result.case.id
        for result in comparison.results
        if _is_proof(result) and result.verdict.word not in (wanted[result.case.layer], Word.NOT_COMPARABLE)
    }


def judge_paired(
    comparison: Comparison,
    *,
    calibration: Calibration | None,
    held: Held | None,
    slowdown: float,
    launches: int,
    threads: int,
    warnings: Sequence[str] = (),
) -> GateResult:
    """The gate on two sides measured in turns.

    ``comparison`` comes from two rounds judged with :func:`minimum_effects`; ``held`` are the head's
    bytes and accuracies against the baseline (None: there is none, they are held against the base
    side); ``slowdown`` is what the self-proof put in.
    """
    closed = barred(launches, threads)
    accepted = {_key(r): r for r in (held.results if held else ()) if not _absent(r)}
    rows = []
    for result in comparison.results:
        if result.kind == "time":
            rows.append(_time_row(result, calibration, closed, comparison.contaminated))
        elif _key(result) not in accepted:
            rows.append(_figure_row(result, held is not None))
    rows += [_held_row(result) for result in accepted.values()]
    proof = prove(comparison, slowdown)
    told = [*warnings, *_unjudged(rows, closed), *_about(held)]
    return conclude(comparison, rows, proof=proof, warnings=told, timed=True)


def judge_stored(
    comparison: Comparison,
    held: Held,
    *,
    unlike: str,
    threads: int,
    warnings: Sequence[str] = (),
) -> GateResult:
    """The gate on a stored measurement against a baseline.

    ``unlike`` says why times cannot be judged (the baseline's are of another machine), empty where they
    can.
    """
    results = list(held.results)
    closed = [unlike or _too_few(result, threads) if result.kind == "time" else "" for result in results]
    family = [i for i, result in enumerate(results) if result.kind == "time" and not closed[i]]
    verdicts = correct([results[i].verdict for i in family])
    for i, verdict in zip(family, verdicts, strict=True):
        results[i] = replace(results[i], verdict=verdict)
    rows = []
    for result, why in zip(results, closed, strict=True):
        absent = result.verdict.word is Word.NOT_COMPARABLE
        if result.kind == "time" and absent and unlike:  # failing on another machine blames no code
            rows.append(GateRow(result, Role.SHOWN, 0.0, unlike))
        elif result.kind != "time" or absent:
            rows.append(_held_row(result))
        else:
            role = Role.SHOWN if why else Role.GATING
            rows.append(GateRow(result, role, result.verdict.minimum_effect, why))
    told = [*warnings, *_unjudged(rows, unlike), *_about(held)]
    return conclude(comparison, rows, proof=None, warnings=told, timed=False)


def conclude(
    comparison: Comparison,
    rows: Sequence[GateRow],
    *,
    proof: Proof | None,
    warnings: Sequence[str],
    timed: bool,
) -> GateResult:
    """The outcome of these rows, worst reason first. ``timed``: times were to be judged."""
    judged = replace(comparison, results=tuple(row.compared for row in rows))
    gating = [row for row in rows if row.role is Role.GATING]
    failing = [row for row in gating if row.fails]
    unsettled = [row for row in gating if not row.fails and is_open(row)]
    measured = [r for r in rows if r.fails or r.compared.verdict.word is not Word.NOT_COMPARABLE]
    worse = f"{len(failing)} of {_counted(len(gating), 'gating figure')} {_is(len(failing))} worse"
    if not [row for row in measured if row.role is not Role.PROOF]:
        outcome, reason = Outcome.BROKEN, "nothing was measured that could be compared"
    elif proof is not None and proof.failure:
        beside = f"; besides, {worse}" if failing else ""
        outcome, reason = Outcome.BROKEN, f"the gate could not prove itself: {proof.failure}{beside}"
    elif failing:
        outcome, reason = Outcome.FAILED, worse
    elif comparison.contaminated:
        outcome, reason = Outcome.INCONCLUSIVE, f"the session is not to be trusted: {comparison.contaminated}"
    elif not gating:
        outcome, reason = Outcome.INCONCLUSIVE, f"nothing gates: {_usual(rows)}"
    elif timed and not [row for row in gating if row.compared.kind == "time"] and _times(rows):
        outcome, reason = Outcome.INCONCLUSIVE, f"no time gates: {_usual(_times(rows))}"
    elif unsettled:
        these = ", ".join(row.compared.case.label for row in unsettled[:3])
        more = f" and {len(unsettled) - 3} more" if len(unsettled) > 3 else ""
        outcome, reason = Outcome.INCONCLUSIVE, f"{_counted(len(unsettled), 'figure')} open: {these}{more}"
    else:
        outcome, reason = Outcome.PASSED, f"none of {_counted(len(gating), 'gating figure')} is worse"
    return GateResult(judged, tuple(rows), outcome, reason, proof, tuple(warnings))


def is_open(row: GateRow) -> bool:
    """Whether a gating time could still hide a slowdown that the gate promises to see, or an accuracy is
    undecided."""
    verdict = row.compared.verdict
    if verdict.word is not Word.INCONCLUSIVE:
        return False
    if row.compared.kind != "time" or verdict.effect is None or verdict.effect.low is None:
        return True
    return verdict.effect.low < 1 / (1 + max(PROMISE, 2 * row.threshold))


def _time_row(result: Compared, calibration: Calibration | None, closed: str, contaminated: str) -> GateRow:
    threshold = result.verdict.minimum_effect
    if _is_proof(result):
        return GateRow(result, Role.PROOF, threshold)
    if _lost(result):  # it fails or crashes now: that needs no calibration
        return GateRow(result, Role.GATING, threshold)
    if result.control:
        return GateRow(result, Role.CONTROL, threshold)
    if result.verdict.word is Word.NOT_COMPARABLE:
        return GateRow(result, Role.SHOWN, threshold, result.verdict.reason)
    found = calibration.cases.get(result.case.id) if calibration else None
    why = closed
    if not why and found is None:
        why = "never calibrated on this machine"
    elif not why and found is not None and not found.admitted:
        why = found.why
    elif not why and contaminated:
        why = "a control moved in this session"
    return GateRow(result, Role.SHOWN if why else Role.GATING, threshold, why)


def _figure_row(result: Compared, against_baseline: bool) -> GateRow:
    """A figure of the head against the base side: it gates where nothing else was accepted."""
    if _lost(result) or not (against_baseline or _absent(result)):
        return GateRow(result, Role.GATING, 0.0)
    why = result.verdict.reason if _absent(result) else "not in the baseline yet"
    return GateRow(result, Role.SHOWN, 0.0, why)


def _held_row(result: Compared) -> GateRow:
    if _absent(result):
        return GateRow(result, Role.SHOWN, 0.0, result.verdict.reason)
    return GateRow(result, Role.GATING, 0.0 if result.kind == "exact" else result.verdict.minimum_effect)


def _lost(result: Compared) -> bool:
    """The head has no such figure although the base has it."""
    return result.verdict.word is Word.NOT_COMPARABLE and result.moved == "worse"


def _absent(result: Compared) -> bool:
    """Neither side is to blame for there being nothing to compare."""
    return result.verdict.word is Word.NOT_COMPARABLE and result.moved != "worse"


def _too_few(result: Compared, threads: int) -> str:
    launches = min(side.n for side in (result.base, result.head) if side is not None)
    if (why := barred(launches, threads)) or result.spread is None:
        return why or "no spread is known"
    return too_noisy(result.spread) if result.spread > MAX_SPREAD else ""


def _about(held: Held | None) -> list[str]:
    if held is None:
        return []
    told = []
    if held.unmeasured:
        told.append(f"{_listed(held.unmeasured)} of the baseline {_was(held.unmeasured)} not measured")
    if held.unaccepted:
        told.append(
            f"{_listed(held.unaccepted)} {_is(len(held.unaccepted))} not in the baseline; "
            "accept with: bitbench baseline accept"
        )
    return told


def _unjudged(rows: Sequence[GateRow], closed: str) -> list[str]:
    """Times that decide nothing, in one line."""
    shown = [row for row in _times(rows) if row.role is Role.SHOWN]
    if not shown:
        return []
    why = closed or _usual(shown)
    return [f"{_counted(len(shown), 'time')} only shown, not gated ({why})"]


def _times(rows: Sequence[GateRow]) -> list[GateRow]:
    counted = (Role.GATING, Role.SHOWN)
    return [row for row in rows if row.compared.kind == "time" and row.role in counted]


def _usual(rows: Sequence[GateRow]) -> str:
    """The reason most rows are only shown."""
    reasons = Counter(row.why for row in rows if row.why)
    return reasons.most_common(1)[0][0] if reasons else "nothing but controls was measured"


def _is_proof(result: Compared) -> bool:
    return result.case.workload == KIND


def _key(result: Compared) -> tuple[str, str]:
    return result.case.label, result.metric


def _told(verdict: Verdict) -> str:
    return f"{verdict.word.value} ({verdict.reason})" if verdict.reason else verdict.word.value


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"
