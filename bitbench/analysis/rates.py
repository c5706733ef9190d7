"""How often the gate errs on a machine: stored launches resampled into gates. Pure functions.

A pool holds many launches of the same code held against itself (A/A) and of known slowdowns. Each
resampled gate takes some of them for its calibration, its first round and, for what the first round
singles out, its confirmation round, and is judged by the very rule the gate uses
(:mod:`bitbench.analysis.rounds`, thresholds and admission from :mod:`bitbench.analysis.calibration`).
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bitbench.analysis.calibration import calibrate_cases
from bitbench.analysis.gate_rules import SAME_WITHIN
from bitbench.analysis.rounds import Trial, flagged, leans_slower, settle
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Word

Draw = Literal["consecutive", "scattered"]
"""``consecutive``: rounds of successive launches, as a gate makes them, so that a machine that is slow
for longer than a launch shows. ``scattered``: launches drawn at random, as if independent."""


@dataclass(frozen=True)
class Pool:
    """Launches to draw from: natural logarithms of base time / head time, by case, in launch order.

    All lists have one length; position i of each was measured in the same launch.
    """

    null: Mapping[str, Sequence[float]]
    """The same code on both sides."""
    slowed: Mapping[float, Mapping[str, Sequence[float]]]
    """By slowdown (0.05 means 5 %), the same cases with the head side slowed down."""
    like: Mapping[str, Hashable]
    """By case, the key of those whose variances are pooled (:func:`bitbench.analysis.moderation.like`)."""
    proof_null: Sequence[float]
    """The gate's own null pair."""
    proof_slower: Sequence[float]
    """The gate's own injected slowdown."""

    @property
    def launches(self) -> int:
        return len(next(iter(self.null.values())))


@dataclass(frozen=True)
class Rate:
    """A share of resampled gates."""

    hits: int
    trials: int

    @property
    def share(self) -> float:
        return self.hits / self.trials if self.trials else 0.0


@dataclass(frozen=True)
class Rates:
    """What :func:`resample` found."""

    draw: Draw
    gates: int
    launches: int
    """Launches in each round of a gate."""
    false_alarms: Rate
    """A/A gates that called anything slower."""
    alone: Mapping[float, Rate]
    """By slowdown: a gate in which one admitted case is slower and all others are not; how often
    that case is called slower."""
    together: Mapping[float, Rate]
    """By slowdown: all cases slower at once; how often each is called slower."""
    alone_by_case: Mapping[float, Mapping[str, Rate]]
    admitted: Mapping[str, Rate]
    """By case, how often its calibration admitted it."""
    confirmed: Rate
    """A/A gates that needed a confirmation round."""
    unproven: Rate
    """A/A gates that could not prove themselves, which a gate reports as broken."""


def resample(pool: Pool, *, launches: int = 10, gates: int = 1000, draw: Draw, seed: int = 0) -> Rates:
    """Rates over ``gates`` resampled gates.

    Raises ValueError where the pool has fewer than three rounds of launches.
    """
    if pool.launches < 3 * launches:
        raise ValueError(
            f"{pool.launches} launches are fewer than the {3 * launches} that a calibration and "
            "two rounds need"
        )
    rng = random.Random(seed)
    alarms = confirmations = unproven = 0
    admitted = dict.fromkeys(pool.null, 0)
    alone = {slowdown: {case: [0, 0] for case in pool.null} for slowdown in pool.slowed}
    together = {slowdown: [0, 0] for slowdown in pool.slowed}
    for _ in range(gates):
        calibration, first, again = _rounds(pool.launches, launches, draw, rng)
        thresholds = _thresholds(pool, calibration)
        for case in thresholds:
            admitted[case] += 1
        slower, repeated = _gate(pool, pool.null, thresholds, first, again)
        alarms += bool(slower)
        confirmations += repeated
        unproven += not _proves(pool, calibration, first, again)
        if not thresholds:
            continue
        for slowdown, logs in pool.slowed.items():
            case = rng.choice(sorted(thresholds))
            found, _ = _gate(pool, {**pool.null, case: logs[case]}, thresholds, first, again)
            alone[slowdown][case][0] += case in found
            alone[slowdown][case][1] += 1
            found, _ = _gate(pool, logs, thresholds, first, again)
            together[slowdown][0] += len(found)
            together[slowdown][1] += len(thresholds)
    return Rates(
        draw=draw,
        gates=gates,
        launches=launches,
        false_alarms=Rate(alarms, gates),
        alone={
            slowdown: Rate(sum(h for h, _ in found.values()), sum(t for _, t in found.values()))
            for slowdown, found in alone.items()
        },
        together={slowdown: Rate(*found) for slowdown, found in together.items()},
        alone_by_case={
            slowdown: {case: Rate(*counts) for case, counts in found.items()}
            for slowdown, found in alone.items()
        },
        admitted={case: Rate(count, gates) for case, count in admitted.items()},
        confirmed=Rate(confirmations, gates),
        unproven=Rate(unproven, gates),
    )


