"""What the gradients of bitorch_engine's binary layers are computed in: float32, bfloat16, int8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from binary_cases import PLAIN, SCALED, calibrated, sign
from torch import Tensor, nn
from torch_products import Products

from impl.compat.bitorch_engine import BinaryConv2dBase, BinaryConv2dCutlass, BinaryLinearCuda, BinaryMatMul
from impl.ops import library
from impl.ops.int8_training import input_grad_python
from impl.packing import PackedWeight


def layers() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    """Layers, and inputs in float32 whose values bfloat16 holds too: their signs and windows are the same."""
    torch.manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().float()

    for packed in (False, True):
        for cls in (*PLAIN, *SCALED, BinaryConv2dBase, BinaryConv2dCutlass):
            conv = cls in (BinaryConv2dBase, BinaryConv2dCutlass)
            sizes = (8, 6, 3, 1, 1) if conv else (61, 43)
            layer = calibrated(cls, *sizes, bias=True)
            if hasattr(layer, "bias_a"):
                nn.init.zeros_(layer.bias_a)
            if packed:
                layer.generate_quantized_weight(qweight_only=True)
            yield layer, (values(3, 8, 5, 6) if conv else values(2, 17, 61),)
    product = BinaryMatMul()
    with torch.no_grad():
        product.x_clip.fill_(1.5)
        product.y_clip.fill_(0.75)
    yield product, (values(2, 9, 61), values(2, 7, 61))


def gradients(
    layer: nn.Module, inputs: tuple[Tensor, ...], autocast: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(*leaves)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype))
    found = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return y.detach(), {**found, **{f"input {i}": leaf.grad for i, leaf in enumerate(leaves)}}


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_inputs_have_bfloat16_products(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights' too on CUDA, for which the CPU stands here."""
    monkeypatch.setattr(library, "BFLOAT16_PRODUCTS", frozenset({"cpu"}))
    for layer, inputs in layers():
        y, expected = gradients(layer, inputs, autocast=False)
        given = inputs if autocast else tuple(x.bfloat16() for x in inputs)
        leaves = [x.detach().clone().requires_grad_() for x in given]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            z = layer(*leaves)
        assert torch.equal(z, y.bfloat16())
        with Products() as products:
            z.sum().backward()
        assert products.dtypes == {torch.bfloat16}, type(layer).__name__
        _, found = gradients(layer, given, autocast)
        assert found.keys() == expected.keys()
        for name, right in expected.items():
            if right.dim() == 0:  # a sum over all, whose terms cancel
                torch.testing.assert_close(found[name], right, rtol=0.05, atol=0.5)
                continue
            error = (found[name].float() - right).norm() / right.norm()
            assert error < 2**-7, (type(layer).__name__, name, error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_inputs_have_float32_products(dtype: torch.dtype) -> None:
    """float16 has not the range of sums of gradients."""
    for layer, inputs in layers():
        given = tuple(x.to(dtype).requires_grad_() for x in inputs)
        y = layer(*given)
        with Products() as products:
            y.sum().backward()
        assert products.dtypes == {torch.float32}


@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("packed", [False, True])
def test_int8_gradients_are_exact_products_of_integers(packed: bool, scale: str) -> None:
    torch.manual_seed(0)
    layer = calibrated(BinaryLinearCuda, 61, 43, scale=scale, backward="int8")
    twin = calibrated(BinaryLinearCuda, 61, 43, scale=scale)
    twin.load_state_dict(layer.state_dict())
    codes = sign(layer.weight.detach()).to(torch.int8)
    if packed:
        for one in (layer, twin):
            one.generate_quantized_weight(qweight_only=True)
    inputs = (torch.randn(40, 61),)
    (y, found), (right, expected) = (gradients(one, inputs, autocast=False) for one in (layer, twin))
    assert torch.equal(y, right)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    weight = PackedWeight.from_codes(codes[None], layer.scale_w.detach().view(1, -1, 1), "binary", None)
    inside = (inputs[0] + layer.bias_a.detach()).abs() <= layer.scale_a.detach().abs()
    assert torch.equal(found["input 0"], input_grad_python(grad, weight) * inside)
    assert not torch.equal(found["input 0"], expected["input 0"])
    for name, value in expected.items():
        if name == "weight":
            assert torch.equal(found[name], value)
        else:
            assert (found[name] - value).norm() / value.norm() < 0.012, name


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_the_option_is_checked_and_kept(cls: Any) -> None:
    assert cls(8, 4).backward == "float"
    assert cls(8, 4, backward="int8").backward == "int8"
    with pytest.raises(ValueError, match="backward 'int4'"):
        cls(8, 4, backward="int4")


def test_low_precision_int8_gradients() -> None:
    layer = calibrated(BinaryLinearCuda, 61, 43, backward="int8")
    _, found = gradients(layer, (torch.randn(5, 61),), autocast=True)
    assert all(value.isfinite().all() for value in found.values())
    x = torch.randn(5, 61, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
