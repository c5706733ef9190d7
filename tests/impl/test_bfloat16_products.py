"""Products that stay in bfloat16: gradients of packed layers on CUDA, convolutions trained under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_products import Products

import impl
from impl.ops import library

pytestmark = pytest.mark.usefixtures("one_thread")


def packed_layers() -> list[tuple[torch.nn.Module, Tensor]]:
    torch.manual_seed(0)
    return [
        (impl.BitLinear(70, 43, bias=False).pack(), torch.randn(9, 70)),
        (impl.BinaryLinear(70, 43, activation_bits=1).pack(), torch.randn(9, 70)),
        (impl.BinaryLinear(70, 43, activation_bits=8, group_size=24).pack(), torch.randn(9, 70)),
        (impl.TernaryConv2d(6, 8, 3, padding=1, activation_bits=8).pack(), torch.randn(2, 6, 5, 4)),
        (impl.BinaryConv2d(6, 8, 3, groups=2, activation_bits=1).pack(), torch.randn(2, 6, 5, 4)),
    ]


def gradient(layer: torch.nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, set[torch.dtype]]:
    leaf = x.detach().to(dtype, copy=True).requires_grad_()
    y = layer(leaf)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
    with Products() as products:
        y.backward(towards)
    assert leaf.grad is not None
    return leaf.grad, products.dtypes


@pytest.mark.parametrize("cut", [False, True])
def test_packed_layers_multiply_bfloat16_gradients_as_they_are(
    cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA; a processor may emulate bfloat16, so float32 stays there."""
    tiles = [(0, 20), (20, 43)] if cut else [(0, 43)]
    monkeypatch.setattr("impl.ops.linear.row_tiles", lambda _: tiles)
    for layer, x in packed_layers():
        x = x.bfloat16()
        expected, seen = gradient(layer, x, torch.float32)
        assert seen == {torch.float32}
        kept, seen = gradient(layer, x, torch.bfloat16)
        assert seen == {torch.float32}
        torch.testing.assert_close(kept, expected.bfloat16())
        with monkeypatch.context() as patch:
            patch.setattr(library, "BFLOAT16_PRODUCTS", frozenset({"cpu"}))
            found, seen = gradient(layer, x, torch.bfloat16)
            assert seen == {torch.bfloat16}
            assert found.dtype == torch.bfloat16
            _, seen = gradient(layer, x, torch.float32)
            assert seen == {torch.float32}
            _, seen = gradient(layer, x, torch.float16)
            assert seen == {torch.float32}
        assert (found.float() - expected).norm() / expected.norm() < 2**-7


@pytest.mark.parametrize("bits", [None, 1, 8])
@pytest.mark.parametrize("cls", [impl.BinaryConv2d, impl.TernaryConv2d, impl.MultiTernaryConv2d])
def test_convolutions_train_in_bfloat16_under_autocast(cls: type, bits: int | None) -> None:
    """No convolution in float32, forwards or backwards, whatever the quantisers compute in."""
    torch.manual_seed(0)
    layer = cls(6, 8, 3, padding=1, activation_bits=bits)
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    with Products() as products:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(x)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert products.dtypes == {torch.bfloat16}
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
