"""Gradients of bitorch_engine's binary linear layers: straight-through, as their docstrings say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from binary_cases import PLAIN, SCALED, calibrated, sign

from impl.compat.bitorch_engine import (
    BinaryLinearCuda,
)


def surrogate(x, weight, bias_a, scale_a, scale_w):
    """The same values, with the straight-through gradients spelled out for autograd."""
    x = x + bias_a
    window = (x.abs() <= scale_a.abs()).float().detach()
    moving_scale = (scale_a - scale_a.detach()) / math.sqrt(x.numel())
    activations = (scale_a * sign(x)).detach() + window * (x - x.detach() + sign(x) * moving_scale)
    through = weight - weight.detach()
    return F.linear(activations, (scale_w.unsqueeze(-1) * sign(weight)).detach() + through)


@pytest.mark.parametrize("cls", SCALED)
@pytest.mark.parametrize("scale", ["tensor", "row"])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_those_of_the_surrogate(cls, scale, packed):
    layer = calibrated(cls, 21, 6, scale=scale, bias=True)
    x = torch.randn(2, 5, 21, requires_grad=True)
    towards = torch.randn(2, 5, 6)
    weight = layer.weight.detach().clone().requires_grad_()
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    layer(x).backward(towards)

    x2, bias_a, scale_a = (t.detach().clone().requires_grad_() for t in (x, layer.bias_a, layer.scale_a))
    surrogate(x2, weight, bias_a, scale_a, layer.scale_w.detach()).backward(towards)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.bias_a.grad, bias_a.grad)
    torch.testing.assert_close(layer.scale_a.grad, scale_a.grad)
    torch.testing.assert_close(layer.bias.grad, towards.sum((0, 1)))
    if not packed:
        torch.testing.assert_close(layer.weight.grad, weight.grad)
    assert 0 < (x.grad == 0).float().mean() < 1  # some inputs lie outside the window


def test_the_scale_learns_by_itself():
    """Its gradient is there where neither the input nor the shift takes one."""
    layer, twin = (calibrated(BinaryLinearCuda, 21, 6) for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    layer.bias_a.requires_grad_(False)
    x = torch.randn(5, 21)
    for one in (layer, twin):
        one(x).square().sum().backward()
    assert layer.scale_a.grad != 0
    torch.testing.assert_close(layer.scale_a.grad, twin.scale_a.grad)


@pytest.mark.parametrize("cls", PLAIN)
def test_plain_layers_train(cls):
    """The original has no backward pass on the CPU."""
    layer = cls(4, 2)
    x = torch.tensor([[0.5, -1.0, 1.5, -0.25]], requires_grad=True)
    towards = torch.tensor([[1.0, -3.0]])
    layer(x).backward(towards)
    assert torch.equal(layer.weight.grad, towards.T @ sign(x.detach()))
    assert torch.equal(x.grad, (towards @ sign(layer.weight.detach())) * torch.tensor([[1.0, 1.0, 0.0, 1.0]]))


@pytest.mark.parametrize("cls", SCALED)
def test_zero_is_positive_in_the_backward_pass(cls):
    """D14: the original's backward takes sign(0) = 0, against +1 in its forward pass."""
    layer = calibrated(cls, 3, 1)
    with torch.no_grad():
        layer.bias_a.zero_()
        layer.scale_w.fill_(2)
        layer.weight.copy_(torch.tensor([[0.0, -0.0, -1.0]]))
    x = torch.zeros(1, 3, requires_grad=True)
    layer(x).backward(torch.ones(1, 1))
    assert x.grad.tolist() == [[2, 2, -2]]
    assert layer.weight.grad.tolist() == [[1.25, 1.25, 1.25]]
    assert layer.scale_a.grad.item() == pytest.approx(2 / math.sqrt(3))


@pytest.mark.parametrize("cls", SCALED)
def test_weight_gradients_are_not_quantised(cls):
    """D8: the original rounds them to 8 bits by their largest value, and raises where all are negative."""
    layer = calibrated(cls, 6, 2)
    with torch.no_grad():
        layer.bias_a.zero_()
    x = torch.rand(3, 6) + 1
    layer(x).backward(torch.tensor([[-1e-3, -7.0]]).expand(3, 2))
    by_hand = torch.tensor([[-3e-3], [-21.0]]) * 1.25
    torch.testing.assert_close(layer.weight.grad, by_hand.expand(2, 6))


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_latent_weights_learn(cls):
    torch.manual_seed(0)
    target = sign(torch.randn(4, 24))
    x = torch.randn(256, 24)
    wanted = 10 * sign(x) @ target.T  # out of reach of the scale, so that only signs matter
    layer = cls(24, 4)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(layer(x), wanted).backward()
        optimizer.step()
    agreement = (sign(layer.weight.detach()) == target).float().mean().item()
    assert agreement > 0.95
