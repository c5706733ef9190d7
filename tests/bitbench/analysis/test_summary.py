from __future__ import annotations

import math
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.analysis.aggregate import (
    Point,
    common_shapes,
    headline_points,
    linear_points,
    linear_shapes,
    totals,
)
from bitbench.analysis.summary import MISSING, CaseSummary, Summary, summarise
from bitbench.analysis.verdicts import Word
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Status


@pytest.fixture(scope="module")
def run(stored_run: Path) -> RunData:
    return load_run(stored_run)


@pytest.fixture(scope="module")
def summary(run: RunData) -> Summary:
    return summarise(run)


def timed(summary: Summary, layer: str, rows: int = 2048, tokens: int = 1, cache: str = "hot") -> CaseSummary:
    found = summary.one("linear", layer, shape=[rows, 2048], tokens=tokens, cache=cache)
    assert found is not None
    return found


def test_every_planned_case_is_there_and_every_status_kept(summary: Summary, run: RunData) -> None:
    assert [case.case for case in summary.cases] == run.cases
    found = {case.status for case in summary.cases}
    assert found == {status.value for status in Status} | {MISSING}


def test_latency_and_speedup_follow_the_samples(summary: Summary, run: RunData) -> None:
    case, base = timed(summary, "ternary"), timed(summary, "linear")
    medians = {
        (record.case, record.launch): statistics.median(record.samples_ns) / record.calls * 1e-9
        for record in run.records
        if record.samples_ns
    }
    latencies = [medians[case.case.id, launch] for launch in range(5)]
    ratios = [medians[base.case.id, launch] / medians[case.case.id, launch] for launch in range(5)]
    latency, speedup = case.value("time.latency"), case.value("time.speedup")
    assert latency is not None
    assert speedup is not None
    assert latency.value == pytest.approx(statistics.geometric_mean(latencies))
    assert speedup.value == pytest.approx(statistics.geometric_mean(ratios))
    assert speedup.n == 5
    assert case.verdict is not None
    assert case.verdict.word is Word.FASTER


def test_best_float_is_the_fastest_linear_layer_of_the_point(summary: Summary) -> None:
    case = timed(summary, "ternary", tokens=512)
    assert summary.best_float[case.case.point] == "linear-bf16"
    speedup, best = case.value("time.speedup"), case.value("time.speedup_best_float")
    assert speedup is not None
    assert best is not None
    assert best.value < speedup.value
    assert case.verdict_best_float is not None
    assert case.verdict_best_float.against == "linear-bf16"


def test_baseline_is_not_judged_against_itself(summary: Summary) -> None:
    case = timed(summary, "linear")
    assert case.verdict is None
    speedup = case.value("time.speedup")
    assert speedup is not None
    assert speedup.value == 1.0


def test_a_case_with_one_bad_launch_has_no_figures(summary: Summary) -> None:
    case = timed(summary, "binary-w1a1", rows=8192, tokens=16)
    assert case.status == "crash"
    assert [failure.launch for failure in case.failures] == [1]
    assert case.done == 5
    assert not case.series
    assert case.verdict is not None
    assert case.verdict.word is Word.NOT_COMPARABLE
    assert "SIGSEGV" in case.verdict.reason


def test_failure_of_the_baseline_makes_the_others_not_comparable(run: RunData) -> None:
    target = timed(summarise(run), "linear").case
    records = [r for r in run.records if r.case != target.id]
    broken = RunData(run.path, run.info, run.cases, records, run.telemetry)
    case = timed(summarise(broken), "ternary")
    assert case.value("time.latency") is not None
    assert case.value("time.speedup") is None
    assert case.verdict is not None
    assert case.verdict.word is Word.NOT_COMPARABLE
    assert "linear is missing" in case.verdict.reason


def test_perplexity_is_paired_by_document(summary: Summary) -> None:
    case = summary.select("perplexity", "ternary")[0]
    base = summary.select("perplexity", "linear")[0]
    perplexity, ratio = case.value("quality.perplexity"), case.value("quality.perplexity_ratio")
    reference = base.value("quality.perplexity")
    assert perplexity is not None
    assert ratio is not None
    assert reference is not None
    assert perplexity.n == 4
    assert perplexity.value == pytest.approx(math.exp(6.02), rel=1e-6)
    assert ratio.value == pytest.approx(perplexity.value / reference.value)
    assert ratio.high is not None
    assert ratio.low is not None
    assert perplexity.high is not None
    assert perplexity.low is not None
    # What makes one document harder than another is common to both layers.
    assert ratio.high / ratio.low < perplexity.high / perplexity.low


def test_equal_numerics_name_the_case_that_computed_them(summary: Summary) -> None:
    shared, source = (
        summary.select("perplexity", "ternary-2bit")[0],
        summary.select("perplexity", "ternary")[0],
    )
    assert shared.shared_from == source.case.id


