from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.measure.roofline import (
    CACHE_READ,
    Peaks,
    Ruler,
    Rulers,
    Work,
    bound,
    level,
    share,
)

PEAKS = Peaks(read_bytes_per_s=10e9, fp32_per_s=100e9, int8_per_s=400e9)


def work(weight_bytes: int, operations: int, compute: str = "fp32", from_memory: bool = True) -> Work:
    return Work(weight_bytes, operations, compute, from_memory)


def test_memory_binds_a_cold_matrix_vector_product() -> None:
    limit = bound(work(10**9, 5 * 10**8), PEAKS)
    assert limit is not None
    assert limit.limit == "memory"
    assert share(work(10**9, 5 * 10**8), PEAKS, 0.2) == pytest.approx(0.5)


def test_arithmetic_binds_many_tokens_hot_or_cold() -> None:
    for from_memory in (True, False):
        limit = bound(work(10**6, 10**11, from_memory=from_memory), PEAKS)
        assert limit is not None
        assert limit.limit == "compute"
        assert limit.seconds == pytest.approx(1.0)


def test_no_share_where_the_binding_limit_was_not_measured() -> None:
    # Hot and few operations: the cache's bandwidth binds, which nobody measured.
    assert bound(work(10**9, 5 * 10**8, from_memory=False), PEAKS) is None
    # No bf16 peak: whether it binds is unknown.
    assert bound(work(10**9, 10**6, "bf16"), PEAKS) is None
    # Single bits: bandwidth binds even at the int8 rate, so it binds ...
    limit = bound(work(10**9, 10**9, "bit"), PEAKS)
    assert limit is not None
    assert limit.limit == "memory"
    # ... but their own peak is unknown.
    assert bound(work(10**3, 10**12, "bit"), PEAKS) is None
    assert bound(work(10**9, 1), Peaks()) is None


def never() -> Peaks:
    raise AssertionError("no need to measure again")


CACHED = Peaks(read_bytes_per_s=10e9, fp32_per_s=100e9, cache_bytes_per_s=40e9)
COLD, HOT = work(10**9, 1), work(10**9, 1, from_memory=False)


@pytest.mark.parametrize(
    ("what", "rate", "word"),
    [
        (COLD, 9.9e9, "ok"),
        (COLD, 10.5e9, "suspicious"),
        (COLD, 11.1e9, "impossible"),
        (HOT, 39e9, "ok"),
        (HOT, 41e9, "suspicious"),
        (HOT, 59e9, "suspicious"),
        (HOT, 61e9, "impossible"),
    ],
)
def test_levels_by_the_rate_at_which_weights_were_read(what: Work, rate: float, word: str) -> None:
    found = level(what, CACHED, 10**9 / rate)
    assert found.word == word
    assert bool(found.why) == (word != "ok")
    if word != "ok":
        assert f"{rate / 1e9:.1f} GB/s" in found.why
        assert ("memory" if what.from_memory else "cache") in found.why


def test_small_layers_and_unmeasured_limits_are_not_judged() -> None:
    assert level(work(CACHE_READ - 1, 1, from_memory=False), CACHED, 1e-9).word == "ok"
    just = work(CACHE_READ, 1, from_memory=False)
    assert level(just, CACHED, 1e-9).word == "impossible"
    assert level(just, replace(CACHED, threads=2), 1e-9).word == "ok", "half of it for each thread"
    assert level(HOT, PEAKS, 1e-9).word == "ok"
    assert level(COLD, Peaks(), 1e-9).word == "ok"


def test_beating_an_arithmetic_rate_is_pointed_at_and_never_refused() -> None:
    many = work(10**3, 10**11, from_memory=False)
    assert level(many, PEAKS, 1.01).word == "ok"
    found = level(many, PEAKS, 0.5)
    assert found.word == "suspicious"
    assert "2.00 times the measured rate of fp32" in found.why
    assert level(work(10**3, 10**11, "bit"), PEAKS, 1e-3).word == "ok", "no peak of its own was measured"


@given(
    rate=st.floats(1e6, 1e13),
    operations=st.integers(1, 10**13),
    faster=st.floats(1.0, 100.0),
    from_memory=st.booleans(),
)
def test_a_faster_result_is_never_less_suspicious(
    rate: float, operations: int, faster: float, from_memory: bool
) -> None:
    order = ["ok", "suspicious", "impossible"]
    what = work(10**8, operations, from_memory=from_memory)
    slow, fast = (level(what, CACHED, 10**8 / r).word for r in (rate, rate * faster))
    assert order.index(fast) >= order.index(slow)


