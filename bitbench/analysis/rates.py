"""How often the gate errs on a machine: stored launches resampled into gates. Pure functions.

A pool holds many launches of the same code held against itself (A/A) and of known slowdowns. Each
resampled gate takes some of them for its calibration, its first round and, for what the first round
singles out, its confirmation round, and is judged by the very rules the gate uses: thresholds and
admission from :mod:`bitbench.analysis.calibration` and :mod:`bitbench.analysis.gate_rules`, verdicts
from :mod:`bitbench.analysis.rounds` with variances pooled over all timed cases, and no verdict on a
time where a control moved.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bitbench.analysis.calibration import calibrate_cases
from bitbench.analysis.gate_rules import minimum_effects
from bitbench.analysis.moderation import Prior
from bitbench.analysis.rounds import Trial, flagged, leans_slower, priors, settle
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Verdict, Word
from bitbench.store.calibration import Calibration

Draw = Literal["consecutive", "scattered"]
"""``consecutive``: rounds of successive launches, as a gate makes them, so that a machine that is slow
for longer than a launch shows. ``scattered``: launches drawn at random, as if independent."""

_PROOF = "the null pair of the proof"


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
    controls: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Cases that no change can affect, measured beside the others."""

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
    """A/A gates that needed a confirmation round for a gating case or a control."""
    contaminated: Rate
    """A/A gates in which a control moved, so that no time decided anything. Where that happens to a
    gate with a slowdown, the slowdown counts as not found."""
    unproven: Rate
    """A/A gates that could not prove themselves, which a gate reports as broken."""


@dataclass(frozen=True)
class _Calibrated:
    """What a gate learns from its calibration."""

    effects: Mapping[str, float]
    """Relative difference that counts as none, by case; also of controls and of the null pair."""
    admitted: list[str]


@dataclass(frozen=True)
class _Found:
    """How one gate came out."""

    slower: set[str]
    repeated: bool
    contaminated: bool


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
    alarms = confirmations = contaminations = unproven = 0
    admitted = dict.fromkeys(pool.null, 0)
    alone = {slowdown: {case: [0, 0] for case in pool.null} for slowdown in pool.slowed}
    together = {slowdown: [0, 0] for slowdown in pool.slowed}
    for _ in range(gates):
        calibration, first, again = _rounds(pool.launches, launches, draw, rng)
        known = _calibrated(pool, calibration)
        for case in known.admitted:
            admitted[case] += 1
        calm = _gate(pool, pool.null, known, first, again)
        alarms += bool(calm.slower)
        confirmations += calm.repeated
        contaminations += calm.contaminated
        unproven += not _proves(pool, known, first, again)
        if not known.admitted:
            continue
        for slowdown, logs in pool.slowed.items():
            case = rng.choice(known.admitted)
            one = _gate(pool, {**pool.null, case: logs[case]}, known, first, again)
            alone[slowdown][case][0] += case in one.slower
            alone[slowdown][case][1] += 1
            together[slowdown][0] += len(_gate(pool, logs, known, first, again).slower)
            together[slowdown][1] += len(known.admitted)
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
        contaminated=Rate(contaminations, gates),
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


def _calibrated(pool: Pool, calibration: Sequence[int]) -> _Calibrated:
    """Thresholds and admission from these launches of all that a calibration measures."""
    measured = {**pool.null, **pool.controls, _PROOF: pool.proof_null}
    ratios = {case: {i: logs[i] for i in calibration} for case, logs in measured.items()}
    found, bias = calibrate_cases({case: case for case in measured}, ratios, {}, gateable=pool.null)
    # As the gate keeps it; nothing here reads when and where it was made.
    made = Calibration(created="", suite="", machine={}, launches=len(calibration), bias=bias, cases=found)
    effects = minimum_effects(made, pool.null, [*pool.controls, _PROOF])
    return _Calibrated(effects, sorted(made.admitted() & pool.null.keys()))


def _proves(pool: Pool, known: _Calibrated, first: Sequence[int], again: Sequence[int]) -> bool:
    """Whether the null pair comes out the same and the injected slowdown slower: in the first round,
    or in both taken together, as a gate measures again what it could not prove."""
    proofs = (
        (pool.proof_null, known.effects[_PROOF], Word.SAME),
        (pool.proof_slower, MINIMUM_EFFECT, Word.SLOWER),
    )
    for logs, effect, wanted in proofs:
        once = Trial([logs[i] for i in first], minimum_effect=effect)
        twice = replace(once, again=[logs[i] for i in again])
        if all(settle([trial])[0].word is not wanted for trial in (once, twice)):
            return False
    return True


def _gate(
    pool: Pool,
    logs: Mapping[str, Sequence[float]],
    known: _Calibrated,
    first: Sequence[int],
    again: Sequence[int],
) -> _Found:
    """One gate on ``logs``, the controls measured beside them."""
    measured = {**logs, **pool.controls}
    trials = {
        case: Trial([values[i] for i in first], (), pool.like[case], known.effects[case])
        for case, values in measured.items()
    }
    common = priors(list(trials.values()))
    seconds = {case: [values[i] for i in again] for case, values in measured.items()}
    gating, one = _settled({case: trials[case] for case in known.admitted}, seconds, common)
    controls, other = _settled({case: trials[case] for case in pool.controls}, seconds, common)
    contaminated = bool(_of(controls, Word.SLOWER, Word.FASTER))
    return _Found(set() if contaminated else _of(gating, Word.SLOWER), one or other, contaminated)


def _settled(
    trials: Mapping[str, Trial],
    seconds: Mapping[str, Sequence[float]],
    common: dict[Hashable, Prior | None],
) -> tuple[dict[str, Verdict], bool]:
    """Verdicts on one family, and whether it needed its second round."""
    cases, family = list(trials), list(trials.values())
    verdicts = settle(family, known=common)
    slower, faster = flagged(verdicts)
    doubtful = slower | faster | {i for i, verdict in enumerate(verdicts) if leans_slower(verdict)}
    if doubtful:
        twice = [
            replace(trial, again=seconds[cases[i]]) if i in doubtful else trial
            for i, trial in enumerate(family)
        ]
        verdicts = settle(twice, known=common)
    return dict(zip(cases, verdicts, strict=True)), bool(doubtful)


def _of(verdicts: Mapping[str, Verdict], *words: Word) -> set[str]:
    return {case for case, verdict in verdicts.items() if verdict.word in words}
