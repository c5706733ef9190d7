"""Claims of a suite, evaluated on what a run measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bitbench.analysis.statistics import Estimate, Series, replicates
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.analysis.verdicts import JUDGE_CONFIDENCE
from bitbench.errors import Exit
from bitbench.store.metrics import METRICS
from bitbench.store.schema import PROMPT_TOKENS
from bitbench.suite.schema import Claim
from bitbench.suite.select import counterpart, describe, selects


class ClaimStatus(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_EVALUATED = "not evaluated"


# Worst first: a claim over several cases is as good as its worst case.
_ORDER = [ClaimStatus.FAIL, ClaimStatus.NOT_EVALUATED, ClaimStatus.INCONCLUSIVE, ClaimStatus.PASS]


@dataclass(frozen=True)
class Evidence:
    """One case that a claim rests on."""

    case: str
    label: str
    status: ClaimStatus
    value: Estimate | None = None
    """With its interval at :data:`~bitbench.analysis.verdicts.JUDGE_CONFIDENCE`."""
    reason: str = ""


@dataclass(frozen=True)
class ClaimResult:
    claim: Claim
    status: ClaimStatus
    reason: str
    evidence: tuple[Evidence, ...] = ()
    excused: bool = False
    """Not evaluated because a quick run never measures it: the exit code ignores it."""

    @property
    def deciding(self) -> Evidence | None:
        """The case that decides: the worst one, and among equals the one nearest to failing."""
        worst = [item for item in self.evidence if item.status is self.status]
        judged = [item for item in worst if item.value is not None]
        if not judged:
            return worst[0] if worst else None
        return min(judged, key=lambda item: _margin(self.claim, item.value))

    @property
    def turns_exit_code(self) -> bool:
        """Whether this result alone makes the command fail."""
        if not self.claim.gating or self.excused:
            return False
        return self.status in (ClaimStatus.FAIL, ClaimStatus.NOT_EVALUATED)


def evaluate(summary: Summary) -> list[ClaimResult]:
    """Every claim of the run's suite, in suite order."""
    return [
        evaluate_claim(Claim.model_validate(claim), summary) for claim in summary.run.info.suite["claims"]
    ]


def evaluate_claim(claim: Claim, summary: Summary) -> ClaimResult:
    """One claim.

    Notes
    -----
    *pass* needs the whole 99 % interval on the right side of the bound, *fail* the whole interval
    on the wrong side; an interval across the bound is *inconclusive*, and so is a value without
    one (too few replicates). Counted figures (bytes) are compared as they are. All matching cases
    must hold. No matching case means *not evaluated*, never *pass*.
    """
    cases = _matching(claim, summary)
    if not cases:
        reason = f"no case of this run carries {claim.metric} where {describe_where(claim)}"
        return ClaimResult(claim, ClaimStatus.NOT_EVALUATED, reason, excused=summary.quick)
    evidence = tuple(_evidence(claim, case, summary) for case in cases)
    status = min((item.status for item in evidence), key=_ORDER.index)
    result = ClaimResult(claim, status, "", evidence)
    deciding = result.deciding
    reason = deciding.reason if deciding is not None else ""
    excused = summary.quick and all(case.ok for case in cases)
    return ClaimResult(claim, status, reason, evidence, excused and status is ClaimStatus.NOT_EVALUATED)


def exit_code(summary: Summary, results: Sequence[ClaimResult], *, strict: bool = False) -> Exit:
    """What the command line answers for this run.

    Nothing measured is a failure of the tool; a gating claim that failed or could not be
    evaluated fails the run; under ``strict`` a gating claim left open is reported as such.
    """
    if not any(case.ok for case in summary.cases):
        return Exit.TOOL
    if any(result.turns_exit_code for result in results):
        return Exit.FAILED
    gating = [result for result in results if result.claim.gating and not result.excused]
    if strict and any(result.status is ClaimStatus.INCONCLUSIVE for result in gating):
        return Exit.INCONCLUSIVE
    return Exit.OK


def describe_where(claim: Claim) -> str:
    """The selector in words: ``layer=ternary, shape=4096x4096``."""
    return describe(claim.where)


def describe_bound(claim: Claim) -> str:
    """The bound in words: ``at least 19.5x``."""
    unit = METRICS[claim.metric].unit if claim.of is None else "x"
    suffix = unit if unit in ("", "x") else f" {unit}"
    if claim.at_least is not None:
        return f"at least {claim.at_least:g}{suffix}"
    if claim.at_most is not None:
        return f"at most {claim.at_most:g}{suffix}"
    low, high = _between(claim)
    return f"between {low:g} and {high:g}{suffix}"


def _between(claim: Claim) -> tuple[float, float]:
    if claim.between is None:
        raise ValueError(f"claim {claim.id!r} has no bound")
    return claim.between[0], claim.between[1]


