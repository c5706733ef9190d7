"""Resampling a pool of launches into gates."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from bitbench.analysis.rates import Draw, Pool, Rate, resample

CASES = [f"case-{i}" for i in range(6)]


def pool_of(spread: float, *, launches: int = 120, shift: float = 0.0, drift: float = 0.0) -> Pool:
    """Launches of normal spread; ``shift`` is an A/A bias of the first case, ``drift`` a slow wave."""
    rng = random.Random(1)

    def logs(slowdown: float, bias: float = 0.0) -> list[float]:
        wave = [drift * math.sin(2 * math.pi * i / 40) for i in range(launches)]
        return [rng.gauss(-math.log1p(slowdown) - bias, spread) + w for w in wave]

    null = {case: logs(0.0, shift if case == CASES[0] else 0.0) for case in CASES}
    slowed = {s: {case: logs(s) for case in CASES} for s in (0.02, 0.10)}
    return Pool(null, slowed, dict.fromkeys(CASES, "like"), logs(0.0), logs(0.10))


@pytest.mark.parametrize("draw", ["consecutive", "scattered"])
def test_a_quiet_machine_neither_cries_wolf_nor_sleeps(draw: Draw) -> None:
    rates = resample(pool_of(0.01), gates=100, draw=draw)
    assert rates.false_alarms.hits <= 1
    assert rates.alone[0.10].share == 1.0
    assert rates.together[0.10].share == 1.0
    assert rates.unproven.share <= 0.05
    assert all(rate.share == 1.0 for rate in rates.admitted.values())


def test_a_slowdown_near_the_minimum_effect_is_seen_less_often_than_a_large_one() -> None:
    rates = resample(pool_of(0.02), gates=100, draw="scattered")
    assert rates.alone[0.02].share < 0.5 < rates.alone[0.10].share


def test_a_noisy_machine_admits_nothing_and_therefore_finds_nothing() -> None:
    rates = resample(pool_of(0.08), gates=40, draw="scattered")
    assert all(rate.share < 0.05 for rate in rates.admitted.values())
    assert rates.false_alarms.hits == 0


def test_a_change_that_lasts_only_while_the_gate_runs_is_a_false_alarm() -> None:
    """Were the gate's own launches not what is judged, a pool with a bad hour would look clean."""
    pool = pool_of(0.005)
    worse = [x - 0.05 if 60 <= i < 100 else x for i, x in enumerate(pool.null[CASES[0]])]
    changed = replace(pool, null={**pool.null, CASES[0]: worse})
    rates = resample(changed, gates=200, draw="consecutive")
    assert rates.false_alarms.hits > 0
    assert resample(pool, gates=200, draw="consecutive").false_alarms.hits == 0


def test_equal_seeds_give_equal_rates() -> None:
    pool = pool_of(0.015)
    first = resample(pool, gates=30, draw="consecutive", seed=5)
    assert first == resample(pool, gates=30, draw="consecutive", seed=5)


def test_a_small_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="29 launches are fewer than the 30"):
        resample(pool_of(0.01, launches=29), draw="scattered")


def test_a_rate_of_nothing_is_zero() -> None:
    assert Rate(0, 0).share == 0.0


def test_a_control_that_moves_silences_the_gate_and_is_counted() -> None:
    """A slowdown that a real gate would not dare to tell must not count as found."""
    pool = pool_of(0.005)
    rng = random.Random(2)
    calm = [rng.gauss(0, 0.005) for _ in range(pool.launches)]
    like = {**pool.like, "control": "like"}
    beside = replace(pool, controls={"control": calm}, like=like)
    shaken = replace(beside, controls={"control": [x - 0.08 * (i >= 60) for i, x in enumerate(calm)]})
    quiet = resample(beside, gates=60, draw="consecutive")
    assert quiet.contaminated.hits == 0
    assert quiet.alone[0.10].share == 1.0
    found = resample(shaken, gates=60, draw="consecutive")
    assert 0 < found.contaminated.hits < 60
    assert found.false_alarms.hits == 0
    assert found.alone[0.10].hits <= found.alone[0.10].trials - found.contaminated.hits
