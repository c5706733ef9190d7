"""Binary layers whose weight has no float copy: a low-bit parameter in place of the latent weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import impl
from impl.optim import DiodeMix
from impl.parameters import BinaryConvParameter, BinaryLinearParameter

CASES = {
    "linear": (lambda: impl.BinaryLinear(37, 12, activation_bits=8), BinaryLinearParameter, (5, 37)),
    "conv": (
        lambda: impl.BinaryConv2d(6, 4, 3, padding=1, activation_bits=8),
        BinaryConvParameter,
        (2, 6, 5, 7),
    ),
}


def made(case: str, *, packed: bool) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, parameter, shape = CASES[case]
    layer = make()
    layer.weight = parameter(layer.weight.detach(), packed=packed)
    return layer, torch.randn(shape)


@pytest.mark.parametrize("packed", [True, False], ids=["bits", "bytes"])
@pytest.mark.parametrize("case", CASES)
def test_computes_and_packs_as_the_latent_layer_does(case: str, packed: bool) -> None:
    torch.manual_seed(0)
    latent = CASES[case][0]()
    layer, x = made(case, packed=packed)
    layer.bias = latent.bias
    expected = latent(x)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.pack()(x), latent.pack()(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.codes, latent.codes)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_product(case: str) -> None:
    """Not that of an estimator: magnitudes that are all alike lie on one side of any window."""
    layer, x = made(case, packed=True)
    float_twin, _ = made(case, packed=True)
    decoded = nn.Parameter(layer.weight.dequantize())
    layer(x).square().sum().backward()
    product = torch.func.functional_call(float_twin, {"weight": decoded}, (x,))
    product.square().sum().backward()
    assert decoded.grad is not None
    torch.testing.assert_close(layer.weight.grad, decoded.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_model_trains_without_a_float_copy_and_packs(case: str) -> None:
    layer, _ = made(case, packed=True)
    before = layer.weight.signs().clone()
    optimizer = DiodeMix(layer.parameters(), betas=(0.9, 0.9))
    generator = torch.Generator().manual_seed(1)
    shape = CASES[case][2]
    for _ in range(60):
        optimizer.zero_grad()
        layer(torch.randn(shape, generator=generator) + 1).sum().backward()
        optimizer.step()
    after = layer.weight.signs().clone()
    assert (after != before).any()
    assert (after == -1).float().mean() > 0.9, "lower sums come from weights of -1"
    assert impl.pack(layer).is_packed
    assert torch.equal(layer.W_binary.flatten(1).sign(), _matrix(layer, after))


def _matrix(layer: nn.Module, signs: torch.Tensor) -> torch.Tensor:
    """The signs in the order that ``W_binary`` shows them: that of the weight."""
    return signs.float().reshape(layer.W_binary.shape).flatten(1)