def test_bytes_are_exact_and_the_high_water_mark_is_not(summary: Summary) -> None:
    case = summary.one("linear", "ternary", measure="memory")
    assert case is not None
    weight, peak = case.value("memory.weight_bytes"), case.value("memory.peak_bytes")
    assert weight is not None
    assert weight.exact
    assert peak is not None
    assert not peak.exact


def test_one_decoded_token_is_one_call(summary: Summary) -> None:
    case = summary.select("decode", "ternary")[0]
    rate, latency = case.value("decode.tokens_per_second"), case.value("time.latency")
    assert rate is not None
    assert latency is not None
    assert rate.value == pytest.approx(1 / latency.value)


def test_quick_runs_have_figures_and_no_verdicts(run_maker: ModuleType, tmp_path: Path) -> None:
    summary = summarise(load_run(run_maker.write_run(tmp_path, quick=True)))
    case = timed(summary, "ternary")
    assert case.value("time.speedup") is not None
    assert all(one.verdict is None and one.verdict_best_float is None for one in summary.cases)


def test_one_launch_has_no_interval_and_is_inconclusive(run_maker: ModuleType, tmp_path: Path) -> None:
    case = timed(summarise(load_run(run_maker.write_run(tmp_path, launches=1))), "ternary")
    latency = case.value("time.latency")
    assert latency is not None
    assert not latency.has_interval
    assert case.verdict is not None
    assert case.verdict.word is Word.INCONCLUSIVE


def test_an_interrupted_run_keeps_what_it_has(run: RunData) -> None:
    early = RunData(run.path, run.info, run.cases, [r for r in run.records if r.launch < 3], [])
    case = timed(summarise(early), "ternary")
    latency = case.value("time.latency")
    assert latency is not None
    assert latency.n == 3
    assert not case.complete


def test_totals_add_shapes_within_a_launch(summary: Summary) -> None:
    assert linear_shapes(summary) == [[2048, 2048], [8192, 2048]]
    points = [(1, "hot"), (1, "cold"), (16, "hot"), (16, "cold"), (512, "hot")]
    assert linear_points(summary) == headline_points(summary) == [Point(*point) for point in points]
    found = totals(summary, Point(1, "hot"))
    parts = [timed(summary, "ternary", rows).series["time.latency"].values for rows in (2048, 8192)]
    expected = {launch: parts[0][launch] + parts[1][launch] for launch in range(5)}
    assert found["ternary"].latency.values == pytest.approx(expected)
    assert found["ternary"].best_float == "linear-bf16"
    assert "k3-g64" not in found, "a layer that failed at one shape has no total"


def test_totals_use_the_shapes_planned_for_every_layer(run: RunData) -> None:
    """A shape that only some layers were to be measured at must not blank out the others."""
    cases = [c for c in run.cases if not (c.layer == "k2" and c.params.get("shape") == [8192, 2048])]
    partial = summarise(RunData(run.path, run.info, cases, run.records, []))
    assert common_shapes(partial, Point(1, "hot")) == [[2048, 2048]]
    assert "k2" in totals(partial, Point(1, "hot"))
    none_shared = [c for c in cases if c.layer == "k2" or c.params.get("shape") != [2048, 2048]]
    disjoint = summarise(RunData(run.path, run.info, none_shared, run.records, []))
    assert common_shapes(disjoint, Point(1, "hot")) == [[8192, 2048]], "where most layers meet"
    assert "k2" not in totals(disjoint, Point(1, "hot"))
    assert "ternary" in totals(disjoint, Point(1, "hot"))


def test_verdicts_are_one_family_with_pooled_variances(builder: Any) -> None:
    """Three launches of like cases: alone they decide at Student's 9.9, together at less than 4."""
    few = type(builder)(points=12, launches=3)
    run = few.plain(spread=0.004, slow={"p3-binary": 1.03})  # 0.406 ms against 1 ms
    found = {case.case.id: case for case in summarise(run).cases}
    verdicts = [case.verdict for case in found.values() if case.verdict is not None]
    assert len(verdicts) == 24
    assert {verdict.corrected_over for verdict in verdicts} == {24}
    widths = []
    for verdict in verdicts:
        assert verdict.effect is not None
        assert verdict.effect.low is not None
        assert verdict.effect.high is not None
        widths.append(math.log(verdict.effect.high / verdict.effect.low))
    assert max(widths) < 2 * 4 * 0.004 / math.sqrt(3) * 2
    assert found["p3-linear"].verdict is None


def test_totals_are_judged_as_one_family(builder: Any) -> None:
    summary = summarise(builder.plain())
    found = totals(summary, Point(1, "hot"))
    verdicts = [total.verdict for total in found.values() if total.verdict is not None]
    assert [verdict.corrected_over for verdict in verdicts] == [2, 2]
    assert found["linear"].verdict is None
