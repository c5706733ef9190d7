from __future__ import annotations

from typing import Any

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
    found = measure_peaks("cpu", torch.get_num_threads(), 1)
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


@pytest.fixture
def gpu_on_meta(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A GPU whose tensors have no numbers; what is multiplied on it."""
    done: list[tuple[str, ...]] = []
    for name in ("ones", "randn", "randint"):
        real = getattr(torch, name)

        def made(*sizes: Any, real: Any = real, device: str = "", **options: Any) -> torch.Tensor:
            options.pop("generator", None)
            return real(*sizes, device="meta", **options)

        monkeypatch.setattr(torch, name, made)

    cpu = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: cpu())

    def multiplied(name: str) -> Any:
        def call(a: torch.Tensor, b: torch.Tensor) -> None:
            layout = "columns" if b.stride(0) == 1 else "rows"
            done.append((name, str(a.dtype), f"{a.shape[0]}x{b.shape[1]}", layout))

        return call

    for name in ("mm", "_int_mm"):
        monkeypatch.setattr(torch, name, multiplied(name))
    return done


def test_a_gpu_multiplies_random_numbers_large_enough_to_fill_it(
    gpu_on_meta: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_fastest", lambda call, device: call() or 1e-3)
    for kind in ("int8", "bfloat16"):
        assert measuring._multiply("cuda", kind) == pytest.approx(2e3 * 8192**3)
    assert gpu_on_meta == [
        ("_int_mm", "torch.int8", "8192x8192", "columns"),
        ("mm", "torch.bfloat16", "8192x8192", "columns"),
    ]


def test_a_copy_counts_what_it_reads_and_writes(gpu_on_meta: object, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([1e-3, 0.6e-3, 0.9e-3])  # the copy, and two reductions of half as many bytes
    monkeypatch.setattr(measuring, "_fastest", lambda call, device: next(seconds))
    assert measuring.read_bandwidth("cuda", 0) == pytest.approx(measuring.GPU_READ / 1e-3)
    seconds = iter([1e-3, 0.3e-3, 0.9e-3])
    assert measuring.read_bandwidth("cuda", 0) == pytest.approx(measuring.GPU_READ / 2 / 0.3e-3)


def test_a_gpu_is_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        def __init__(self, gpu: object) -> None:
            pass

        def block(self, call: Any, calls: int) -> int:
            for _ in range(calls):
                call()
            return 2_000 * calls

    made: list[int] = []
    monkeypatch.setattr(measuring, "EventTimer", Timer)
    assert measuring._fastest(lambda: made.append(1), "cuda", 0.0) == pytest.approx(2e-6)
    assert len(made) == 2 * measuring.GPU_CALLS
