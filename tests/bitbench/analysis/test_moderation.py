from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.moderation import MIN_LIKE, Prior, Spread, common_priors, fit_prior, like, moderate
from bitbench.analysis.student import student_quantile
from bitbench.store.schema import Case


def spreads(rng: np.random.Generator, truths: np.ndarray, df: int) -> list[Spread]:
    return [Spread(float(v), df) for v in truths * rng.chisquare(df, len(truths)) / df]


def test_equal_truths_are_found_out() -> None:
    rng = np.random.default_rng(1)
    prior = fit_prior(spreads(rng, np.full(120, 1e-4), 9))
    assert prior is not None
    assert prior.variance == pytest.approx(1e-4, rel=0.1)
    assert prior.df > 50


def test_the_worth_of_the_prior_follows_the_scatter_of_the_truths() -> None:
    """Truths drawn from the model itself, a scaled inverse chi square with 8 degrees of freedom."""
    rng = np.random.default_rng(2)
    truths = 1e-4 * 8 / rng.chisquare(8, 2000)
    prior = fit_prior(spreads(rng, truths, 9))
    assert prior is not None
    assert prior.df == pytest.approx(8, rel=0.25)
    assert prior.variance == pytest.approx(1e-4, rel=0.1)


def test_first_rank_of_120_cases_at_3_launches_comes_within_reach() -> None:
    """Plain t asks for 49 standard errors of the first of 120; pooled variances for fewer than 4."""
    level = 1 - 0.05 / 2 / 120
    assert student_quantile(level, 2) == pytest.approx(49, abs=0.5)
    assert student_quantile(level, 9) == pytest.approx(5.4, abs=0.1)
    rng = np.random.default_rng(3)
    prior = fit_prior(spreads(rng, 1e-4 * np.exp(rng.normal(0, 0.2, 120)), 2))
    assert prior is not None
    _, df = moderate(1e-4, 2, prior)
    assert student_quantile(level, df) < 4.3


@given(st.integers(2, 20), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_a_moderated_variance_lies_between_its_own_and_the_common_one(
    df: int, scatter: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sample = spreads(rng, 1e-4 * np.exp(rng.normal(0, scatter, 12)), df)
    prior = fit_prior(sample)
    assert prior is not None
    for own in sample:
        found, worth = moderate(own.variance, df, prior)
        low, high = sorted((own.variance, prior.variance))
        assert low * (1 - 1e-9) <= found <= high * (1 + 1e-9)
        assert df <= worth <= max(df, prior.pooled_df)


def test_too_few_like_cases_pool_nothing() -> None:
    rng = np.random.default_rng(4)
    assert fit_prior(spreads(rng, np.full(MIN_LIKE - 1, 1e-4), 9)) is None
    assert moderate(3e-4, 4, None) == (3e-4, 4)


def test_a_case_far_noisier_than_its_like_is_judged_alone() -> None:
    prior = Prior(variance=1e-4, df=50.0, pooled_df=200.0)
    assert moderate(9e-4, 9, prior) == (9e-4, 9)
    drawn, df = moderate(1.5e-4, 9, prior)
    assert drawn < 1.5e-4
    assert df == 59


def test_one_wild_case_does_not_spoil_the_pool() -> None:
    rng = np.random.default_rng(5)
    quiet = spreads(rng, np.full(20, 1e-4), 9)
    before, after = fit_prior(quiet), fit_prior([*quiet, Spread(1e-1, 9)])
    assert before is not None
    assert after is not None
    assert after.variance == pytest.approx(before.variance)
    assert after.df == before.df


def test_a_variance_of_zero_is_no_proof_of_silence() -> None:
    rng = np.random.default_rng(6)
    prior = fit_prior([*spreads(rng, np.full(20, 1e-4), 4), Spread(0.0, 4)])
    assert prior is not None
    found, _ = moderate(0.0, 4, prior)
    assert found > 0


def test_cases_that_share_their_noise_count_once() -> None:
    """Twelve layers against one baseline in five launches know the baseline's noise no better than one."""
    shared = [Spread(1e-4 * (1 + 0.01 * i), 4, "point") for i in range(12)]
    assert fit_prior(shared) is None
    four = [Spread(s.variance, 4, f"point {p}") for p in range(4) for s in shared]
    prior = fit_prior(four)
    assert prior is not None
    assert prior.pooled_df == 16
    assert moderate(1e-4, 4, prior)[1] == 16


def test_priors_are_kept_apart_by_kind() -> None:
    rng = np.random.default_rng(7)
    series = [
        (kind, None, list(rng.normal(0, spread, 10)))
        for kind, spread in (("quiet", 0.001), ("noisy", 0.03))
        for _ in range(30)
    ]
    found = common_priors([*series, ("lonely", None, [0.0, 0.1, 0.2]), ("short", None, [0.0, 0.1])])
    quiet, noisy = found["quiet"], found["noisy"]
    assert quiet is not None
    assert noisy is not None
    assert math.sqrt(quiet.variance) == pytest.approx(0.001, rel=0.15)
    assert math.sqrt(noisy.variance) == pytest.approx(0.03, rel=0.15)
    assert found["lonely"] is None
    assert "short" not in found


def test_like_is_replicate_workload_batch_and_cache() -> None:
    def case(**params: object) -> Case:
        return Case(
            id="c", point="p", workload="linear", entry=0, phase="timed", replicate="launches", launches=5,
            layer="ternary", params=params, numerics="n",
        )  # fmt: skip

    one = case(shape=[64, 64], tokens=1, cache="hot")
    assert like(one) == like(case(shape=[128, 64], tokens=1, cache="hot"))
    assert like(one) != like(case(shape=[64, 64], tokens=16, cache="hot"))
    assert like(one) != like(case(shape=[64, 64], tokens=1, cache="cold"))
    assert like(one) != like(one.model_copy(update={"workload": "decode"}))
