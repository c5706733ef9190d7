"""One scale a sample, and borders quantised with it."""

from __future__ import annotations

import pytest
import torch

from impl.convolution import pad
from impl.geometry import ConvGeometry
from impl.quantizers import (
    fake_quantize_activations,
    fake_quantize_samples,
    quantize_activations,
    quantize_samples,
)

UNPADDED = ConvGeometry((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))


def padded(value, sides=((1, 1), (2, 0))):
    return ConvGeometry((1, 1), (1, 1), sides, (1, 1), 1, value)


def images(layout=torch.contiguous_format, dtype=torch.float32):
    x = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    x *= torch.tensor([0.1, 1.0, 9.0]).view(3, 1, 1, 1)
    return x.to(dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_is_one_row(bits, layout):
    x = images(layout)
    q, scale = quantize_samples(x, bits, UNPADDED)
    rows, row_scale = quantize_activations(x.flatten(1), bits)
    assert torch.equal(q.flatten(1), rows)
    assert torch.equal(scale.flatten(), row_scale.flatten())
    assert scale.shape == (3, 1, 1, 1)
    assert q.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_integer_borders_are_values_of_the_sample(bits, value):
    x = images()
    q, scale = quantize_samples(x, bits, padded(value))
    whole = torch.nn.functional.pad(x, (2, 0, 1, 1), value=value)
    rows, row_scale = quantize_activations(whole.flatten(1), bits)
    assert torch.equal(q.flatten(1), rows)
    assert torch.equal(scale.flatten(), row_scale.flatten())
    assert scale[0] * {8: 127, 16: 32512}[bits] == pytest.approx(max(float(x[0].abs().max()), abs(value)))


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_borders_of_signs_and_ternary_values_do_not_enter_the_scale(bits, value):
    x = images()
    q, scale = quantize_samples(x, bits, padded(value))
    inner, inner_scale = quantize_samples(x, bits, UNPADDED)
    assert torch.equal(scale, inner_scale)
    assert torch.equal(q[:, :, 1:-1, 2:], inner)
    assert (q[:, :, 0] == value).all()
    assert (q[:, :, :, :2] == value).all()


def test_equal_borders_of_zeros_are_left_to_torch():
    x = images()
    assert quantize_samples(x, 8, padded(0.0, ((1, 1), (2, 2))))[0].shape == x.shape
    assert fake_quantize_samples(x, None, padded(0.0, ((1, 1), (2, 2)))) is x


@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quantisation_gives_the_decoded_integers(bits, value, dtype):
    x = images(dtype=dtype)
    geometry = padded(value)
    found = fake_quantize_samples(x, bits, geometry)
    assert found.dtype == dtype
    if bits is None:
        expected = pad(x, geometry)
    else:
        q, scale = quantize_samples(x, bits, geometry)
        expected = (q * scale).to(dtype)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_gradients_pass_as_through_quantised_rows(bits):
    x = images().requires_grad_()
    upstream = torch.randn(3, 4, 7, 8)
    fake_quantize_samples(x, bits, padded(1.0)).backward(upstream)
    inner = upstream[:, :, 1:-1, 2:]
    if bits is None:
        assert torch.equal(x.grad, inner)
        return
    leaf = x.detach().flatten(1).requires_grad_()
    fake_quantize_activations(leaf, bits).backward(inner.flatten(1))
    assert torch.equal(x.grad.flatten(1), leaf.grad)
    assert bool((x.grad == 0).any()) == (bits in (1, 2))


def test_empty_batches():
    q, scale = quantize_samples(torch.empty(0, 2, 3, 3), 8, padded(1.0))
    assert (q.shape, scale.shape) == ((0, 2, 5, 5), (0, 1, 1, 1))
