"""Step detection: exact fits, symmetries, and how often it is wrong."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbench.analysis import steps as module
from bitbench.analysis.steps import Step, changes, scatter, segments, steps

levels = st.floats(0.01, 100.0)
histories = st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40)


def noisy(rng: random.Random, n: int, sd: float, step: float = 0.0, at: int = 0) -> list[float]:
    return [math.exp(rng.gauss(0, sd)) * (1 + step if i >= at else 1.0) for i in range(n)]


@given(histories)
def test_segments_cover_the_history_without_gaps(values: list[float]) -> None:
    found = segments(values)
    assert found[0].start == 0
    assert found[-1].stop == len(values)
    for before, after in itertools.pairwise(found):
        assert before.stop == after.start
    for segment in found:
        part = values[segment.start : segment.stop]
        assert segment.stop > segment.start
        assert min(part) * (1 - 1e-9) <= segment.level <= max(part) * (1 + 1e-9)


@given(levels, st.integers(1, 30))
def test_a_level_history_has_no_step(level: float, n: int) -> None:
    assert steps([level] * n) == []


@given(levels, levels, st.integers(3, 15), st.integers(3, 15))
def test_a_clean_step_is_found_where_it_is(before: float, after: float, n: int, m: int) -> None:
    found = steps([before] * n + [after] * m)
    if abs(math.log(after / before)) < math.log1p(module.MINIMUM_STEP):
        assert found == []
    else:
        assert found == [Step(n, before, after)]


@given(histories, st.floats(1e-6, 1e6))
def test_the_unit_does_not_matter(values: list[float], factor: float) -> None:
    assert [step.at for step in steps(values)] == [step.at for step in steps([v * factor for v in values])]


@given(histories)
def test_seen_backwards_there_are_as_many_levels(values: list[float]) -> None:
    assert len(segments(values)) == len(segments(values[::-1]))


@given(histories)
def test_every_step_told_is_large_enough(values: list[float]) -> None:
    for step in steps(values, minimum=0.05):
        assert abs(math.log(step.after / step.before)) >= math.log1p(0.05) - 1e-9


@given(histories, st.floats(0.0, 0.2))
def test_more_noise_never_means_more_steps(values: list[float], noise: float) -> None:
    assert len(steps(values, noise=noise + 0.1, minimum=0.0)) <= len(steps(values, noise=noise, minimum=0.0))


@settings(max_examples=60)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(1e-3, 1.0))
def test_the_fit_is_the_best_of_all(values: list[float], penalty: float) -> None:
    """Against every way to cut the history."""

    def cost(bounds: tuple[int, ...]) -> float:
        total = penalty * (len(bounds) - 2)
        for start, stop in itertools.pairwise(bounds):
            part = values[start:stop]
            mean = math.fsum(part) / len(part)
            total += math.fsum((value - mean) ** 2 for value in part)
        return total

    n = len(values)
    every = ((0, *inner, n) for count in range(n) for inner in itertools.combinations(range(1, n), count))
    best = min(cost(bounds) for bounds in every)
    assert cost(tuple(module._fit(values, penalty))) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("n", [4, 5, 8, 15, 40])
def test_noise_alone_seldom_makes_a_step(n: int) -> None:
    """One per cent of scatter from run to run: at most one history in twenty shows a step."""
    rng = random.Random(n)
    false = sum(bool(steps(noisy(rng, n, 0.01))) for _ in range(200))
    assert false <= 10


@pytest.mark.parametrize(("n", "step", "least"), [(10, 0.10, 0.95), (10, 0.05, 0.8), (20, -0.10, 0.95)])
def test_real_steps_are_found_in_place(n: int, step: float, least: float) -> None:
    rng = random.Random(n)
    hits = 0
    for _ in range(200):
        found = steps(noisy(rng, n, 0.01, step, n // 2))
        hits += any(abs(one.at - n // 2) <= 1 and (one.change > 0) == (step > 0) for one in found)
    assert hits >= 200 * least


def test_two_steps_and_their_sizes() -> None:
    rng = random.Random(7)
    values = noisy(rng, 10, 0.005) + [1.2 * v for v in noisy(rng, 10, 0.005)] + noisy(rng, 10, 0.005)
    found = steps(values)
    assert [step.at for step in found] == [10, 20]
    assert [round(step.change, 1) for step in found] == [0.2, -0.2]


def test_a_single_spike_inside_wide_noise_is_no_step() -> None:
    values = [1.0, 1.03, 0.98, 1.02, 0.97, 1.06, 1.0, 1.02, 0.97, 1.01]
    assert steps(values) == []


def test_three_values_show_no_step_whatever_they_are() -> None:
    assert steps([1.0, 1.0, 5.0]) == []
    assert len(segments([1.0, 1.0, 5.0])) == 1


def test_a_history_that_touches_zero_is_fitted_as_it_stands() -> None:
    found = steps([0.0] * 5 + [2.0] * 5)
    assert found == [Step(5, 0.0, 2.0)]
    assert found[0].change == math.inf


def test_every_change_of_an_exact_figure_is_told() -> None:
    assert changes([8, 8, 9, 8]) == [Step(2, 8, 9), Step(3, 9, 8)]
    assert changes([8]) == changes([]) == []


def test_scatter_ignores_the_step_itself() -> None:
    rng = random.Random(3)
    level = [rng.gauss(0, 1) for _ in range(200)]
    stepped = [value + (50 if i >= 100 else 0) for i, value in enumerate(level)]
    assert scatter(stepped) == pytest.approx(scatter(level), rel=0.05)
    assert scatter(level) == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        steps([1.0, value])


def test_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        steps([1.0], noise=-1.0)


def test_nothing_has_no_segment() -> None:
    assert segments([]) == []
