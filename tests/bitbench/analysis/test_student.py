from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.student import (
    digamma,
    fisher_tail,
    incomplete_beta,
    student_quantile,
    student_tail,
    trigamma,
    trigamma_inverse,
)

EULER = 0.5772156649015329


@pytest.mark.parametrize(
    ("t", "df", "expected"),
    [  # printed tables of Student's distribution; the normal one as its limit
        (12.706, 1, 0.025),
        (4.604, 4, 0.005),
        (1.8125, 10, 0.05),
        (2.617, 120, 0.005),
        (1.95996, math.inf, 0.025),
        (0.0, 7, 0.5),
    ],
)
def test_tail_agrees_with_tables(t: float, df: float, expected: float) -> None:
    assert student_tail(t, df) == pytest.approx(expected, abs=3e-5)


def test_tail_of_two_degrees_of_freedom_in_closed_form() -> None:
    for t in (-30.0, -1.0, 0.3, 2.0, 50.0):
        assert student_tail(t, 2) == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), abs=1e-12)


@given(st.floats(-40, 40), st.floats(0.5, 500))
def test_both_tails_make_one(t: float, df: float) -> None:
    assert student_tail(t, df) + student_tail(-t, df) == pytest.approx(1)


@given(st.floats(0.51, 0.9999), st.floats(0.8, 3e5))
def test_quantile_inverts_the_tail_for_real_degrees_of_freedom(p: float, df: float) -> None:
    assert student_tail(student_quantile(p, df), df) == pytest.approx(1 - p, rel=1e-6)


@pytest.mark.parametrize(
    ("f", "above", "below", "expected"),
    [(4.26, 2, 9, 0.05), (5.35, 9, 9, 0.01), (161.4, 1, 1, 0.05), (2.4073, 9, math.inf, 0.01)],
)
def test_fisher_tail_agrees_with_tables(f: float, above: float, below: float, expected: float) -> None:
    assert fisher_tail(f, above, below) == pytest.approx(expected, rel=2e-3)


@given(st.floats(0.001, 0.999), st.floats(0.2, 2000), st.floats(0.2, 2000))
def test_incomplete_beta_has_its_symmetry_and_recurrence(x: float, a: float, b: float) -> None:
    assert incomplete_beta(x, a, b) + incomplete_beta(1 - x, b, a) == pytest.approx(1, abs=1e-9)
    step = math.exp(
        a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a + 1) - math.lgamma(b)
    )
    assert incomplete_beta(x, a, b) - incomplete_beta(x, a + 1, b) == pytest.approx(step, abs=1e-9)


def test_derivatives_of_log_gamma_at_known_points() -> None:
    assert digamma(1) == pytest.approx(-EULER, abs=1e-12)
    assert digamma(0.5) == pytest.approx(-EULER - 2 * math.log(2), abs=1e-12)
    assert trigamma(1) == pytest.approx(math.pi**2 / 6, abs=1e-12)
    assert trigamma(0.5) == pytest.approx(math.pi**2 / 2, abs=1e-12)


@given(st.floats(1e-6, 1e6))
def test_trigamma_is_inverted(x: float) -> None:
    assert trigamma_inverse(trigamma(x)) == pytest.approx(x, rel=1e-9)
