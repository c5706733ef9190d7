from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.moderation import Prior, common_priors
from bitbench.analysis.statistics import Series, student_quantile
from bitbench.analysis.verdicts import Word, correct, judge, judge_logs, judge_unpaired, not_comparable

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


def test_two_sides_without_a_common_launch() -> None:
    base, head = [0.00, 0.01, -0.01, 0.005, -0.005], [0.10, 0.11, 0.09, 0.105, 0.095]
    verdict = judge_unpaired(base, head, "run")
    assert verdict.word is Word.FASTER
    assert verdict.effect is not None
    assert verdict.effect.value == pytest.approx(math.exp(0.1))
    back = judge_unpaired(head, base, "run")
    assert back.word is Word.SLOWER
    assert back.p == pytest.approx(verdict.p)
    assert judge_unpaired(base, [0.1, 0.1], "run").reason == "2 replicates give no interval"


def test_unequal_spreads_are_not_pooled() -> None:
    """Welch by hand: variances 1e-4 / 5 and 1e-2 / 5; nearly all of the error comes from one side."""
    steps = [x / math.sqrt(2.5) for x in (-2, -1, 0, 1, 2)]
    quiet, noisy = [0.01 * s for s in steps], [0.1 * s for s in steps]
    effect = judge_unpaired(quiet, noisy, "run").effect
    assert effect is not None
    assert effect.high is not None
    error = math.sqrt((1e-4 + 1e-2) / 5)
    df = (1e-4 + 1e-2) ** 2 / ((1e-4**2 + 1e-2**2) / 4)
    assert math.log(effect.high) == pytest.approx(student_quantile(0.995, df) * error, rel=1e-6)


def test_identical_replicates_are_certain() -> None:
    same = Series(dict.fromkeys(range(5), 1.0), "log")
    slow = Series(dict.fromkeys(range(5), 0.9), "log")
    assert judge(same, "a").word is Word.SAME
    assert judge(slow, "a").word is Word.SLOWER
    assert judge_logs([-0.5, -0.5, -0.5, -0.5]).p == 0.0
    assert judge_unpaired([0.0] * 3, [0.0] * 3, "a").word is Word.SAME


@given(st.lists(st.floats(0.9, 1.1), min_size=3, max_size=10), st.floats(0.001, 0.2))
def test_word_interval_and_p_agree(ratios: list[float], effect: float) -> None:
    verdict = judge(Series(dict(enumerate(ratios)), "log"), "a", minimum_effect=effect)
    assert verdict.p is not None
    assert verdict.p_slower is not None
    assert verdict.p_faster is not None
    assert (verdict.word is Word.SLOWER) == (verdict.p_slower < 0.005)
    assert (verdict.word is Word.FASTER) == (verdict.p_faster < 0.005)
    assert verdict.detectable is not None
    assert verdict.detectable >= verdict.minimum_effect * (1 - 1e-9)


def test_detectable_is_found_four_times_of_five() -> None:
    """Slowdowns of the size a verdict names, judged by as many launches of that spread."""
    rng = random.Random(11)
    named = judge(around(1.0, 0.01), "a").detectable
    assert named is not None
    spread = 0.01 * math.sqrt(2.5)
    hits = 0
    for _ in range(1500):
        values = {i: math.exp(-math.log1p(named) + rng.gauss(0, spread)) for i in range(5)}
        hits += judge(Series(values, "log"), "a").word is Word.SLOWER
    assert 0.72 < hits / 1500 < 0.88


def test_a_prior_narrows_the_interval_of_few_launches() -> None:
    prior = Prior(variance=2.5e-4, df=60.0, pooled_df=100.0)
    alone, moderated = judge(around(1.04, 0.01), "a"), judge(around(1.04, 0.01), "a", prior=prior)
    assert alone.word is Word.INCONCLUSIVE
    assert moderated.word is Word.FASTER


def test_moderated_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Groups of 15 like cases of unlike spread, 4 launches each; 99 % intervals. The share's own
    standard error is 0.2 %."""
    rng = random.Random(12)
    held = total = 0
    for _ in range(150):
        group = []
        for _ in range(15):
            spread = 0.01 * math.exp(rng.gauss(0, 0.4))
            group.append([rng.gauss(0, spread) for _ in range(4)])
        prior = common_priors((0, None, logs) for logs in group)[0]
        for logs in group:
            effect = judge_logs(logs, prior=prior).effect
            assert effect is not None
            assert effect.low is not None
            assert effect.high is not None
            held += effect.low <= 1 <= effect.high
            total += 1
    assert 0.98 < held / total < 0.997


def test_among_many_cases_a_lucky_one_does_not_count() -> None:
    """A p-value of 0.004 decides alone, not as the best of forty; a clear one survives."""
    steps = (-2, -1, 0, 1, 2)
    calm = [judge(around(1.0, 0.001), "a") for _ in range(38)]
    lucky = next(
        verdict
        for shift in range(1, 200)
        if (verdict := judge(around(1 / (1.01 + shift / 1000), 0.005), "a")).word is Word.SLOWER
    )
    clear = judge(Series({i: 0.7 * math.exp(0.001 * s) for i, s in enumerate(steps)}, "log"), "a")
    assert correct([lucky])[0].word is Word.SLOWER
    corrected = correct([lucky, *calm, clear])
    assert corrected[0].word is Word.INCONCLUSIVE
    assert corrected[0].reason == "does not stand out among 40 cases judged together"
    assert corrected[0].p_slower == lucky.p_slower
    assert {v.word for v in corrected[1:39]} == {Word.SAME}
    assert (corrected[39].word, corrected[39].corrected_over) == (Word.SLOWER, 40)


def test_what_has_no_interval_is_no_part_of_the_family() -> None:
    slow = judge(around(0.9, 0.001), "a")
    outside = [not_comparable("a", "oom"), judge(Series({0: 1.0}, "log"), "a")]
    corrected = correct([*outside, slow])
    assert corrected[:2] == outside
    assert corrected[2].corrected_over == 1
