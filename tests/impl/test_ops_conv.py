"""torch.ops.bitimpl's convolutions: schema, fake, autograd and errors."""

from __future__ import annotations

import pytest
import torch

from impl import functional, native
from impl.convolution import convolve, pad
from impl.geometry import ConvGeometry, from_matrix
from impl.ops.conv import place_arguments, weight_arguments
from impl.packing import PackedWeight
from impl.quantizers import fake_quantize_samples

LINE = ConvGeometry((3,), (2,), ((1, 0),), (2,), 2, -1.0)
IMAGE = ConvGeometry((3, 2), (1, 2), ((1, 1), (0, 1)), (1, 2), 2, 1.0)
VOLUME = ConvGeometry((2, 1, 3), (1, 2, 1), ((1, 1), (0, 0), (1, 1)), (1, 1, 1), 1, 0.0)
SIZES = {1: (9,), 2: (7, 6), 3: (4, 5, 6)}


def weight_of(format, geometry, components=1, channels=4, rows=6):
    generator = torch.Generator().manual_seed(0)
    cols = geometry.taps * channels // geometry.groups
    low = 0 if format == "binary" else -1
    codes = torch.randint(low, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    codes = codes * 2 - 1 if format == "binary" else codes
    scales = torch.rand(components, rows, 1, generator=generator) + 0.1
    return PackedWeight.from_codes(codes, scales, format)


def input_of(geometry, batch=2, **options):
    torch.manual_seed(0)
    return torch.randn(batch, 4, *SIZES[geometry.dims], **options)


def arguments(x, weight, geometry, bias, bits):
    return (
        x,
        weight.codes,
        weight.scales,
        bias,
        *weight_arguments(weight),
        bits or 0,
        *place_arguments(geometry),
        geometry.padding_value,
    )


def dense(weight, geometry):
    return from_matrix((weight.unpack() * weight.scales).sum(0), geometry)


CASES = [
    pytest.param("binary_conv", weight_of("binary", LINE), LINE, 1, id="line-sign"),
    pytest.param("binary_conv", weight_of("binary", IMAGE), IMAGE, 1, id="image-sign"),
    pytest.param("binary_conv", weight_of("binary", VOLUME), VOLUME, 16, id="volume-int16"),
    pytest.param("ternary_conv", weight_of("base3", IMAGE, 2), IMAGE, 8, id="image-int8"),
    pytest.param("ternary_conv", weight_of("two_bit", IMAGE), IMAGE, None, id="image-float"),
    pytest.param("ternary_conv", weight_of("two_bit", IMAGE), IMAGE, 1, id="image-two-bit-sign"),
    pytest.param("ternary_conv", weight_of("base3", VOLUME, 2), VOLUME, 2, id="volume-ternary"),
]


@pytest.mark.parametrize(("name", "weight", "geometry", "bits"), [CASES[0], CASES[3], CASES[6]])
def test_opcheck(name, weight, geometry, bits):
    x = input_of(geometry, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    operator = getattr(torch.ops.bitimpl, name).default
    torch.library.opcheck(operator, arguments(x, weight, geometry, bias, bits))


def test_opcheck_of_the_gradient():
    weight = weight_of("binary", IMAGE)
    size = [2, 4, *SIZES[2]]
    grad = torch.randn(2, 6, *IMAGE.output_size(SIZES[2]), requires_grad=True)
    numbers = (*weight_arguments(weight), *place_arguments(IMAGE), size)
    operator = torch.ops.bitimpl.conv_input_grad.default
    torch.library.opcheck(operator, (grad, weight.codes, weight.scales, *numbers))


@pytest.mark.parametrize(("name", "weight", "geometry", "bits"), CASES)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_fake_agrees_with_the_operator(name, weight, geometry, bits, batch, last):
    operator = getattr(torch.ops.bitimpl, name)
    x = input_of(geometry, batch, dtype=torch.bfloat16)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    y = operator(*arguments(x, weight, geometry, None, bits))
    meta = PackedWeight(
        weight.format, weight.components, weight.rows, weight.cols, None,
        weight.codes.to("meta"), weight.scales.to("meta"),
    )  # fmt: skip
    fake = operator(*arguments(x.to("meta"), meta, geometry, None, bits))
    assert (fake.shape, fake.dtype, fake.stride()) == (y.shape, y.dtype, y.stride())
    if batch and geometry.dims > 1:
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        assert y.is_contiguous(memory_format=formats[geometry.dims]) == last
    assert y.is_contiguous() or last


@pytest.mark.parametrize(("name", "weight", "geometry", "bits"), CASES)
def test_gradients_are_those_of_training_form(name, weight, geometry, bits):
    x = input_of(geometry, requires_grad=True)
    bias = torch.randn(6, requires_grad=True)
    y = getattr(torch.ops.bitimpl, name)(*arguments(x, weight, geometry, bias, bits))
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, bias), upstream)
    z = convolve(fake_quantize_samples(x, bits, geometry), dense(weight, geometry), geometry, bias)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-4)
    for one, other in zip(found, torch.autograd.grad(z, (x, bias), upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if bits in (1, 2):
        assert (found[0] == 0).any()


@pytest.mark.parametrize(("name", "weight", "geometry", "bits"), CASES)
def test_second_derivative(name, weight, geometry, bits):
    x = input_of(geometry, requires_grad=True)
    y = getattr(torch.ops.bitimpl, name)(*arguments(x, weight, geometry, None, None))
    upstream = torch.randn_like(y).requires_grad_()
    (grad,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), upstream)
    # The gradient is linear in upstream, and zeros lie around what comes back, whatever the border held.
    plain = ConvGeometry(
        geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    )
    expected = convolve(pad(2 * grad.detach(), plain), dense(weight, geometry), plain)
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-3)


