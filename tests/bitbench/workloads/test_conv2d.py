from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_specs import layer
from torch import nn

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.store.metrics import METRICS
from bitbench.suite.convolutions import CONVOLUTION_SETS, ConvShape
from bitbench.workloads.base import Context, PointPlan, Unsupported
from bitbench.workloads.conv2d import Conv2dSession, Conv2dSpec, Conv2dSubject, Conv2dWorkload, shape_of
from impl import native

KIND = Conv2dWorkload()

LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "linear-bf16": {"kind": "linear", "dtype": "bfloat16"},
    "binary": {"kind": "binary", "activation_bits": 8},
    "binary-w1a1": {"kind": "binary", "activation_bits": 1},
    "binary-tensor": {"kind": "binary", "scale": "tensor"},
    "ternary": {"kind": "ternary", "format": "base3"},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit", "scale_dtype": "float16"},
    "ternary-a16": {"kind": "ternary", "activation_bits": 16},
    "ternary-float": {"kind": "ternary", "activation_bits": None},
    "ternary-training": {"kind": "ternary", "form": "training"},
    "k3": {"kind": "k_ternary", "k": 3},
}
SMALL = {"shape": [10, 6], "kernel": 3, "stride": 2, "size": 9, "batch": 4, "memory_format": "contiguous"}


def spec_of(name: str) -> LayerSpec:
    return layer(**LAYERS[name])


def session(params: dict[str, Any], *, bias: bool = False, seed: int = 1) -> Conv2dSession:
    shape = {name: params[name] for name in ConvShape.model_fields if name in params}
    spec = Conv2dSpec.model_validate({"kind": "conv2d", "shapes": [{"size": 9, **shape}], "bias": bias})
    context = Context("cpu", 1, seed, Path(), {n: spec_of(n) for n in LAYERS}, "linear")
    return KIND.open(spec, params, context)


def subject_of(name: str, *, bias: bool = False, **params: Any) -> Conv2dSubject:
    return session({**SMALL, **params}, bias=bias).build(name, spec_of(name))


def test_points_are_the_product_and_the_bytes_of_each_weight() -> None:
    spec = Conv2dSpec.model_validate(
        {
            "kind": "conv2d",
            "shapes": [{"shape": [8, 4], "size": 6}, {"shape": [8, 4], "size": 5, "stride": 2}],
            "batch": [1, 8],
            "memory_format": ["contiguous", "channels_last"],
        }
    )
    points = KIND.points(spec)
    assert len(points) == 2 * (2 * 2 + 1)
    params = {"shape": [8, 4], "kernel": 3, "stride": 1, "size": 6, "batch": 1, "memory_format": "contiguous"}
    assert points[0] == PointPlan(params, "timed", "launches")
    assert points[4] == PointPlan({"shape": [8, 4], "kernel": 3, "measure": "memory"}, "once", "exact")
    assert points[4] == points[9], "bytes depend on the weight alone"
    assert len(KIND.points(KIND.quick(spec))) == 2
    assert all(KIND.estimate(spec, point, spec_of("linear")) > 0 for point in points)


