from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_specs import layer
from torch import nn

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.store.metrics import METRICS
from bitbench.workloads import linear
from bitbench.workloads.base import Context, PointPlan
from bitbench.workloads.linear import (
    MAX_COPIES,
    LinearSession,
    LinearSpec,
    LinearSubject,
    LinearWorkload,
    cold_by,
    copies_needed,
    sampled_rows,
    sampled_tokens,
)

KIND = LinearWorkload()

LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "linear-bf16": {"kind": "linear", "dtype": "bfloat16"},
    "linear-int8": {"kind": "torch_int8"},
    "binary": {"kind": "binary", "activation_bits": 8},
    "binary-w1a1": {"kind": "binary", "activation_bits": 1},
    "ternary": {"kind": "ternary", "format": "base3"},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit"},
    "ternary-training": {"kind": "ternary", "form": "training"},
    "k3-g64": {"kind": "k_ternary", "k": 3, "group_size": 64},
}


def spec_of(name: str) -> LayerSpec:
    return layer(**LAYERS[name])


def session(params: dict[str, Any], *, bias: bool = False, seed: int = 1) -> LinearSession:
    spec = LinearSpec(kind="linear", shapes=[params["shape"]], bias=bias)
    context = Context("cpu", 1, seed, Path(), {n: spec_of(n) for n in LAYERS}, "linear")
    return KIND.open(spec, params, context)


def subject_of(
    name: str, shape: tuple[int, int] = (33, 70), tokens: int = 3, **options: Any
) -> LinearSubject:
    params = {"shape": list(shape), "tokens": tokens, "cache": "hot"}
    return session(params, **options).build(name, spec_of(name))


def test_points_are_the_product_and_the_bytes_of_each_shape() -> None:
    spec = LinearSpec(kind="linear", shapes=[[8, 4], [4, 8]], tokens=[1, 16], cache=["hot", "cold"])
    points = KIND.points(spec)
    assert len(points) == 2 * (4 + 1)
    assert points[0] == PointPlan({"shape": [8, 4], "tokens": 1, "cache": "hot"}, "timed", "launches")
    assert points[4] == PointPlan({"shape": [8, 4], "measure": "memory"}, "once", "exact")
    assert len(KIND.points(KIND.quick(spec))) == 3
    assert all(KIND.estimate(spec, point, spec_of("linear")) > 0 for point in points)


@pytest.mark.parametrize(
    "wrong", [{"tokens": []}, {"tokens": [0]}, {"cache": ["warm"]}, {"tokens": ["1"]}, {"shapes": [[0, 4]]}]
)
def test_impossible_points_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LinearSpec.model_validate({"kind": "linear", "shapes": [[8, 4]], **wrong})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
@torch.inference_mode()
def test_every_layer_agrees_with_its_reference(name: str, bias: bool) -> None:
    subject = subject_of(name, bias=bias)
    check = subject.check()
    assert check.passed, check
    assert check.compared == 3 * 33
    assert subject.call().shape == (3, 33)
    assert subject.kernel
    assert subject.invalid() is None
    work = subject.work()
    assert work.weight_bytes > 0
    assert not work.from_memory


