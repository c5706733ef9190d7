"""Gradients of bitorch_engine's binary convolutions: straight-through, as their docstrings say."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from binary_cases import calibrated, convolutions, sign
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.compat.bitorch_engine import BinaryConv2dBase, BinaryConv2dCPP, BinaryConv2dCutlass
from impl.optim import DiodeMix


def surrogate(layer, x, weight, bias_a, scale_a):
    """The same values, with the straight-through gradients spelled out for autograd."""
    geometry = layer.geometry
    scale_w = layer.scale_w.detach().reshape(-1, 1, 1, 1)
    x = x + bias_a.view(-1, 1, 1)
    window = (x.abs() <= scale_a.abs()).float().detach()
    moving_scale = (scale_a - scale_a.detach()) / math.sqrt(max(1, x.numel()))
    activations = (scale_a * sign(x)).detach() + window * (x - x.detach() + sign(x) * moving_scale)
    border = geometry.padding_value * float(scale_a.detach())
    padded = F.pad(activations, geometry.torch_padding(), value=border)
    through = (weight - weight.detach()).div(scale_w)
    return F.conv2d(
        padded,
        scale_w * (sign(weight).detach() + through),
        None,
        geometry.stride,
        0,
        geometry.dilation,
        geometry.groups,
    )


@settings(max_examples=30, deadline=None)
@given(shape=convolutions(), scale=st.sampled_from(["tensor", "row"]), packed=st.booleans())
def test_gradients_are_those_of_the_surrogate(shape, scale, packed):
    """D5: the original's backward is that of another function than its forward."""
    layer = calibrated(BinaryConv2dCutlass, *shape["arguments"], **shape["options"], scale=scale)
    batch, *size = shape["image"]
    x = torch.randn(batch, layer.in_channels, *size, requires_grad=True)
    weight = layer.weight.detach().clone().requires_grad_()
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    y = layer(x)
    towards = torch.randn_like(y)
    y.backward(towards)

    x2, bias_a, scale_a = (t.detach().clone().requires_grad_() for t in (x, layer.bias_a, layer.scale_a))
    surrogate(layer, x2, weight, bias_a, scale_a).backward(towards)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.bias_a.grad, bias_a.grad)
    torch.testing.assert_close(layer.scale_a.grad, scale_a.grad, rtol=1e-4, atol=1e-4)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, towards.sum((0, 2, 3)))
    if not packed:
        torch.testing.assert_close(layer.weight.grad, weight.grad)


@pytest.mark.parametrize("cls", [BinaryConv2dBase, BinaryConv2dCPP])
def test_plain_layers_train(cls):
    """The original has no backward pass on the CPU."""
    layer = cls(2, 1, (1, 2), padding=(0, 1))
    x = torch.tensor([[[[0.5, -1.5]], [[-1.0, 0.25]]]], requires_grad=True)
    layer(x).backward(torch.tensor([[[[1.0, 10.0, 100.0]]]]))
    left, right = sign(layer.weight.detach())[0, :, 0].T  # taps
    expected_x = torch.stack([left * 10 + right, left * 100 + right * 10])  # [position, channel]
    assert torch.equal(x.grad[0, :, 0].T, expected_x * torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    signs = sign(x.detach())[0, :, 0]
    expected_left = -1 * 1 + signs[:, 0] * 10 + signs[:, 1] * 100
    expected_right = signs[:, 0] * 1 + signs[:, 1] * 10 - 1 * 100
    assert torch.equal(layer.weight.grad[0, :, 0], torch.stack([expected_left, expected_right], 1))


def test_zero_is_positive_in_the_backward_pass():
    """D14: the original's backward takes sign(0) = 0, against +1 in its forward pass."""
    layer = calibrated(BinaryConv2dCutlass, 3, 1, 1)
    with torch.no_grad():
        layer.bias_a.zero_()
        layer.scale_w.fill_(2)
        layer.weight.copy_(torch.tensor([0.0, -0.0, -1.0]).view(1, 3, 1, 1))
    x = torch.zeros(1, 3, 1, 1, requires_grad=True)
    layer(x).backward(torch.ones(1, 1, 1, 1))
    assert x.grad.flatten().tolist() == [2, 2, -2]
    assert layer.weight.grad.flatten().tolist() == [1.25, 1.25, 1.25]
    assert layer.scale_a.grad.item() == pytest.approx(2 / math.sqrt(3))


@pytest.mark.parametrize("prepared", [False, True])
def test_convolutions_learn(prepared):
    """D1: on stock torch, with a float weight and with one byte a weight."""
    torch.manual_seed(0)
    target = sign(torch.randn(4, 6, 3, 3))
    x = torch.randn(16, 6, 6, 6)
    wanted = 10 * F.conv2d(sign(x), target)  # out of reach of the scale, so that only signs matter
    layer = BinaryConv2dCutlass(6, 4, 3)
    layer(x)
    if prepared:
        layer.prepare_params()
        with torch.no_grad():
            layer.scale_w.fill_(1)
        optimizer = DiodeMix([layer.weight], lr=1e-2, betas=(0.9, 0.99), threshold=0.0)
    else:
        optimizer = torch.optim.Adam([layer.weight], lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        F.mse_loss(layer(x), wanted).backward()
        optimizer.step()
    agreement = (sign(layer.weight.detach()) == target).float().mean().item()
    assert agreement > 0.95
