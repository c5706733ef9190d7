"""Layers between binary layers: their outputs are the signs that exact arithmetic gives, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitbench.layers import registry
from bitbench.layers.specs import BinarySpec
from bitbench.suite.convolutions import ConvShape
from bitbench.workloads.base import Unsupported
from impl.signs import Signs

KIND = registry.get("binary")
FIELDS: dict[str, Any] = {"kind": "binary", "activation_bits": 1, "signs": True}


def spec_of(**fields: Any) -> BinarySpec:
    return BinarySpec.model_validate({**FIELDS, **fields})


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", ["row", "tensor"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (13, 7), (130, 257)])
def test_a_matrix_gives_the_signs_of_its_exact_product(
    rows: int, columns: int, scale: str, bias: bool
) -> None:
    spec, x = spec_of(scale=scale), drawn(5, columns)
    layer: Any = KIND.random(spec, columns, rows, bias=bias, seed=1)
    y = layer(KIND.given(spec, x))
    assert isinstance(y, Signs)
    shown = KIND.shown(spec, y)
    assert shown.shape == (5, rows)
    assert torch.equal(shown.double(), KIND.reference(spec, layer, x, slice(None)))
    assert torch.equal(shown[:, rows // 2 :].double(), KIND.reference(spec, layer, x, slice(rows // 2, rows)))
    # The reference itself, from the codes: whole numbers on either side of a half.
    products = torch.where(x >= 0, 1.0, -1.0) @ layer.layer.W_binary.T
    scales = layer.layer.scales[0, :, 0].expand(rows)
    offset = layer.layer.bias if bias else 0.0
    assert torch.equal(shown > 0, products * scales + offset >= layer.thresholds.lower)


def test_both_signs_come_out_and_follow_the_input() -> None:
    spec, x = spec_of(), drawn(64, 96)
    layer = KIND.random(spec, 96, 80, bias=False, seed=1)
    shown = KIND.shown(spec, layer(KIND.given(spec, x)))
    assert 0.3 < float((shown > 0).float().mean()) < 0.7
    assert not torch.equal(shown, KIND.shown(spec, layer(KIND.given(spec, -x))))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_gives_them_at_the_border_too(stride: int) -> None:
    """Where fewer products are summed up."""
    spec, x = spec_of(), drawn(3, 6, 9, 9)
    shape = ConvShape(shape=[10, 6], stride=stride, size=9)
    layer = KIND.random_conv2d(spec, shape, bias=True, seed=1)
    shown = KIND.shown(spec, layer(KIND.given(spec, x)))
    assert shown.shape == (3, 10, shape.output_size, shape.output_size)
    assert torch.equal(shown.double(), KIND.conv2d_reference(spec, layer, x))


def test_a_flipped_bit_and_a_missing_one_show() -> None:
    spec, x = spec_of(), drawn(4, 16)
    layer = KIND.random(spec, 16, 8, bias=False, seed=1)
    exact = KIND.reference(spec, layer, x, slice(None))
    y: Any = layer(KIND.given(spec, x))
    y.bits[2, 0] ^= 4
    assert (KIND.shown(spec, y).double() != exact).sum() == 1
    y.scale[1] = torch.nan  # what is no number says so
    assert KIND.shown(spec, y)[1].isnan().all()


def test_the_kernel_is_that_of_the_layer_inside() -> None:
    spec = spec_of()
    layer = KIND.random(spec, 16, 8, bias=False, seed=1)
    layer(KIND.given(spec, drawn(4, 16)))
    assert KIND.kernel(layer).startswith("binary_linear/binary/")
    assert KIND.dispatch(spec, KIND.kernel(layer))["operator"] == "binary_linear"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_bits": 8}, "has `activation_bits: 1`, not 8"),
        ({"form": "training"}, "has `form: packed`, not training"),
        ({"group_size": 8}, "has `group_size: null`, not 8"),
    ],
)
def test_what_has_no_single_bits_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**fields)


def test_it_is_measured_and_not_trained() -> None:
    for make in (
        lambda: KIND.trainable(spec_of(), 8, 8, bias=False),
        lambda: KIND.convert(spec_of(), nn.Linear(8, 8)),
        lambda: KIND.trainable_conv2d(spec_of(), ConvShape(shape=[8, 8], size=4), bias=False),
    ):
        with pytest.raises(Unsupported, match="name a layer without `signs`"):
            make()


def test_layers_that_do_without_keep_their_ids() -> None:
    plain = BinarySpec(kind="binary", activation_bits=1)
    assert "signs" not in plain.model_dump(mode="json")
    assert spec_of().model_dump(mode="json")["signs"] is True
    assert KIND.given(plain, x := drawn(2, 3)) is x
