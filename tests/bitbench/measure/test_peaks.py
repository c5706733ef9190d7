from __future__ import annotations

import pytest
import torch

from bitbench.measure import peaks as measuring
from bitbench.measure.peaks import measure_peaks
from bitbench.measure.roofline import Peaks
from impl import native


def test_peaks_of_this_machine_are_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbench.measure.peaks.SECONDS_EACH", 0.02)
    monkeypatch.setattr("bitbench.measure.peaks.LOOP_SECONDS", 0.02)
    monkeypatch.setattr("bitbench.measure.peaks.MM_SIZE", 256)
    monkeypatch.setattr("bitbench.measure.peaks.CONVOLUTION", (1, 64, 16, 3))
    threads, isa = torch.get_num_threads(), native.isa() if native.available() else ""
    peaks = measure_peaks("cpu", 1, 1024**2)
    assert 1e8 < peaks.read_bytes_per_s < 1e13
    assert 1e8 < peaks.fp32_per_s < 1e14
    if native.available() and native.isa() != "portable":
        assert peaks.int8_per_s > 1e9
        assert peaks.bit_per_s > peaks.int8_per_s
    # Noise may leave no difference between a long and a short read; a rate, if any, is a rate.
    assert peaks.cache_bytes_per_s == 0 or 1e8 < peaks.cache_bytes_per_s < 1e13
    assert Peaks(**peaks.as_dict()) == peaks
    if native.available():
        assert set(peaks.isas) <= set(native.supported_isas()) - {"portable"}
        assert all(rates["bit"] > rates["int8"] > 1e9 for rates in peaks.isas.values())
        assert native.isa() == isa
    assert torch.get_num_threads() == threads


def test_the_better_of_two_libraries_sets_the_float_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's convolutions come from another library than its matrix products, and may be faster."""
    rates = {"float32": (2.0, 5.0), "bfloat16": (7.0, 3.0), "int8": (1.0, 0.0)}
    monkeypatch.setattr(measuring, "_multiply", lambda device, kind: rates[kind][0])
    monkeypatch.setattr(measuring, "_convolve", lambda device, kind: rates[kind][1])
    monkeypatch.setattr(measuring, "read_bandwidth", lambda device, cache: 1.0)
    monkeypatch.setattr(measuring, "cache_bandwidth", lambda device, threads: 1.0)
    monkeypatch.setattr(measuring, "isa_rates", lambda device: {})
    found = measure_peaks("cuda", torch.get_num_threads(), 1)
    assert (found.fp32_per_s, found.bf16_per_s, found.int8_per_s) == (5.0, 7.0, 1.0)


def test_a_convolution_counts_its_own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "CONVOLUTION", (2, 8, 6, 3))
    monkeypatch.setattr(measuring, "_fastest", lambda call, device: call().numel())
    # As many seconds as outputs, each of 8 x 3 x 3 products and sums.
    assert measuring._convolve("cpu", "float32") == 2 * 8 * 9


def test_each_instruction_set_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The selected one has no second measurement: its rates are the machine's."""
    selected = ["avx512"]
    asked: list[tuple[str, int]] = []

    def rate(activation_bits: int) -> float:
        asked.append((selected[-1], activation_bits))
        return (
            0.0
            if selected[-1] == "portable"
            else {"avx512": 4.0, "avx2": 2.0}[selected[-1]] / activation_bits
        )

    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "isa", lambda: selected[-1])
    monkeypatch.setattr(native, "select_isa", selected.append)
    monkeypatch.setattr(native, "supported_isas", lambda: ("avx512", "avx2", "portable"))
    monkeypatch.setattr(measuring, "_native_rate", rate)
    monkeypatch.setattr(measuring, "_multiply", lambda device, kind: 0.25)
    monkeypatch.setattr(measuring, "_convolve", lambda device, kind: 0.0)
    monkeypatch.setattr(measuring, "read_bandwidth", lambda device, cache: 1.0)
    monkeypatch.setattr(measuring, "cache_bandwidth", lambda device, threads: 1.0)
    found = measure_peaks("cpu", torch.get_num_threads(), 1)
    assert sorted(asked) == sorted((isa, bits) for isa in ("avx512", "avx2", "portable") for bits in (1, 8))
    assert (found.int8_per_s, found.bit_per_s) == (0.5, 4.0)
    assert found.isas == {"avx512": {"int8": 0.5, "bit": 4.0}, "avx2": {"int8": 0.25, "bit": 2.0}}
    assert selected[-1] == "avx512"
    selected.append("portable")  # has no loops: what torch does is all that is known
    found = measure_peaks("cpu", torch.get_num_threads(), 1)
    assert (found.int8_per_s, found.bit_per_s) == (0.25, 0.0)
