from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.statistics import (
    Estimate,
    Series,
    change,
    launch_latency,
    linear_mean,
    log_mean,
    share,
    student_quantile,
)

POSITIVE = st.floats(1e-9, 1e9)


@pytest.mark.parametrize(
    ("p", "df", "expected"),
    [  # printed tables of Student's distribution
        (0.975, 1, 12.706),
        (0.975, 4, 2.776),
        (0.995, 1, 63.657),
        (0.995, 4, 4.604),
        (0.95, 10, 1.812),
        (0.975, 30, 2.042),
        (0.995, 120, 2.617),
        (0.975, 100_000, 1.960),
    ],
)
def test_student_quantile_agrees_with_tables(p: float, df: int, expected: float) -> None:
    assert student_quantile(p, df) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("p", "df"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_student_quantile_refuses_what_it_cannot_answer(p: float, df: int) -> None:
    with pytest.raises(ValueError, match=r"0\.5 <= p < 1"):
        student_quantile(p, df)


def test_latency_is_the_median_block_per_call_in_seconds() -> None:
    assert launch_latency([1000, 5_000_000, 1200], calls=4) == pytest.approx(300e-9)


def test_linear_mean_by_hand() -> None:
    found = linear_mean([1.0, 2.0, 3.0])
    half = 4.302652729 * 1.0 / math.sqrt(3)
    assert found.value == 2.0
    assert found.low == pytest.approx(2 - half, abs=1e-6)
    assert found.high == pytest.approx(2 + half, abs=1e-6)
    assert (found.n, found.confidence) == (3, 0.95)


def test_one_replicate_gives_a_value_and_no_interval() -> None:
    found = log_mean([3.0])
    assert found.value == pytest.approx(3.0)
    assert found.bounds is None
    assert not found.has_interval
    assert (found.least, found.most) == (None, None)


def test_two_replicates_give_their_range_and_no_interval() -> None:
    """Student's interval from two launches 30 % apart would reach from 0.15 to 8.9 at 95 %."""
    for found in (log_mean([1.3, 1.0]), linear_mean([1.3, 1.0])):
        assert not found.has_interval
        assert found.bounds is None
        assert (found.least, found.most, found.n) == (1.0, 1.3, 2)
    three = log_mean([1.0, 1.3, 1.1])
    assert three.has_interval
    assert (three.least, three.most) == (None, None)


@given(st.lists(POSITIVE, min_size=3, max_size=12), st.floats(1e-3, 1e3))
def test_log_mean_scales_with_its_unit(values: list[float], factor: float) -> None:
    one, scaled = log_mean(values), log_mean([value * factor for value in values])
    assert scaled.value == pytest.approx(one.value * factor, rel=1e-6)
    if one.low is not None and one.low > 1e-290:
        assert scaled.low == pytest.approx(one.low * factor, rel=1e-5)


@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=12))
def test_log_interval_holds_its_value_and_widens_with_confidence(values: list[float]) -> None:
    narrow, wide = log_mean(values, 0.95), log_mean(values, 0.99)
    assert narrow.low is not None
    assert narrow.high is not None
    assert wide.low is not None
    assert wide.high is not None
    slack = 1 + 1e-12
    assert wide.low <= narrow.low * slack
    assert narrow.low <= narrow.value * slack
    assert narrow.value <= narrow.high * slack
    assert narrow.high <= wide.high * slack


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=3, max_size=9))
def test_a_ratio_and_its_inverse_mirror_each_other(pairs: list[tuple[float, float]]) -> None:
    above = Series({i: a for i, (a, _) in enumerate(pairs)}, "log")
    below = Series({i: b for i, (_, b) in enumerate(pairs)}, "log")
    ratio, inverse = above.ratio_to(below), below.ratio_to(above)
    assert ratio is not None
    assert inverse is not None
    one, other = ratio.estimate(), inverse.estimate()
    assert one.value * other.value == pytest.approx(1)
    assert one.low is not None
    assert other.high is not None
    assert one.low * other.high == pytest.approx(1)


def test_pairing_cancels_what_a_launch_does_to_both_sides() -> None:
    rng = random.Random(1)
    launches = {i: math.exp(rng.gauss(0, 0.3)) for i in range(5)}
    slow = Series({i: 2.0 * shared for i, shared in launches.items()}, "log")
    fast = Series(launches, "log")
    ratio = slow.ratio_to(fast)
    assert ratio is not None
    found = ratio.estimate()
    assert found.low == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0)


def test_only_shared_replicates_are_compared() -> None:
    one, other = Series({0: 2.0, 1: 4.0}, "log"), Series({1: 2.0, 2: 9.0}, "log")
    ratio = one.ratio_to(other)
    assert ratio is not None
    assert ratio.values == {1: 2.0}
    assert one.ratio_to(Series({7: 1.0}, "log")) is None


