"""A/A launches: what they say about noise, and whether it is right."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.calibration import (
    MAX_SPREAD,
    autocorrelation,
    bias_spread,
    calibrate_cases,
    equivalence,
    floor,
    log_ratios,
    sees,
)
from bitbench.analysis.rounds import Trial, settle
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Word, judge_logs
from bitbench.store.schema import Record, Side, Status

LAUNCHES = 10


def record(side: Side, launch: int, ns: int, *, case: str = "a", status: Status = Status.OK) -> Record:
    timed = status is Status.OK
    return Record(
        case=case,
        launch=launch,
        side=side,
        status=status,
        reason="" if timed else "it died",
        calls=10 if timed else 0,
        samples_ns=[ns, ns + 2, ns - 2] if timed else [],
    )


def aa(rng: random.Random, spread: float, bias: float = 0.0, launches: int = LAUNCHES) -> list[float]:
    return [rng.gauss(bias, spread) for _ in range(launches)]


def calibrated(values: dict[str, list[float]]) -> tuple[dict, float]:  # type: ignore[type-arg]
    ratios = {case: dict(enumerate(found)) for case, found in values.items()}
    return calibrate_cases({case: f"label {case}" for case in values}, ratios, {}, gateable=values)


def test_ratios_are_base_over_head_launch_by_launch() -> None:
    found = log_ratios([record("base", 0, 1100), record("head", 0, 1000), record("base", 1, 900)])
    assert found == {"a": {0: pytest.approx(math.log(1.1))}}


def test_a_launch_with_a_failed_side_has_no_ratio() -> None:
    failed = record("head", 0, 0, status=Status.CRASH)
    assert log_ratios([record("base", 0, 1000), failed, record("", 1, 1000)]) == {}


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=30))
def test_autocorrelation_is_a_correlation(values: list[float]) -> None:
    found = autocorrelation(values)
    assert found is None or -1 <= found <= 1


def test_autocorrelation_tells_drift_from_alternation() -> None:
    assert autocorrelation([1, 1, 1, 1, 2, 2, 2, 2]) == pytest.approx(0.625)
    assert autocorrelation([1, 2, 1, 2, 1, 2, 1, 2]) == pytest.approx(-0.875)
    assert autocorrelation([1, 2, 3]) is None
    assert autocorrelation([1, 1, 1, 1]) is None


@given(
    st.lists(st.tuples(st.floats(-0.1, 0.1), st.floats(1e-4, 0.05)), min_size=1, max_size=30),
    st.floats(0.1, 10),
)
def test_bias_scales_with_what_is_measured(pairs: list[tuple[float, float]], factor: float) -> None:
    means, errors = zip(*pairs, strict=True)
    plain = bias_spread(means, errors, 9)
    scaled = bias_spread([m * factor for m in means], [e * factor for e in errors], 9)
    assert plain >= 0
    assert scaled == pytest.approx(factor * plain, rel=1e-3, abs=1e-9)


def test_bias_is_found_where_there_is_one_and_only_there() -> None:
    rng = random.Random(1)
    found: dict[float, list[float]] = {0.0: [], 0.02: []}
    for truth, estimates in found.items():
        for _ in range(60):
            launches = [aa(rng, 0.01, rng.gauss(0, truth)) for _ in range(30)]
            means = [statistics.fmean(case) for case in launches]
            errors = [statistics.stdev(case) / math.sqrt(LAUNCHES) for case in launches]
            estimates.append(bias_spread(means, errors, LAUNCHES - 1))
    assert statistics.fmean(found[0.0]) < 0.002
    assert statistics.fmean(found[0.02]) == pytest.approx(0.02, rel=0.15)


def test_no_bias_is_told_from_too_few_launches() -> None:
    assert bias_spread([0.1, -0.1], [0.001, 0.001], 2) == 0.0


@given(st.floats(-0.05, 0.05), st.floats(1e-5, 0.02), st.floats(0, 0.05))
def test_the_floor_is_never_negative_and_grows_with_the_mean(mean: float, error: float, bias: float) -> None:
    assert 0.0 <= floor(mean, error, bias, 9) <= floor(mean * 1.5, error, bias, 9) + 1e-12
    assert floor(mean, error, 0.0, 9) == 0.0


def test_the_floor_holds_the_true_bias_of_99_cases_in_100() -> None:
    rng = random.Random(2)
    outside = total = 0
    for _ in range(100):
        truths = {str(i): rng.gauss(0, 0.02) for i in range(30)}
        cases, _ = calibrated({case: aa(rng, 0.01, truth) for case, truth in truths.items()})
        for case, truth in truths.items():
            allowed = max(MINIMUM_EFFECT, cases[case].floor)
            outside += abs(truth) > math.log1p(allowed)
            total += 1
    assert outside / total <= 0.015


@given(st.floats(0.0005, 0.03), st.integers(1, 60))
def test_more_spread_and_more_cases_hide_more(spread: float, family: int) -> None:
    alone = sees(0.8, 0.01, spread, LAUNCHES, 1)
    among = sees(0.8, 0.01, spread, LAUNCHES, family)
    surer = sees(0.95, 0.01, spread, LAUNCHES, family)
    noisier = sees(0.8, 0.01, spread * 1.5, LAUNCHES, family)
    assert alone is not None
    assert among is not None
    assert surer is not None
    assert noisier is not None
    assert 0.01 <= alone <= among <= surer
    assert noisier >= among


def test_what_cannot_be_seen_is_none() -> None:
    assert sees(0.8, 0.01, 2.0, 3, 20) is None
    assert sees(0.8, 0.01, 0.0, LAUNCHES, 20) == pytest.approx(0.01)


@pytest.mark.parametrize("spread", [0.005, 0.01, 0.02])
def test_the_slowdown_promised_to_be_seen_is_seen_by_the_rule_itself(spread: float) -> None:
    """One slow case among ten equal ones, judged as the gate judges, without pooling."""
    rng = random.Random(3)
    slowdown = sees(0.80, MINIMUM_EFFECT, spread, LAUNCHES, 10)
    assert slowdown is not None
    caught = 0
    rounds = 300
    for _ in range(rounds):
        trials = []
        for case in range(10):
            bias = -math.log1p(slowdown) if case == 0 else 0.0
            trials.append(Trial(aa(rng, spread, bias), aa(rng, spread, bias), like=case))
        caught += settle(trials)[0].word is Word.SLOWER
    assert 0.74 <= caught / rounds <= 0.99


@pytest.mark.parametrize("spread", [0.003, 0.01, 0.03])
def test_sameness_is_shown_within_the_margin_that_was_promised(spread: float) -> None:
    rng = random.Random(4)
    margin = max(MINIMUM_EFFECT, equivalence(0.0, spread, LAUNCHES))
    shown = [judge_logs(aa(rng, spread), minimum_effect=margin).word is Word.SAME for _ in range(400)]
    assert statistics.fmean(shown) >= 0.97


def test_quiet_cases_are_admitted_and_noisy_ones_are_told_why() -> None:
    rng = random.Random(5)
    cases, _ = calibrated({"quiet": aa(rng, 0.005), "noisy": aa(rng, 0.08)})
    assert cases["quiet"].admitted
    assert cases["quiet"].why == ""
    assert not cases["noisy"].admitted
    assert cases["noisy"].spread is not None
    assert cases["noisy"].spread > MAX_SPREAD
    assert cases["noisy"].why == f"spread {100 * cases['noisy'].spread:.1f} % exceeds 3 %"


def test_a_failed_or_hardly_measured_case_is_not_admitted() -> None:
    ratios = {"a": {0: 0.0, 1: 0.001}, "b": dict.fromkeys(range(LAUNCHES), 0.0)}
    failures = {"b": "crash: it died", "c": "oom: no memory"}
    labels = {"a": "A", "b": "B", "c": "C"}
    cases, bias = calibrate_cases(labels, ratios, failures, gateable=labels)
    assert {case: found.admitted for case, found in cases.items()} == {"a": False, "b": False, "c": False}
    assert cases["a"].why == "2 of the 3 launches that a spread needs"
    assert cases["b"].why == "crash: it died"
    assert cases["c"].why == "oom: no memory"
    assert bias == 0.0
