from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.statistics import Estimate
from bitbench.report.numbers import (
    estimate,
    interval,
    percent,
    plain,
    quantity,
    shape_text,
    spread,
    with_interval,
)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0000123, "s", "12.3 µs"),
        (9.9996e-7, "s", "1.00 µs"),
        (0.9996, "s", "1.00 s"),
        (3.2e-10, "s", "0.320 ns"),
        (72.0, "s", "72.0 s"),
        (0.0, "B", "0 B"),
        (1536.0, "B", "1.50 KiB"),
        (5 * 2**30, "B", "5.00 GiB"),
        (19.883, "x", "19.9x"),
        (24.91, "tokens/s", "24.9 tokens/s"),
        (3.99e6, "", "3.99e6"),
        (0.00001234, "", "1.23e-5"),
        (float("nan"), "x", "n/a"),
        (float("inf"), "x", "infx"),
    ],
)
def test_quantity(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_the_interval_sets_the_digits_and_shares_the_unit() -> None:
    found = Estimate(1.23456e-5, 1.22e-5, 1.25e-5, n=5)
    assert (estimate(found, "s"), interval(found, "s")) == ("12.3 µs", "[12.2, 12.5]")
    sharp = Estimate(1.23456e-5, 1.2344e-5, 1.2347e-5, n=5)
    assert (estimate(sharp, "s"), interval(sharp, "s")) == ("12.35 µs", "[12.34, 12.35]")
    across = Estimate(0.99e-3, 0.97e-3, 1.01e-3, n=5)
    assert interval(across, "s") == "[970, 1,010]", "bounds stay in the unit of the value"


def test_counts_carry_no_empty_zeros() -> None:
    assert estimate(Estimate(32.0, exact=True)) == "32"
    assert estimate(Estimate(1.6, exact=True)) == "1.6"
    assert estimate(Estimate(20.0, exact=True), "x") == "20x"
    assert estimate(Estimate(64.0 * 2**20, exact=True), "B") == "64 MiB"
    assert estimate(Estimate(100.0, exact=True), "B") == "100 B"


def test_no_interval_prints_none() -> None:
    lone = Estimate(2.0)
    assert (estimate(lone, "x"), interval(lone, "x"), spread(lone)) == ("2.00x", "", "")
    assert estimate(None) == "n/a"


def test_spread_is_half_the_interval() -> None:
    assert spread(Estimate(100.0, 99.0, 101.0, n=5)) == "±1.0 %"


def test_an_absurdly_wide_interval_stays_short() -> None:
    """A few noisy launches can give bounds many orders of magnitude apart."""
    wide = Estimate(0.132, 3.1e-13, 3.48e10, n=3)
    assert interval(wide, "x") == "[3.1e-13, 3.5e10]"
    assert spread(wide) == "±>100 %"


def test_a_range_is_labelled_and_never_looks_like_an_interval() -> None:
    two = Estimate(1.23e-5, n=2, least=1.2e-5, most=1.26e-5)
    assert interval(two, "s") == "n=2: 12.0 to 12.6"
    assert with_interval(two, "s") == "12.3 µs (n=2: 12.0 to 12.6)"
    assert spread(two) == ""


def test_percent_and_shape() -> None:
    assert percent(0.951) == "95 %"
    assert shape_text([4096, 2048]) == "4096x2048"
    assert shape_text("sotu") == "sotu"


@given(st.floats(1e-4, 9e4))
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert float(plain(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


@given(st.floats(1e-12, 1e5), st.sampled_from(["s", "B", "x", ""]))
def test_no_quantity_needs_a_second_look(value: float, unit: str) -> None:
    text = quantity(value, unit)
    assert len(text) <= 14
    assert "e+" not in text
