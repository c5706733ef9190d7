from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.analysis.claims import (
    ClaimResult,
    ClaimStatus,
    describe_bound,
    describe_where,
    evaluate,
    evaluate_claim,
    exit_code,
)
from bitbench.analysis.summary import Summary, summarise
from bitbench.errors import Exit
from bitbench.store.reader import RunData, load_run
from bitbench.suite.schema import Claim


@pytest.fixture(scope="module")
def run(stored_run: Path) -> RunData:
    return load_run(stored_run)


@pytest.fixture(scope="module")
def summary(run: RunData) -> Summary:
    return summarise(run)


def check(summary: Summary, metric: str, where: dict[str, Any], **bound: Any) -> ClaimResult:
    fields = {"id": "c", "says": "it holds", "metric": metric, "where": where, **bound}
    return evaluate_claim(Claim.model_validate(fields), summary)


def test_the_stored_claims_reach_every_outcome(summary: Summary) -> None:
    found = {result.claim.id: result.status for result in evaluate(summary)}
    assert found == {
        "twenty-fold": ClaimStatus.PASS,
        "fast-when-cold": ClaimStatus.PASS,
        "near-lossless": ClaimStatus.FAIL,
        "wide-interval": ClaimStatus.INCONCLUSIVE,
        "never-measured": ClaimStatus.NOT_EVALUATED,
    }


@pytest.mark.parametrize(
    ("bound", "status"),
    [
        ({"at_least": 19.5}, ClaimStatus.PASS),
        ({"at_least": 19.9}, ClaimStatus.FAIL),
        ({"at_most": 20.0}, ClaimStatus.PASS),
        ({"between": [19.5, 20.0]}, ClaimStatus.PASS),
        ({"between": [19.9, 20.0]}, ClaimStatus.FAIL),
    ],
)
def test_counted_figures_are_compared_as_they_are(
    summary: Summary, bound: dict[str, Any], status: ClaimStatus
) -> None:
    result = check(summary, "memory.weight_ratio", {"layer": "ternary", "shape": [4096, 4096]}, **bound)
    assert result.status is status
    assert result.deciding is not None
    assert result.deciding.value is not None
    assert result.deciding.value.exact


def test_an_interval_across_the_bound_is_inconclusive_on_either_side(summary: Summary) -> None:
    where = {"layer": "ternary", "tokens": 1, "cache": "hot", "shape": [2048, 2048]}
    case = summary.select("linear", **where)[0]
    found = case.value("time.speedup", 0.99)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    inside = (found.low + found.value) / 2
    beyond, below = found.high * 1.01, found.low * 0.99
    statuses = [check(summary, "time.speedup", where, at_least=b).status for b in (below, inside, beyond)]
    assert statuses == [ClaimStatus.PASS, ClaimStatus.INCONCLUSIVE, ClaimStatus.FAIL]
    statuses = [check(summary, "time.speedup", where, at_most=b).status for b in (below, inside, beyond)]
    assert statuses == [ClaimStatus.FAIL, ClaimStatus.INCONCLUSIVE, ClaimStatus.PASS]


def test_the_worst_case_decides(summary: Summary) -> None:
    where = {"layer": "ternary", "tokens": [1, 16], "cache": "hot"}
    result = check(summary, "time.speedup", where, at_least=10)
    assert result.status is ClaimStatus.FAIL
    assert len(result.evidence) == 4
    assert result.deciding is not None
    assert "tokens=16" in result.deciding.label
    values = [item.value.value for item in result.evidence if item.value is not None]
    assert result.deciding.value is not None
    assert result.deciding.value.value == min(values)


def test_a_failed_case_among_the_selected_leaves_the_claim_open(summary: Summary) -> None:
    where = {"layer": "binary-w1a1", "workload": "linear", "tokens": [1, 512], "cache": "hot"}
    result = check(summary, "time.speedup", where, at_least=2)
    assert result.status is ClaimStatus.NOT_EVALUATED
    assert "timeout" in result.reason


def test_no_matching_case_is_never_a_pass(summary: Summary) -> None:
    for where in ({"layer": "tenary"}, {"layer": "ternary", "shape": [1, 1]}, {"colour": "red"}):
        result = check(summary, "time.speedup", where, at_least=0)
        assert result.status is ClaimStatus.NOT_EVALUATED
        assert result.evidence == ()
        assert "no case" in result.reason


def test_ratio_to_another_layer_is_paired_by_launch(summary: Summary) -> None:
    where = {"layer": "ternary", "tokens": 1, "cache": "cold", "shape": [2048, 2048]}
    result = check(summary, "time.latency", where, of={"layer": "ternary-2bit"}, at_most=0.95)
    assert result.deciding is not None
    assert result.deciding.value is not None
    both = [summary.select("linear", **{**where, "layer": name})[0] for name in ("ternary", "ternary-2bit")]
    ratio = both[0].series["time.latency"].ratio_to(both[1].series["time.latency"])
    assert ratio is not None
    assert result.deciding.value == ratio.estimate(0.99)
    assert result.status is ClaimStatus.PASS


def test_ratio_without_the_other_side_is_not_evaluated(summary: Summary) -> None:
    where = {"layer": "ternary", "tokens": 512, "shape": [8192, 2048]}
    result = check(summary, "time.latency", where, of={"layer": "linear-bf16"}, at_most=1)
    assert result.status is ClaimStatus.NOT_EVALUATED
    assert "linear-bf16" in result.reason


