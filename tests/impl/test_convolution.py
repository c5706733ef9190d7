"""Borders that torch's convolution lacks, and gradients towards its input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from impl.convolution import convolve, input_gradient, pad
from impl.geometry import ConvGeometry

GEOMETRIES = [
    ConvGeometry((3,), (2,), ((1, 1),), (1,)),
    ConvGeometry((2, 3), (1, 2), ((0, 1), (2, 2)), (1, 1), 2),
    ConvGeometry((2, 3), (3, 1), ((1, 1), (2, 2)), (2, 1), 2, 1.0),
    ConvGeometry((2, 1, 3), (1, 1, 2), ((1, 0), (0, 0), (1, 1)), (1, 1, 2), 1, -1.0),
]


def tensors(geometry, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *[8, 7, 6][: geometry.dims], dtype=dtype)
    return x, torch.randn(6, 4 // geometry.groups, *geometry.kernel, dtype=dtype)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_border_and_convolution_together_are_that_of_the_padded_image(geometry):
    x, weight = tensors(geometry)
    bias = torch.randn(6, dtype=torch.float64)
    whole = F.pad(x, geometry.torch_padding(), value=geometry.padding_value)
    plain = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[geometry.dims]
    expected = plain(whole, weight, bias, geometry.stride, 0, geometry.dilation, geometry.groups)
    torch.testing.assert_close(convolve(pad(x, geometry), weight, geometry, bias), expected)
    # torch adds equal borders of zeros itself: no copy is made for them.
    by_torch = geometry.padding_value == 0 and all(a == b for a, b in geometry.padding)
    assert (pad(x, geometry) is x) == by_torch


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("batch", [0, 2])
def test_input_gradient_is_that_of_autograd(geometry, batch):
    x, weight = tensors(geometry)
    x = x[:batch].requires_grad_()
    y = convolve(pad(x, geometry), weight, geometry)
    grad = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(input_gradient(grad, weight, geometry, list(x.shape)), expected)


def test_borders_keep_memory_format_and_dtype():
    x = torch.ones(2, 3, 4, 5, dtype=torch.int8).contiguous(memory_format=torch.channels_last)
    padded = pad(x, GEOMETRIES[2])
    assert padded.dtype == torch.int8
    assert padded.is_contiguous(memory_format=torch.channels_last)
    assert pad(x, GEOMETRIES[2], value=0)[0, 0, 0].tolist() == [0] * 9