@torch.inference_mode()
def test_kernels_of_the_timed_calls_are_named_not_only_that_of_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A kernel that serves the check alone must not stand for those that were timed."""
    subject = subject_of("ternary")
    kind = registry.get("ternary")
    real = type(kind).kernel
    names = iter(["ternary_linear/base3/int8/reference/torch"])
    monkeypatch.setattr(type(kind), "kernel", lambda self, module: next(names, None) or real(self, module))
    subject.call()
    assert subject.check().passed
    assert "ternary_linear/base3/int8/reference/torch" in subject.kernel.split(", ")
    assert len(subject.kernel.split(", ")) == 2 or subject.kernel.endswith("/torch")
    assert "not a native" in str(subject.fallback())


def test_all_layers_of_a_point_get_the_same_numbers() -> None:
    inputs = [subject_of(name)._x.float() for name in ("linear", "ternary", "linear-bf16")]
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[2], inputs[0].bfloat16().float())
    assert not torch.equal(inputs[0], subject_of("linear", seed=2)._x)


class Lying(nn.Linear):
    """A layer whose kernel goes wrong in one way."""

    def __init__(self, how: str) -> None:
        super().__init__(70, 700, bias=False)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = super().forward(x)
        if self.how == "last row":
            right[:, -1] += 1
        elif self.how == "nan outside the sample":
            sampled = {i for rows in sampled_rows(700, 1) for i in range(rows.start, rows.stop)}
            right[:, next(i for i in range(700) if i not in sampled)] = math.nan
        elif self.how == "nan":
            right[0, 0] = math.nan
        elif self.how == "skips":
            left = torch.empty_like(right)
            left[:, 1:] = right[:, 1:]
            return left
        elif self.how == "shape":
            return right[:, 1:]
        return right


def lying(how: str, monkeypatch: pytest.MonkeyPatch) -> LinearSubject:
    torch.manual_seed(0)
    kind = registry.get("linear")
    monkeypatch.setattr(type(kind), "random", lambda self, *_, **__: Lying(how))
    return subject_of("linear", (700, 70))


@pytest.mark.parametrize("how", ["last row", "nan", "nan outside the sample", "skips"])
@torch.inference_mode()
def test_wrong_outputs_are_caught(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = lying(how, monkeypatch).check()
    assert not check.passed
    assert check.max_error > check.tolerance


@torch.inference_mode()
def test_an_honest_layer_of_that_kind_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lying("", monkeypatch).check().passed


@torch.inference_mode()
def test_wrong_shape_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        lying("shape", monkeypatch).check()


@torch.inference_mode()
def test_cold_rotates_through_copies_that_overflow_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "last_level_cache", lambda: 100_000)
    params = {"shape": [64, 64], "tokens": 1, "cache": "cold"}
    subject = session(params).build("linear", spec_of("linear"))
    weights = [next(subject._rotation).weight for _ in range(14)]
    pointers = [weight.data_ptr() for weight in weights]
    assert len(set(pointers)) == 13  # 13 x 16384 > 200000 >= 12 x 16384
    assert pointers[13] == pointers[0]
    assert all(torch.equal(weights[0], weight) for weight in weights)
    assert subject.invalid() is None
    assert subject.work().from_memory
    assert subject.check().passed


@torch.inference_mode()
def test_no_timed_call_is_the_first_of_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "last_level_cache", lambda: 100_000)
    spec = layer(kind="ternary", activation_bits=8)
    subject = session({"shape": [512, 512], "tokens": 1, "cache": "cold"}).build("ternary", spec)
    assert subject.rotation > 1
    assert all(module.last_kernel for module in subject._modules)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_copies(weight_bytes: int, cache: int) -> None:
    copies, why = copies_needed(weight_bytes, cache, 2**40)
    assert 1 <= copies <= MAX_COPIES
    assert (copies * weight_bytes > 2 * cache) == (why is None)


def test_what_cannot_be_cold_says_so() -> None:
    assert "less than 2 times" in str(copies_needed(100, 32 * 2**20, 2**40)[1])
    assert "cannot be read" in str(copies_needed(2**20, 0, 2**40)[1])


@given(st.integers(1, 20_000), st.integers(0, 2**63 - 1))
def test_sampled_rows_hold_both_ends_and_stay_inside(out_features: int, seed: int) -> None:
    rows = sampled_rows(out_features, seed)
    assert rows[0].start == 0
    assert max(part.stop for part in rows) == out_features
    assert sum(part.stop - part.start for part in rows) == min(out_features, 512)
    assert all(0 <= part.start < part.stop <= out_features for part in rows)


@given(st.integers(1, 600), st.integers(0, 1000))
def test_sampled_tokens_hold_both_ends_and_the_whole_range(tokens: int, seed: int) -> None:
    x = torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed))
    chosen = sampled_tokens(x)
    assert chosen[0] == 0
    assert chosen[-1] == tokens - 1
    assert len(set(chosen)) == len(chosen)
    assert min(tokens, 14) <= len(chosen) <= 16
    assert x[chosen].min() == x.min()
    assert x[chosen].max() == x.max()


@pytest.mark.parametrize("name", list(LAYERS))
@torch.inference_mode()
def test_many_tokens_are_checked_on_a_sample(name: str) -> None:
    check = subject_of(name, (600, 256), tokens=100).check()
    assert check.passed, check
    assert 512 * 14 <= check.compared <= 512 * 16


@pytest.mark.parametrize("name", list(LAYERS))
def test_ledger_of_every_layer_adds_up(name: str) -> None:
    out_features, in_features = 160, 256
    params = {"shape": [out_features, in_features], "measure": "memory"}
    metrics = session(params, bias=True).measure(name, spec_of(name), 0).metrics
    assert set(metrics) <= set(METRICS)
    parts = ("codes", "scales", "bias", "buffers", "slack")
    assert metrics["memory.layer_bytes"] == sum(metrics[f"memory.{part}_bytes"] for part in parts)
    assert metrics["memory.bias_bytes"] == out_features * (2 if name == "linear-bf16" else 4)
    weights = out_features * in_features
    stored = metrics["memory.weight_bytes"]
    assert metrics["memory.weight_ratio"] == pytest.approx(4 * weights / stored)
    assert metrics["memory.weight_ratio_bf16"] == pytest.approx(2 * weights / stored)
    assert metrics["memory.bits_per_weight"] == pytest.approx(8 * stored / weights)
    # The format's bound is never beaten, and the cost model says what was measured.
    assert metrics["memory.bits_per_weight"] >= metrics["memory.format_bits"]
    kind, spec = registry.get(LAYERS[name]["kind"]), spec_of(name)
    assert stored == kind.cost(spec, in_features, out_features).weight_bytes
    header = 1500  # what a safetensors file says about its tensors
    assert (
        0
        < metrics["memory.file_bytes"] - (metrics["memory.layer_bytes"] - metrics["memory.slack_bytes"])
        < header
    )


def test_base3_takes_a_twentieth() -> None:
    params = {"shape": [1000, 1024], "measure": "memory"}
    metrics = session(params).measure("ternary", spec_of("ternary"), 0).metrics
    assert metrics["memory.codes_bytes"] == 200 * 1024
    assert 19 < metrics["memory.weight_ratio"] <= 20


@torch.inference_mode()
def test_the_check_after_timing_is_against_the_weights_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is computed once; a kernel that spoils its own weights is found all the same."""
    subject = subject_of("linear", (600, 70))
    kind = type(registry.get("linear"))
    asked: list[slice] = []
    real = kind.reference
    monkeypatch.setattr(
        kind, "reference", lambda self, spec, m, x, rows: asked.append(rows) or real(self, spec, m, x, rows)
    )
    assert subject.check().passed
    once = len(asked)
    assert once > 1
    assert subject.check().passed
    assert len(asked) == once
    subject._made.module.weight[0, 0] += 1  # type: ignore[index, operator]
    assert not subject.check().passed