def test_ratio_to_another_point_is_of_the_same_layer_and_paired_by_launch(summary: Summary) -> None:
    where = {"layer": "ternary", "tokens": 1, "cache": "hot", "shape": [2048, 2048]}
    result = check(summary, "time.latency", where, of={"cache": "cold"}, at_most=1000)
    hot, cold = (summary.one("linear", **{**where, "cache": cache}) for cache in ("hot", "cold"))
    assert hot is not None
    assert cold is not None
    ratio = hot.series["time.latency"].ratio_to(cold.series["time.latency"])
    assert ratio is not None
    assert result.status is ClaimStatus.PASS
    assert result.deciding is not None
    assert result.deciding.value == ratio.estimate(0.99)
    # Of no point with threads of its own is there any: the claim is open, never passed.
    left = check(summary, "time.latency", where, of={"threads": 1}, at_most=1000)
    assert left.status is ClaimStatus.NOT_EVALUATED
    assert left.reason.startswith("no figure of threads=1 beside linear/2048x2048")


def test_the_mean_of_blocks_counts_what_the_median_leaves_out(summary: Summary) -> None:
    case = summary.one("linear", "ternary", tokens=1, cache="hot", shape=[2048, 2048])
    assert case is not None
    [first, *_] = [r for r in summary.run.records if r.case == case.case.id]
    mean = sum(first.samples_ns) / len(first.samples_ns) / first.calls / 1e9
    assert case.series["time.mean"].values[first.launch] == pytest.approx(mean)
    assert case.series["time.mean"].values != case.series["time.latency"].values


def test_one_launch_cannot_pass(run_maker: ModuleType, tmp_path: Path) -> None:
    summary = summarise(load_run(run_maker.write_run(tmp_path, launches=1)))
    result = check(summary, "time.speedup", {"layer": "ternary", "tokens": 1, "cache": "hot"}, at_least=2)
    assert result.status is ClaimStatus.INCONCLUSIVE
    assert "no interval" in result.reason


def test_a_quick_run_judges_bytes_only(run_maker: ModuleType, tmp_path: Path) -> None:
    summary = summarise(load_run(run_maker.write_run(tmp_path, quick=True)))
    found = {result.claim.id: result for result in evaluate(summary)}
    assert found["twenty-fold"].status is ClaimStatus.PASS
    assert found["fast-when-cold"].status is ClaimStatus.NOT_EVALUATED
    assert "quick run" in found["fast-when-cold"].reason
    assert exit_code(summary, list(found.values())) is Exit.OK


def gate(summary: Summary, metric: str, where: dict[str, Any], **bound: Any) -> ClaimResult:
    return check(summary, metric, where, gating=True, **bound)


def test_exit_codes(summary: Summary) -> None:
    memory = {"layer": "ternary", "shape": [4096, 4096]}
    passed = gate(summary, "memory.weight_ratio", memory, at_least=19.5)
    failed = gate(summary, "memory.weight_ratio", memory, at_least=21)
    unmatched = gate(summary, "memory.weight_ratio", {"layer": "nobody"}, at_least=1)
    open_ = gate(
        summary, "time.latency", {"layer": "k3-g64", "tokens": 512}, of={"layer": "linear-int8"}, at_most=1.9
    )
    reported = check(summary, "memory.weight_ratio", memory, at_least=21)
    assert exit_code(summary, [passed, reported]) is Exit.OK
    assert exit_code(summary, [passed, failed]) is Exit.FAILED
    assert exit_code(summary, [unmatched]) is Exit.FAILED
    assert exit_code(summary, [open_]) is Exit.OK
    assert exit_code(summary, [open_], strict=True) is Exit.INCONCLUSIVE
    for order in itertools.permutations([open_, failed, passed]):
        assert exit_code(summary, list(order), strict=True) is Exit.FAILED


def test_nothing_measured_is_a_failure_of_the_tool(run: RunData) -> None:
    empty = summarise(RunData(run.path, run.info, run.cases, [], []))
    assert exit_code(empty, evaluate(empty)) is Exit.TOOL


@pytest.mark.parametrize(
    ("metric", "where", "count"),
    [
        ("time.speedup", {"layer": "ternary", "tokens": 1, "cache": "hot"}, 2),
        ("memory.model_ratio", {"layer": "ternary"}, 1),
        ("memory.weight_ratio", {"layer": "ternary"}, 3),
        ("decode.tokens_per_second", {"layer": "ternary"}, 1),
        ("quality.perplexity", {"layer": "ternary"}, 1),
        ("training.bits_per_byte", {"layer": "ternary"}, 0),
    ],
)
def test_what_is_missing_counts_as_evidence_not_measured(
    run: RunData, metric: str, where: dict[str, Any], count: int
) -> None:
    """An interrupted run names the cases that a claim waits for."""
    empty = summarise(RunData(run.path, run.info, run.cases, [], []))
    result = check(empty, metric, where, at_least=1)
    assert result.status is ClaimStatus.NOT_EVALUATED
    assert len(result.evidence) == count
    assert all("missing" in item.reason for item in result.evidence)


def test_claims_in_words() -> None:
    claim = Claim.model_validate(
        {
            "id": "c",
            "says": "x",
            "metric": "memory.weight_ratio",
            "where": {"layer": "ternary", "shape": [4096, 4096]},
            "between": [19.5, 20],
        }
    )
    assert describe_bound(claim) == "between 19.5 and 20x"
    assert describe_where(claim) == "layer=ternary, shape=4096x4096"