def test_gradients_of_a_bias_have_its_dtype():
    weight = weight_of("binary", IMAGE)
    bias = torch.randn(6, dtype=torch.float16, requires_grad=True)
    functional.binary_conv(input_of(IMAGE), weight, IMAGE, bias, 8).sum().backward()
    assert bias.grad.dtype == torch.float16
    rows, cols = IMAGE.output_size(SIZES[2])
    assert bias.grad.tolist() == [2.0 * rows * cols] * 6


def test_wrong_arguments_are_refused():
    binary, ternary = weight_of("binary", IMAGE), weight_of("base3", IMAGE)
    x = input_of(IMAGE)
    with pytest.raises(ValueError, match="binary_conv does not take base3"):
        torch.ops.bitimpl.binary_conv(*arguments(x, ternary, IMAGE, None, 8))
    with pytest.raises(ValueError, match="activation_bits=4, ternary_conv takes"):
        torch.ops.bitimpl.ternary_conv(*arguments(x, ternary, IMAGE, None, 4))
    good = arguments(x, binary, IMAGE, None, 8)
    with pytest.raises(ValueError, match="format=9 is unknown"):
        torch.ops.bitimpl.binary_conv(*good[:7], 9, *good[8:])
    with pytest.raises(ValueError, match="two numbers a dimension"):
        torch.ops.bitimpl.binary_conv(*good[:11], [1, 1], *good[12:])
    with pytest.raises(ValueError, match="padding_value must be"):
        torch.ops.bitimpl.binary_conv(*good[:-1], 0.5)
    with pytest.raises(ValueError, match="bytes in one dimension"):
        torch.ops.bitimpl.ternary_conv(x, ternary.codes[:-1], *arguments(x, ternary, IMAGE, None, 8)[2:])
    with pytest.raises(TypeError, match="int64"):
        torch.ops.bitimpl.binary_conv(*arguments(x.long(), binary, IMAGE, None, 8))
    with pytest.raises(ValueError, match="in_channels = 4"):
        torch.ops.bitimpl.binary_conv(*arguments(x[:, :2], binary, IMAGE, None, 8))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_bias_that_does_not_fit_is_refused_by_every_backend(backend):
    weight = weight_of("binary", IMAGE)
    with native.backend(backend), pytest.raises(ValueError, match=r"bias must .*\[6\]"):
        torch.ops.bitimpl.binary_conv(*arguments(input_of(IMAGE), weight, IMAGE, torch.zeros(3), 8))