def test_how_a_gpu_is_to_time_a_layer_follows_from_the_cache_state() -> None:
    """The session asks for the device's cache to be flushed, and then needs no copies."""
    hot = subject_of("linear")
    assert (hot.flush, hot.replayable, hot.rotation) == (False, True, 1)
    cold = session({"shape": [256, 256], "tokens": 1, "cache": "cold"}).build("linear", spec_of("linear"))
    assert (cold.flush, cold.replayable) == (False, True)
    assert cold.rotation == len(cold._modules) > 1


@pytest.mark.parametrize(
    ("weight_bytes", "on_gpu", "copies", "flush", "cold"),
    [
        (16 << 20, True, 31, False, True),  # 30 of them are eight times the cache
        (1 << 30, True, 1, False, True),
        (4096, True, 1, True, True),  # 512 copies are not enough
        (4096, False, 512, False, False),
    ],
)
def test_how_weights_come_from_memory(
    weight_bytes: int, on_gpu: bool, copies: int, flush: bool, cold: bool
) -> None:
    found = cold_by(weight_bytes, 60 << 20, 100 << 30, on_gpu=on_gpu)
    assert found[:2] == (copies, flush)
    assert (found[2] is None) == cold


def test_a_gpu_that_hides_the_size_of_its_cache_has_no_cold_layers() -> None:
    assert cold_by(1 << 20, 0, 100 << 30, on_gpu=True)[1] is False
    assert "cannot be read" in str(cold_by(1 << 20, 0, 100 << 30, on_gpu=True)[2])


def test_layers_of_a_point_get_the_same_numbers_and_memory_of_their_own() -> None:
    opened = session({"shape": [8, 16], "tokens": 3, "cache": "hot"})
    first, second = (opened.input(torch.float32, 3) for _ in range(2))
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(opened.input(torch.bfloat16, 3), first.bfloat16())
    assert opened.input(torch.float32, 5).shape == (5, 16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [8, None])
def test_low_bit_layers_of_another_type(dtype: str, bits: int | None) -> None:
    fields = {"kind": "ternary", "dtype": dtype, "activation_bits": bits}
    spec = registry.get("ternary").spec.model_validate(fields)
    subject = session({"shape": [70, 130], "tokens": 3, "cache": "hot"}).build("x", spec)
    assert subject.call().dtype == getattr(torch, dtype)
    check = subject.check()
    assert check.passed, check
    assert check.max_error > 1e-5, "rounded to that type"