def test_the_named_set_is_resnet_18() -> None:
    spec = Conv2dSpec.model_validate({"kind": "conv2d", "shapes": "resnet-18"})
    assert len(spec.shapes) == len(CONVOLUTION_SETS["resnet-18"]) == 10
    # Every block but for its repeats: 64 channels twice and both halves of each later stage.
    macs = [shape.pixels * shape.columns * shape.out_channels for shape in spec.shapes]
    assert {shape.output_size for shape in spec.shapes} == {56, 28, 14, 7}
    assert macs[0] == macs[2] == macs[4] == macs[6] == 115_605_504


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"shapes": "resnet18"}, "resnet-18"),
        ({"shapes": []}, "at least one"),
        ({"shapes": [{"shape": [8, 0], "size": 4}]}, "in_features"),
        ({"shapes": [{"shape": [8, 4], "size": 3, "kernel": 8, "side": 1}]}, "side"),
        ({"shapes": [{"shape": [8, 4], "size": 1, "kernel": 4, "padding": 1}]}, "padding"),
        ({"batch": [0]}, "batch"),
        ({"memory_format": ["nhwc"]}, "memory_format"),
    ],
)
def test_impossible_points_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Conv2dSpec.model_validate({"kind": "conv2d", "shapes": "resnet-18", **wrong})


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 20))
def test_sizes_are_those_of_torch(kernel: int, stride: int, size: int) -> None:
    if size + 2 * (kernel // 2) < kernel:
        return
    shape = ConvShape(shape=[2, 3], kernel=kernel, stride=stride, size=size)
    made = nn.Conv2d(3, 2, kernel, stride, shape.padding, device="meta")
    output = made(torch.empty(1, 3, size, size, device="meta"))
    assert tuple(output.shape) == (1, 2, shape.output_size, shape.output_size)
    assert shape.pixels == shape.output_size**2
    assert shape.columns * 2 == made.weight.numel()


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
@torch.inference_mode()
def test_every_layer_agrees_with_its_reference(name: str, bias: bool, memory_format: str) -> None:
    subject = subject_of(name, bias=bias, memory_format=memory_format)
    check = subject.check()
    assert check.passed, check
    assert check.compared == 3 * 10 * 5 * 5
    assert subject.call().shape == (4, 10, 5, 5)
    assert subject._x.is_contiguous(memory_format=subject_format(memory_format))
    work = subject.work()
    assert not work.from_memory
    assert work.weight_bytes > 0
    passes = {"ternary-a16": 2, "k3": 3}.get(name, 1)
    assert work.operations == 2 * passes * 4 * (10 * 6 * 9) * 25
    if native.available():
        assert subject.fallback() is None
    said = registry.get(LAYERS[name]["kind"]).dispatch(spec_of(name), subject.kernel)
    assert said["packed"] == ("no" if name in ("linear", "linear-bf16", "ternary-training") else "yes")


def subject_format(name: str) -> torch.memory_format:
    formats: dict[str, torch.memory_format] = {
        "contiguous": torch.contiguous_format,
        "channels_last": torch.channels_last,
    }
    return formats[name]


@settings(max_examples=12)
@given(
    name=st.sampled_from(["linear", "binary-w1a1", "ternary", "k3"]),
    channels=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    size=st.integers(3, 12),
    batch=st.integers(1, 5),
)
@torch.inference_mode()
def test_any_shape_agrees_with_its_reference(
    name: str, channels: tuple[int, int], kernel: int, stride: int, size: int, batch: int
) -> None:
    check = subject_of(
        name, shape=list(channels), kernel=kernel, stride=stride, size=size, batch=batch
    ).check()
    assert check.passed, check


def test_all_layers_of_a_point_get_the_same_numbers() -> None:
    inputs = [subject_of(name)._x.float() for name in ("linear", "ternary", "linear-bf16")]
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(inputs[2], inputs[0].bfloat16().float())


class Lying(nn.Conv2d):
    """A layer whose kernel goes wrong in one way."""

    def __init__(self, how: str) -> None:
        super().__init__(6, 10, 3, 2, 1, bias=False)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = super().forward(x)
        if self.how == "border":
            right[:, :, -1, -1] += 1
        elif self.how == "nan outside the sample":
            right[1, 0, 0, 0] = math.nan
        elif self.how == "skips":
            left = torch.empty_like(right)
            left[:, :, 1:] = right[:, :, 1:]
            return left
        elif self.how == "shape":
            return right[:, 1:]
        return right


def lying(how: str, monkeypatch: pytest.MonkeyPatch) -> Conv2dSubject:
    torch.manual_seed(0)
    kind = registry.get("linear")
    monkeypatch.setattr(type(kind), "random_conv2d", lambda self, *_, **__: Lying(how))
    return subject_of("linear")


@pytest.mark.parametrize("how", ["border", "nan outside the sample", "skips"])
@torch.inference_mode()
def test_wrong_outputs_are_caught(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check = lying(how, monkeypatch).check()
    assert not check.passed
    assert check.max_error > check.tolerance


@torch.inference_mode()
def test_an_honest_layer_passes_and_one_that_spoils_its_weight_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = lying("", monkeypatch)
    assert subject.check().passed
    subject._made.module.weight[0, 0] += 1
    assert not subject.check().passed
    with pytest.raises(RuntimeError, match="shape"):
        lying("shape", monkeypatch).check()


@pytest.mark.parametrize("name", list(LAYERS))
def test_ledger_of_every_layer_adds_up(name: str) -> None:
    params = {"shape": [40, 64], "kernel": 3, "measure": "memory"}
    metrics = session(params, bias=True).measure(name, spec_of(name), 0).metrics
    assert set(metrics) <= set(METRICS)
    parts = ("codes", "scales", "bias", "buffers", "slack")
    assert metrics["memory.layer_bytes"] == sum(metrics[f"memory.{part}_bytes"] for part in parts)
    weights = 40 * 64 * 9
    stored = metrics["memory.weight_bytes"]
    assert metrics["memory.weight_ratio"] == pytest.approx(4 * weights / stored)
    kind, shape = registry.get(LAYERS[name]["kind"]), shape_of(params)
    assert stored == kind.cost(spec_of(name), shape.columns, shape.out_channels).weight_bytes


def test_kinds_without_a_convolution_say_so() -> None:
    int8 = registry.get("torch_int8").spec.model_validate({"kind": "torch_int8"})
    with pytest.raises(Unsupported, match="torch_int8 layer is a matrix product"):
        session(SMALL).build("linear-int8", int8)
    groups = registry.get("ternary").spec.model_validate({"kind": "ternary", "group_size": 8})
    with pytest.raises(Unsupported, match="group_size=8"):
        session(SMALL).build("ternary-g8", groups)