def test_counts_are_exact_whatever_their_replicates() -> None:
    codes, floats = Series({0: 5.0}, "exact"), Series({3: 100.0}, "exact")
    ratio = floats.ratio_to(codes)
    assert ratio is not None
    assert ratio.estimate() == Estimate(20.0, exact=True)
    assert ratio.estimate().bounds == (20.0, 20.0)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """2000 experiments of five launches each, with launch effects and block noise: the share of
    95 % intervals that hold the true latency. Its own standard error is 0.5 %."""
    rng = random.Random(20260102)
    truth, held = 1e-5, 0
    for _ in range(2000):
        launches = []
        for _ in range(5):
            effect = truth * math.exp(rng.gauss(0, 0.02))
            blocks = [round(8e9 * effect * math.exp(rng.gauss(0, 0.01))) for _ in range(9)]
            launches.append(launch_latency(blocks, 8))
        found = log_mean(launches)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.935 < held / 2000 < 0.965


def test_an_interval_over_blocks_would_not() -> None:
    """Why launches are the unit: over the blocks of one process the interval misses the truth."""
    rng = random.Random(7)
    truth, held = 1.0, 0
    for _ in range(500):
        effect = truth * math.exp(rng.gauss(0, 0.02))
        found = log_mean([effect * math.exp(rng.gauss(0, 0.01)) for _ in range(45)])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held / 500 < 0.3


def test_log_mean_is_the_geometric_mean() -> None:
    values = [1.0, 10.0, 100.0]
    assert log_mean(values).value == pytest.approx(statistics.geometric_mean(values))


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [  # Wilson's interval as printed for the binomial in textbooks: Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_a_share_has_the_interval_of_the_literature(right: int, images: int, low: float, high: float) -> None:
    found = Series(dict(enumerate([1.0] * right + [0.0] * (images - right))), "share").estimate()
    assert found.value == right / images
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    mirrored = share([0.0] * right + [1.0] * (images - right))
    assert mirrored.low == pytest.approx(1 - high, abs=6e-5)
    assert (found.n, found.confidence, found.exact) == (images, 0.95, False)


def test_a_share_of_too_few_has_no_interval() -> None:
    assert share([1.0, 0.0]) == Estimate(0.5, n=2)
    assert change([1.0, 0.0]) == Estimate(0.5, n=2)


def test_a_share_covers_the_truth_as_often_as_it_says() -> None:
    """By the exact probabilities of a binomial count: 95 % on average over true shares."""
    n = 60
    intervals = [share([1.0] * k + [0.0] * (n - k)) for k in range(n + 1)]
    truths = [i / 200 for i in range(2, 199)]
    covered = [
        sum(
            math.comb(n, k) * p**k * (1 - p) ** (n - k)
            for k, found in enumerate(intervals)
            if found.low <= p <= found.high
        )
        for p in truths
    ]
    assert statistics.fmean(covered) == pytest.approx(0.95, abs=0.006)
    assert min(covered) > 0.84


def test_a_change_by_hand() -> None:
    """12 images gained, 4 lost, 84 as before: half an image is added to each of the four outcomes."""
    found = change([1.0] * 12 + [-1.0] * 4 + [0.0] * 84)
    assert found.value == pytest.approx(0.08)
    middle, variance = 8 / 102, (12.5 + 4.5 - 8**2 / 102) / 102**2
    assert found.low == pytest.approx(middle - 1.959964 * math.sqrt(variance), abs=1e-6)
    assert found.high == pytest.approx(middle + 1.959964 * math.sqrt(variance), abs=1e-6)
    same = change([0.0] * 100)
    assert same.value == 0
    assert -0.03 < same.low < 0 < same.high < 0.03


def test_a_change_covers_the_truth_as_often_as_it_says() -> None:
    """Of 300 images 4 % are lost and 2 % gained by chance: few enough for a naive interval to fail."""
    rng = random.Random(1)
    outcomes, weights = (-1.0, 1.0, 0.0), (0.04, 0.02, 0.94)
    found = [change(rng.choices(outcomes, weights, k=300)) for _ in range(1500)]
    share_covered = sum(f.low <= -0.02 <= f.high for f in found) / len(found)
    assert 0.935 < share_covered < 0.975


def test_shares_are_subtracted_image_by_image_and_have_no_ratio() -> None:
    """Two networks that are right about the same images differ by nothing, however uncertain each is."""
    one = Series({0: 1.0, 1: 0.0, 2: 1.0, 3: 0.0}, "share")
    other = Series({1: 1.0, 2: 1.0, 3: 0.0, 4: 1.0}, "share")
    difference = one.minus(other)
    assert difference == Series({1: -1.0, 2: 0.0, 3: 0.0}, "change")
    assert one.ratio_to(other) is None
    assert difference.ratio_to(difference) is None
    assert one.minus(Series({9: 1.0}, "share")) is None
    right = Series({i: float(i % 3 > 0) for i in range(300)}, "share")
    assert right.estimate().high - right.estimate().low > 0.1
    change = right.minus(right).estimate()
    assert change.high - change.low < 0.02
