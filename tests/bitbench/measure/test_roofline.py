from __future__ import annotations

import pytest

from bitbench.measure.roofline import Peaks, Ruler, Work, bound, measure_peaks, share

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


def test_only_cold_results_well_above_the_bandwidth_are_impossible() -> None:
    fast = 10**9 / 10e9 / 1.2
    assert Ruler(PEAKS, never).impossible(work(10**9, 1), 0.1 / 1.05) is None
    assert Ruler(PEAKS, never).impossible(work(10**9, 1, from_memory=False), fast) is None
    told = Ruler(PEAKS, lambda: Peaks(read_bytes_per_s=10.5e9)).impossible(work(10**9, 1), fast)
    assert told is not None
    assert "12.0 GB/s" in told
    assert "10.5 GB/s" in told


def test_limits_are_measured_again_once_before_a_result_is_condemned() -> None:
    times = []

    def again() -> Peaks:
        times.append(1)
        return Peaks(read_bytes_per_s=15e9, fp32_per_s=50e9)

    ruler = Ruler(PEAKS, again)
    assert ruler.impossible(work(10**9, 1), 0.1 / 1.5) is None
    assert ruler.impossible(work(10**9, 1), 0.1 / 3) is not None
    assert len(times) == 1
    assert ruler.peaks == Peaks(read_bytes_per_s=15e9, fp32_per_s=100e9, int8_per_s=400e9)


def test_a_share_above_one_asks_for_the_limit_again() -> None:
    ruler = Ruler(PEAKS, lambda: Peaks(fp32_per_s=300e9))
    assert ruler.share(work(10**6, 10**11), 0.5) == pytest.approx(2 / 3)
    assert Ruler(PEAKS, never).share(work(10**6, 10**11), 1.25) == pytest.approx(0.8)
    # Still above: a kernel that beats torch's matrix product.
    assert Ruler(PEAKS, lambda: PEAKS).share(work(10**6, 10**11), 0.5) == pytest.approx(2.0)


def test_peaks_of_this_machine_are_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbench.measure.roofline.SECONDS_EACH", 0.02)
    monkeypatch.setattr("bitbench.measure.roofline.MM_SIZE", 256)
    peaks = measure_peaks("cpu", 1, 1024**2)
    assert 1e8 < peaks.read_bytes_per_s < 1e13
    assert 1e8 < peaks.fp32_per_s < 1e14
    assert Peaks(**peaks.as_dict()) == peaks
