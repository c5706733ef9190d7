"""The rule of two rounds, on numbers and in simulation.

A launch's value is drawn as the machine gives it: an effect of the process pair, common to all its
blocks, plus the median of noisy blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from bitbench.analysis.rounds import Trial, flagged, leans_slower, priors, settle
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Verdict, Word

BOUND = -math.log1p(MINIMUM_EFFECT)
"""The least favourable 'nothing': slower by exactly what still counts as the same."""


def logs(center: float, spread: float, launches: int = 10) -> list[float]:
    """Launches evenly around ``center`` with standard deviation ``spread``."""
    steps = np.linspace(-1, 1, launches)
    return list(center + spread * steps / steps.std(ddof=1))


@dataclass
class Machine:
    """What launches of equal code scatter by."""

    process: float = 0.01
    blocks: float = 0.0
    unequal: float = 0.0
    """Scatter, over cases, of the log of ``process``."""
    spikes: float = 0.0
    """Share of launches disturbed by several per cent."""

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(20260303)

    def launches(self, truth: np.ndarray, spread: np.ndarray, count: int) -> np.ndarray:
        shape = (len(truth), count)
        values = truth[:, None] + spread[:, None] * self.rng.standard_normal(shape)
        if self.blocks:
            values += np.median(self.rng.normal(0, self.blocks, (*shape, 9)), axis=2)
        hit = self.rng.random(shape) < self.spikes
        return values + hit * self.rng.exponential(0.05, shape) * self.rng.choice([-1, 1], shape)

    def gate(self, truth: np.ndarray, count: int = 10) -> list[Verdict]:
        """A whole gate: first round, and a second one where the rule asks for it."""
        spread = self.process * np.exp(self.rng.normal(0, self.unequal, len(truth)))
        trials = [Trial(list(values)) for values in self.launches(truth, spread, count)]
        known = priors(trials)
        first = settle(trials, known=known)
        slower, faster = flagged(first)
        again = slower | faster | {i for i, verdict in enumerate(first) if leans_slower(verdict)}
        if not again:
            return first
        second = self.launches(truth, spread, count)
        trials = [
            replace(trial, again=list(second[i])) if i in again else trial for i, trial in enumerate(trials)
        ]
        return settle(trials, known=known)


def share_slower(machine: Machine, truth: np.ndarray, gates: int, among: slice) -> float:
    machine = replace(machine)  # its own draws, whatever ran before
    hits = 0
    for _ in range(gates):
        hits += any(verdict.word is Word.SLOWER for verdict in machine.gate(truth)[among])
    return hits / gates


@pytest.mark.parametrize(
    ("cases", "machine", "gates"),
    [
        (1, Machine(0.005), 1500),
        (8, Machine(0.02), 300),
        (8, Machine(0.01, unequal=0.6), 300),
        (8, Machine(0.01, spikes=0.03), 300),
        (8, Machine(0.0, blocks=0.03), 300),
        (40, Machine(0.01, blocks=0.01, unequal=0.3), 100),
    ],
)
def test_false_alarms_of_a_gate_at_the_least_favourable_point(
    cases: int, machine: Machine, gates: int
) -> None:
    """At most 0.75 % by construction; the bound leaves room for the simulation's own error."""
    assert share_slower(machine, np.full(cases, BOUND), gates, slice(None)) <= 0.0125


def test_a_gate_over_unchanged_code_stays_silent() -> None:
    for machine in (Machine(0.005), Machine(0.01, unequal=0.4), Machine(0.03, blocks=0.01)):
        assert share_slower(machine, np.zeros(12), 60, slice(None)) == 0.0


@pytest.mark.parametrize("cases", [6, 24])
@pytest.mark.parametrize(
    ("machine", "slowdown", "least"),
    [
        (Machine(0.005), 0.05, 0.99),
        (Machine(0.01, blocks=0.02), 0.05, 0.99),
        (Machine(0.02), 0.05, 0.9),
        (Machine(0.03), 0.05, 0.7),
        (Machine(0.03), 0.10, 0.99),
        (Machine(0.02, unequal=0.4, spikes=0.02), 0.10, 0.97),
    ],
)
def test_power_at_ten_launches(cases: int, machine: Machine, slowdown: float, least: float) -> None:
    truth = np.zeros(cases)
    truth[0] = -math.log1p(slowdown)
    assert share_slower(machine, truth, 40, slice(0, 1)) >= least


def test_gains_do_not_make_a_false_alarm_easier() -> None:
    """Twenty kernels that are truly faster lend no credit to twenty others."""
    truth = np.array([0.3] * 20 + [BOUND] * 20)
    assert share_slower(Machine(0.01), truth, 60, slice(20, 40)) <= 0.034


def test_slower_needs_both_rounds() -> None:
    calm = [Trial(logs(0.0, 0.004)) for _ in range(5)]
    first, no, yes = logs(-0.05, 0.01), logs(0.0, 0.01), logs(-0.05, 0.01)
    assert settle([Trial(first), *calm])[0].word is Word.SLOWER
    confirmed = settle([Trial(first, yes), *calm])[0]
    assert (confirmed.word, confirmed.rounds) == (Word.SLOWER, 2)
    assert confirmed.effect is not None
    assert confirmed.effect.n == 20
    refuted = settle([Trial(first, no), *calm])[0]
    assert (refuted.word, refuted.rounds) == (Word.INCONCLUSIVE, 2)
    assert refuted.reason == "the second round does not repeat the first"


def test_faster_needs_both_rounds_too() -> None:
    first, again = logs(0.05, 0.01), logs(0.05, 0.01)
    assert settle([Trial(first, again)])[0].word is Word.FASTER
    assert settle([Trial(first, logs(-0.001, 0.004))])[0].word is not Word.FASTER
    assert settle([Trial(first, logs(-0.05, 0.004))])[0].word is not Word.SLOWER


def test_what_leans_slower_is_settled_by_both_rounds_together() -> None:
    first = logs(-0.016, 0.016)
    assert leans_slower(settle([Trial(first)])[0])
    assert flagged(settle([Trial(first)])) == (set(), set())
    assert settle([Trial(first, logs(-0.05, 0.012))])[0].word is Word.SLOWER
    assert settle([Trial(first, logs(0.008, 0.004, 30))])[0].word is Word.SAME
    assert settle([Trial(first, logs(-0.016, 0.016))])[0].word is Word.INCONCLUSIVE


def test_an_interrupted_second_round_is_as_good_as_none() -> None:
    first = logs(-0.05, 0.01)
    assert settle([Trial(first, [-0.05, -0.05])]) == settle([Trial(first)])


def test_each_case_has_its_own_threshold() -> None:
    slow = Trial(logs(-0.03, 0.004))
    tolerant = replace(slow, minimum_effect=0.05)
    assert [verdict.word for verdict in settle([slow, tolerant])] == [Word.SLOWER, Word.SAME]


def test_too_few_launches_decide_nothing_and_burden_nobody() -> None:
    verdicts = settle([Trial([-0.5, -0.5]), Trial(logs(-0.05, 0.01))])
    assert [verdict.word for verdict in verdicts] == [Word.INCONCLUSIVE, Word.SLOWER]
    assert verdicts[1].corrected_over == 1