def _limits(claim: Claim) -> tuple[float, float]:
    """Lower and upper bound, infinite where there is none."""
    if claim.at_least is not None:
        return claim.at_least, float("inf")
    if claim.at_most is not None:
        return float("-inf"), claim.at_most
    return _between(claim)


def _margin(claim: Claim, value: Estimate | None) -> float:
    """How far the value lies inside the bounds, relative to its size; negative outside."""
    if value is None:
        return float("-inf")
    low, high = _limits(claim)
    return min(value.value - low, high - value.value) / (abs(value.value) or 1.0)


def _matching(claim: Claim, summary: Summary) -> list[CaseSummary]:
    """Cases that the claim is about: those selected that carry its metric, or would have."""
    selected = [case for case in summary.cases if selects(claim.where, case.case)]
    kinds = {_kind_of_case(case) for case in summary.cases if case.ok and claim.metric in case.series}
    return [
        case
        for case in selected
        if claim.metric in case.series
        or (not case.ok and (_kind_of_case(case) in kinds or _could(claim, case)))
    ]


def _kind_of_case(case: CaseSummary) -> tuple[str, str, Any]:
    """Cases of one kind carry the same metrics."""
    return case.case.workload, case.case.phase, case.case.params.get("measure")


_SCORED_BY = {
    "training.bits_per_byte": ("pretrain",),
    "training.accuracy": ("classify",),
    "training.packed_accuracy": ("classify",),
    "training.packed_agreement": ("classify",),
}
"""The workloads that have a score of training; other figures of training are those of all that train."""


def _could(claim: Claim, case: CaseSummary) -> bool:
    """Whether a case that failed would have carried the metric, where no sibling can tell."""
    if claim.metric.startswith("memory.model_") and case.case.workload == "classify":
        return case.case.phase == "once"
    if claim.metric.startswith("memory.model_") and case.case.workload == "image_accuracy":
        return case.case.params.get("measure") == "memory"
    if claim.metric.startswith(("decode.", "memory.model_")):
        of_prompt = claim.metric == "decode.prefill_tokens_per_second"
        return case.case.workload == "decode" and (PROMPT_TOKENS in case.case.params) == of_prompt
    if claim.metric.startswith("memory."):
        return case.case.params.get("measure") == "memory"
    if claim.metric.startswith("quality."):
        of_images = claim.metric.startswith(("quality.accuracy", "quality.images"))
        return case.case.replicate == ("images" if of_images else "documents")
    if claim.metric.startswith("training."):
        trained = _SCORED_BY.get(claim.metric, ("pretrain", "classify"))
        return case.case.phase == "once" and case.case.workload in trained
    if claim.metric.startswith("inference."):
        return case.case.workload in ("classify", "image_accuracy") and case.case.phase == "timed"
    return case.case.phase == "timed"


def _evidence(claim: Claim, case: CaseSummary, summary: Summary) -> Evidence:
    def answer(status: ClaimStatus, reason: str, value: Estimate | None = None) -> Evidence:
        return Evidence(case.case.id, case.case.label, status, value, reason)

    if not case.ok:
        return answer(ClaimStatus.NOT_EVALUATED, f"{case.case.label} is {case.status}: {case.reason}")
    series: Series | None = case.series[claim.metric]
    if claim.of is not None:
        series = _ratio(claim, case, summary)
        if series is None:
            return answer(
                ClaimStatus.NOT_EVALUATED, f"no figure of {describe(claim.of)} beside {case.case.label}"
            )
    return _judge(claim, series, summary.quick, answer)


def _ratio(claim: Claim, case: CaseSummary, summary: Summary) -> Series | None:
    """The metric divided by that of the case named by ``of``, replicate by replicate: all points are
    measured in the same launches."""
    other = counterpart(claim.of or {}, case.case, (found.case for found in summary.cases))
    beside = next((found for found in summary.cases if other is not None and found.case.id == other.id), None)
    if beside is None or claim.metric not in beside.series:
        return None
    return case.series[claim.metric].ratio_to(beside.series[claim.metric])


def _judge(claim: Claim, series: Series | None, quick: bool, answer: Callable[..., Evidence]) -> Evidence:
    if series is None:
        return answer(ClaimStatus.NOT_EVALUATED, "no replicate has both sides")
    value = series.estimate(JUDGE_CONFIDENCE)
    if quick and not value.exact:
        return answer(ClaimStatus.NOT_EVALUATED, "a quick run judges nothing that is measured", value)
    bounds = value.bounds
    if bounds is None:
        return answer(ClaimStatus.INCONCLUSIVE, f"{replicates(value.n)} no interval", value)
    low, high = _limits(claim)
    if bounds[0] >= low and bounds[1] <= high:
        return answer(ClaimStatus.PASS, "", value)
    if bounds[1] < low or bounds[0] > high:
        return answer(ClaimStatus.FAIL, f"not {describe_bound(claim)}", value)
    return answer(ClaimStatus.INCONCLUSIVE, "the interval reaches across the bound", value)