def test_limits_are_measured_again_once_before_a_result_is_condemned() -> None:
    times = []

    def again() -> Peaks:
        times.append(1)
        return Peaks(read_bytes_per_s=15e9, fp32_per_s=50e9)

    ruler = Ruler(PEAKS, again)
    assert ruler.level(COLD, 0.1 / 1.45).word == "ok"
    told = ruler.level(COLD, 0.1 / 3)
    assert told.word == "impossible"
    assert "30.0 GB/s" in told.why
    assert "15.0 GB/s" in told.why
    assert len(times) == 1
    assert ruler.peaks == Peaks(read_bytes_per_s=15e9, fp32_per_s=100e9, int8_per_s=400e9)


def test_a_result_within_the_margin_is_noted_without_measuring_again() -> None:
    assert Ruler(PEAKS, never).level(COLD, 0.1 / 1.05).word == "suspicious"
    assert Ruler(PEAKS, never).level(COLD, 0.2).word == "ok"


def test_a_share_above_one_asks_for_the_limit_again() -> None:
    ruler = Ruler(PEAKS, lambda: Peaks(fp32_per_s=300e9))
    assert ruler.share(work(10**6, 10**11), 0.5) == pytest.approx(2 / 3)
    assert Ruler(PEAKS, never).share(work(10**6, 10**11), 1.25) == pytest.approx(0.8)
    # Still above: a kernel that beats torch's matrix product.
    assert Ruler(PEAKS, lambda: PEAKS).share(work(10**6, 10**11), 0.5) == pytest.approx(2.0)


SETS = Peaks(
    read_bytes_per_s=10e9,
    int8_per_s=400e9,
    bit_per_s=3000e9,
    isas={"avx512": {"int8": 400e9, "bit": 3000e9}, "avx2": {"int8": 200e9}},
)


def test_a_layer_held_to_an_instruction_set_is_held_to_its_rate() -> None:
    many = work(10**6, 10**11, "int8")
    assert share(many, SETS, 1.0) == pytest.approx(0.25)
    assert share(replace(many, isa="avx2"), SETS, 1.0) == pytest.approx(0.5)
    assert share(replace(many, isa="portable"), SETS, 1.0) is None, "it has no loops to measure"
    assert level(replace(many, isa="avx2"), SETS, 0.4).word == "suspicious"
    assert level(many, SETS, 0.4).word == "ok"
    # Signs without a rate of their own: bandwidth binds even at the rate of int8.
    bits = replace(work(10**9, 10**9, "bit"), isa="avx2")
    limit = bound(bits, SETS)
    assert limit is not None
    assert limit.limit == "memory"


def test_the_better_of_two_measurements_is_kept_by_instruction_set() -> None:
    later = Peaks(int8_per_s=300e9, isas={"avx2": {"int8": 250e9, "bit": 900e9}, "avx512": {"int8": 1e9}})
    both = SETS.best(later)
    assert both.int8_per_s == 400e9
    assert both.isas == {"avx512": {"int8": 400e9, "bit": 3000e9}, "avx2": {"int8": 250e9, "bit": 900e9}}
    assert SETS.isas["avx2"] == {"int8": 200e9}, "the measurements themselves stay as they are"


def test_each_number_of_threads_has_its_own_limits() -> None:
    asked: list[int] = []

    def again(threads: int) -> Peaks:
        asked.append(threads)
        return Peaks(read_bytes_per_s=40e9, fp32_per_s=100e9, threads=threads)

    two, one = replace(PEAKS, threads=2), Peaks(read_bytes_per_s=6e9, fp32_per_s=50e9, threads=1)
    rulers = Rulers({2: two, 1: one}, again)
    assert rulers.of(2).share(COLD, 0.2) == pytest.approx(0.5)
    assert rulers.of(1).share(COLD, 0.2) == pytest.approx(0.1 / 0.12)
    assert rulers.of(4).share(COLD, 0.2) is None, "nobody measured with four"
    assert rulers.changed() == []
    assert rulers.of(1).level(COLD, 0.05).word == "ok"
    assert asked == [1]
    assert rulers.changed() == [Peaks(read_bytes_per_s=40e9, fp32_per_s=100e9, threads=1)]