def _rounds(total: int, launches: int, draw: Draw, rng: random.Random) -> tuple[list[int], ...]:
    """Positions of the calibration, the first and the second round; no launch serves twice."""
    if draw == "scattered":
        chosen = rng.sample(range(total), 3 * launches)
        return tuple(chosen[i * launches : (i + 1) * launches] for i in range(3))
    start = rng.randrange(total)
    # The calibration may be as far from the gate as the pool allows, or right before it.
    gap = rng.randrange(total - 3 * launches + 1)
    places = [(start + i) % total for i in range(total)]
    return (
        places[:launches],
        places[launches + gap : 2 * launches + gap],
        places[2 * launches + gap : 3 * launches + gap],
    )


def _thresholds(pool: Pool, calibration: Sequence[int]) -> dict[str, float]:
    """Minimum effect of each case that this calibration admits."""
    ratios = {case: {i: logs[i] for i in calibration} for case, logs in pool.null.items()}
    found, _ = calibrate_cases({case: case for case in pool.null}, ratios, {}, gateable=pool.null)
    return {case: max(MINIMUM_EFFECT, entry.floor) for case, entry in found.items() if entry.admitted}


def _proves(pool: Pool, calibration: Sequence[int], first: Sequence[int], again: Sequence[int]) -> bool:
    """Whether the null pair comes out the same and the injected slowdown slower: in the first round,
    or in both taken together, as a gate measures again what it could not prove."""
    ratios = {"null": {i: pool.proof_null[i] for i in calibration}}
    found, _ = calibrate_cases({"null": "null"}, ratios, {}, gateable=())
    margin = min(SAME_WITHIN, max(MINIMUM_EFFECT, found["null"].equivalence or SAME_WITHIN))
    proofs = ((pool.proof_null, margin, Word.SAME), (pool.proof_slower, MINIMUM_EFFECT, Word.SLOWER))
    for logs, effect, wanted in proofs:
        once = Trial([logs[i] for i in first], minimum_effect=effect)
        twice = Trial(once.first, [logs[i] for i in again], minimum_effect=effect)
        if all(settle([trial])[0].word is not wanted for trial in (once, twice)):
            return False
    return True


def _gate(
    pool: Pool,
    logs: Mapping[str, Sequence[float]],
    thresholds: Mapping[str, float],
    first: Sequence[int],
    again: Sequence[int],
) -> tuple[set[str], bool]:
    """Cases that one gate calls slower, and whether it needed its second round."""
    cases = list(thresholds)
    trials = [Trial([logs[c][i] for i in first], (), pool.like[c], thresholds[c]) for c in cases]
    verdicts = settle(trials)
    slower, faster = flagged(verdicts)
    doubtful = slower | faster | {i for i, verdict in enumerate(verdicts) if leans_slower(verdict)}
    if doubtful:
        repeated = {i: [logs[cases[i]][n] for n in again] for i in doubtful}
        verdicts = settle([replace(trial, again=repeated.get(i, ())) for i, trial in enumerate(trials)])
    found = {case for case, verdict in zip(cases, verdicts, strict=True) if verdict.word is Word.SLOWER}
    return found, bool(doubtful)
