from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.statistics import Series
from bitbench.analysis.verdicts import Word, judge, not_comparable

OPPOSITE = {Word.FASTER: Word.SLOWER, Word.SLOWER: Word.FASTER}


def around(center: float, spread: float) -> Series:
    """Five launches whose logarithms lie evenly around ``center``."""
    steps = (-2, -1, 0, 1, 2)
    return Series({i: center * math.exp(spread * step) for i, step in enumerate(steps)}, "log")


@pytest.mark.parametrize(
    ("center", "spread", "word"),
    [
        (2.0, 0.01, Word.FASTER),
        (0.5, 0.01, Word.SLOWER),
        (1.0, 0.001, Word.SAME),
        (1.0, 0.02, Word.INCONCLUSIVE),
        (1.3, 0.3, Word.INCONCLUSIVE),
        (1.005, 1e-6, Word.SAME),  # surely different, but less than anyone cares about
        (1.03, 1e-6, Word.FASTER),
    ],
)
def test_words(center: float, spread: float, word: Word) -> None:
    assert judge(around(center, spread), "linear").word is word


def test_one_launch_decides_nothing() -> None:
    verdict = judge(Series({0: 50.0}, "log"), "linear")
    assert verdict.word is Word.INCONCLUSIVE
    assert verdict.reason == "1 replicate gives no interval"


def test_two_launches_decide_nothing() -> None:
    """Student's quantile at one degree of freedom is 63.7: luck must not look like proof."""
    for values in ({0: 2.0, 1: 2.2}, {0: 20.0, 1: 20.0}):
        verdict = judge(Series(values, "log"), "linear")
        assert verdict.word is Word.INCONCLUSIVE
        assert verdict.reason == "2 replicates give no interval"


@given(st.lists(st.floats(0.2, 5.0), min_size=2, max_size=10))
def test_swapping_the_sides_swaps_the_words(ratios: list[float]) -> None:
    there = judge(Series(dict(enumerate(ratios)), "log"), "b").word
    back = judge(Series({i: 1 / r for i, r in enumerate(ratios)}, "log"), "a").word
    assert back is OPPOSITE.get(there, there)


@given(st.floats(0.3, 3.0), st.floats(0.0, 0.05), st.floats(1.0, 4.0))
def test_more_noise_never_changes_the_direction(center: float, spread: float, factor: float) -> None:
    clear, noisy = judge(around(center, spread), "a").word, judge(around(center, spread * factor), "a").word
    assert noisy in (clear, Word.INCONCLUSIVE)


def test_false_alarms_are_rare_and_real_changes_are_found() -> None:
    rng = random.Random(3)

    def share(true: float, words: set[Word], launches: int = 10) -> float:
        hits = 0
        for _ in range(400):
            values = {i: true * math.exp(rng.gauss(0, 0.014)) for i in range(launches)}
            hits += judge(Series(values, "log"), "a").word in words
        return hits / 400

    assert share(1.0, {Word.FASTER, Word.SLOWER}) <= 0.005
    assert share(1.05, {Word.FASTER}) >= 0.95


def test_not_comparable_says_why() -> None:
    verdict = not_comparable("linear", "linear is oom here")
    assert (verdict.word, verdict.reason, verdict.effect) == (Word.NOT_COMPARABLE, "linear is oom here", None)
