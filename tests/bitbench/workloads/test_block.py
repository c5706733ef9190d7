"""Residual blocks: as the network has them, right in every part, and wrong ones caught."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_specs import layer
from torch import nn

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.store.metrics import METRICS
from bitbench.suite.convolutions import BLOCK_SETS, BlockShape
from bitbench.workloads import residual
from bitbench.workloads.base import Context, PointPlan, Unsupported
from bitbench.workloads.block import BlockSession, BlockSpec, BlockSubject, BlockWorkload, block_of
from bitbench.workloads.residual import TimedBlock, folded_block
from impl import native
from impl.layers.threshold import ThresholdLayer

KIND = BlockWorkload()
LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "linear-bf16": {"kind": "linear", "dtype": "bfloat16"},
    "binary": {"kind": "binary", "activation_bits": 8},
    "binary-w1a1": {"kind": "binary", "activation_bits": 1},
    "binary-signs": {"kind": "binary", "activation_bits": 1, "signs": True},
    "signs-bf16": {"kind": "binary", "activation_bits": 1, "signs": True, "dtype": "bfloat16"},
    "ternary": {"kind": "ternary", "format": "base3"},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit", "dtype": "bfloat16"},
    "ternary-float": {"kind": "ternary", "activation_bits": None},
    "ternary-training": {"kind": "ternary", "form": "training"},
    "k2": {"kind": "k_ternary", "k": 2},
}
SMALL = {"shape": [10, 10], "stride": 1, "size": 9, "batch": 4, "memory_format": "contiguous"}
SHORTCUT = SMALL | {"shape": [10, 6], "stride": 2}


def spec_of(name: str) -> LayerSpec:
    return layer(**LAYERS[name])


def session(params: dict[str, Any]) -> BlockSession:
    spec = BlockSpec.model_validate({"kind": "block", "shapes": "resnet-18"})
    return KIND.open(spec, params, Context("cpu", 1, 1, Path(), {}, "linear"))


def subject_of(name: str, **params: Any) -> BlockSubject:
    return session({**SMALL, **params}).build(name, spec_of(name))


def test_points_are_the_product_and_the_bytes_of_each_block() -> None:
    spec = BlockSpec.model_validate(
        {
            "kind": "block",
            "shapes": [{"shape": [8, 4], "size": 6}, {"shape": [8, 4], "size": 5, "stride": 2}],
            "batch": [1, 8],
            "memory_format": ["contiguous", "channels_last"],
        }
    )
    points = KIND.points(spec)
    assert len(points) == 2 * (2 * 2 + 1)
    params = {"shape": [8, 4], "stride": 1, "size": 6, "batch": 1, "memory_format": "contiguous"}
    assert points[0] == PointPlan(params, "timed", "launches")
    assert points[4] == PointPlan({"shape": [8, 4], "stride": 1, "measure": "memory"}, "once", "exact")
    assert len(KIND.points(KIND.quick(spec))) == 2
    for estimate in (KIND.estimate, KIND.estimate_on_gpu):
        assert all(estimate(spec, point, spec_of("linear")) > 0 for point in points)


def test_the_named_set_is_the_blocks_of_resnet_18() -> None:
    shapes = [BlockShape.model_validate(one) for one in BLOCK_SETS["resnet-18"]]
    assert [(one.shape, one.stride, one.size) for one in shapes] == [
        ([64, 64], 1, 56), ([128, 64], 2, 56), ([128, 128], 1, 28), ([256, 128], 2, 28),
        ([256, 256], 1, 14), ([512, 256], 2, 14), ([512, 512], 1, 7),
    ]  # fmt: skip
    first, second, around = shapes[1].convolutions
    assert (first.shape, first.stride, first.size, first.output_size) == ([128, 64], 2, 56, 28)
    assert (second.shape, second.stride, second.size) == ([128, 128], 1, 28)
    assert (around.kernel, around.stride, around.output_size) == (1, 2, 28)
    assert len(shapes[0].convolutions) == 2
    assert len(BlockShape(shape=[64, 32], size=8).convolutions) == 3
    assert block_of({"shape": [8, 4], "stride": 2, "measure": "memory"}).size == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"shapes": "resnet18"}, "resnet-18"),
        ({"shapes": []}, "at least one"),
        ({"shapes": [{"shape": [8, 4], "size": 4, "kernel": 3}]}, "kernel"),
        ({"batch": [0]}, "batch"),
        ({"bias": True}, "bias"),
    ],
)
def test_impossible_points_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BlockSpec.model_validate({"kind": "block", "shapes": "resnet-18", **wrong})


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize("params", [SMALL, SHORTCUT], ids=["same", "shortcut"])
@pytest.mark.parametrize("name", list(LAYERS))
@torch.inference_mode()
def test_every_layer_agrees_with_its_reference(name: str, params: dict[str, Any], memory_format: str) -> None:
    subject = subject_of(name, **(params | {"memory_format": memory_format}))
    check = subject.check()
    assert check.passed, check
    side, parts = (9, 2) if params is SMALL else (5, 3)
    assert check.compared == parts * 3 * 10 * side**2
    output = subject.call()
    assert output.shape == (4, 10, side, side)
    work = subject.work()
    assert not work.from_memory
    inner = params["shape"][1]
    passes = 2 if name == "k2" else 1
    around = 10 * inner if parts == 3 else 0
    assert work.operations == 2 * passes * 4 * (10 * 9 * (inner + 10) + around) * side**2
    if native.available():
        assert subject.fallback() is None
    assert subject.kernel


@torch.inference_mode()
def test_a_folded_block_computes_what_the_block_with_its_norms_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear", "binary", "ternary"):
        spec, shape = spec_of(name), BlockShape(shape=[10, 6], stride=2, size=9)
        kind = registry.get(spec.kind)
        folded = folded_block(kind, spec, shape, seed=3)
        assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
        with monkeypatch.context() as patch:
            patch.setattr(residual, "_fold", lambda block: block)
            whole = folded_block(kind, spec, shape, seed=3)
        assert sum(isinstance(part, nn.BatchNorm2d) for part in whole.modules()) == 3
        x = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(folded(x), whole(x), atol=2e-2 if spec.kind != "linear" else 1e-5)
        assert whole(x).std() > 0.1


@torch.inference_mode()
def test_signs_are_handed_on_as_bits_and_give_the_same_block() -> None:
    subject = subject_of("binary-signs")
    inside = [part for part in subject._block.modules() if isinstance(part, ThresholdLayer)]
    assert [part.takes_signs for part in inside] == [False, True]
    assert subject._plain is not subject._block
    assert torch.equal(subject.call(), subject._plain(subject._x))
    twin = subject_of("binary-w1a1")
    assert torch.equal(subject.call(), twin.call()), "the same weights, the same block"
    assert (subject._plain.conv1(subject._x) < 0).any(), "both signs occur between the convolutions"


class Wrong(TimedBlock):
    """A block that goes wrong in one way."""

    how = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "no activation":
            return self.conv2(self.between(self.conv1(x))) + x
        if self.how == "no shortcut":
            return self.activation(self.conv2(self.between(self.conv1(x))))
        if self.how == "not between":
            return self.activation(self.conv2(self.conv1(x)) + x)
        right = super().forward(x)
        return right * math.nan if self.how == "nan" else right


@pytest.mark.parametrize("how", ["", "no activation", "no shortcut", "not between", "nan"])
@pytest.mark.parametrize("name", ["linear", "binary-w1a1", "ternary"])
@torch.inference_mode()
def test_a_block_put_together_wrongly_is_caught(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "TimedBlock", type("Wrong", (Wrong,), {"how": how}))
    assert subject_of(name).check().passed == (how == "")


@torch.inference_mode()
def test_a_wrong_weight_or_a_wrong_bit_is_caught() -> None:
    subject = subject_of("linear")
    kind = registry.get("linear")
    exact = kind.conv2d_reference
    assert subject.check().passed
    subject._kind = kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(kind), "conv2d_reference", lambda _, *a: exact(*a) * 1.001)
        assert not subject.check().passed
    signs = subject_of("binary-signs")
    assert signs.check().passed
    first: Any = signs._block.conv1
    first.threshold_bits[0].view(torch.float32)[0] = math.inf  # a channel that is never +1
    assert not signs.check().passed


@torch.inference_mode()
def test_an_output_of_another_shape_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of("linear")
    monkeypatch.setattr(subject, "call", lambda: subject._block(subject._x)[:, 1:])
    with pytest.raises(RuntimeError, match="shape"):
        subject.check()


@pytest.mark.parametrize("name", list(LAYERS))
def test_ledger_of_every_block_adds_up(name: str) -> None:
    params = {"shape": [40, 64], "stride": 2, "measure": "memory"}
    metrics = session(params).measure(name, spec_of(name), 0).metrics
    assert set(metrics) <= set(METRICS)
    parts = ("codes", "scales", "bias", "buffers", "slack")
    assert metrics["memory.layer_bytes"] == sum(metrics[f"memory.{part}_bytes"] for part in parts)
    weights = 40 * (64 * 9 + 40 * 9 + 64)
    assert metrics["memory.weight_ratio"] == pytest.approx(4 * weights / metrics["memory.weight_bytes"])
    assert metrics["memory.bits_per_weight"] == pytest.approx(8 * metrics["memory.weight_bytes"] / weights)
    if "training" not in name:
        kind = registry.get(LAYERS[name]["kind"])
        costs = [kind.cost(spec_of(name), c.columns, c.out_channels) for c in block_of(params).convolutions]
        assert metrics["memory.weight_bytes"] == sum(cost.weight_bytes for cost in costs)


def test_all_layers_of_a_point_get_the_same_numbers() -> None:
    one, two = (subject_of(name) for name in ("linear", "ternary"))
    assert torch.equal(one._x, two._x)
    assert one._plain.activation is F.relu
    assert subject_of("binary-w1a1")._plain.activation is F.hardtanh


def test_kinds_without_a_convolution_say_so() -> None:
    with pytest.raises(Unsupported, match="torch_int8 layer is a matrix product"):
        session(SMALL).build("int8", layer(kind="torch_int8"))


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitbench.workloads.registry import get\n"
        "from bitbench.layers.registry import get as layer\n"
        "kind = get('block'); spec = kind.spec(kind='block', shapes='resnet-18')\n"
        "one = layer('binary').spec(kind='binary', activation_bits=1, signs=True)\n"
        "print([kind.estimate(spec, p, one) for p in kind.points(spec)])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
