"""Binary convolutions of bitorch_engine: their function, and the defects of the original."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from binary_cases import calibrated, convolutions, sign
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.compat.bitorch_engine import BinaryConv2dBase, BinaryConv2dCPP, BinaryConv2dCutlass

ALL = [BinaryConv2dBase, BinaryConv2dCPP, BinaryConv2dCutlass]


def correlate(image, weight, stride, dilation, groups):
    """Position by position of the kernel: float64 [batch, out, height, width] of an image padded already."""
    out_channels, channels, *kernel = weight.shape
    size = [
        (length - reach * (taps - 1) - 1) // step + 1
        for length, taps, step, reach in zip(image.shape[2:], kernel, stride, dilation, strict=True)
    ]
    image, weight = image.double(), weight.double()
    y = torch.zeros(image.shape[0], out_channels, *size, dtype=torch.float64)
    per_group = out_channels // groups
    for out in range(out_channels):
        group = out // per_group
        own = image[:, group * channels : (group + 1) * channels]
        for row in range(kernel[0]):
            for column in range(kernel[1]):
                top, left = row * dilation[0], column * dilation[1]
                seen = own[
                    :,
                    :,
                    top : top + (size[0] - 1) * stride[0] + 1 : stride[0],
                    left : left + (size[1] - 1) * stride[1] + 1 : stride[1],
                ]
                y[:, out] += (seen * weight[out, :, row, column, None, None]).sum(1)
    return y


def expected(layer, weight, x):
    """The documented arithmetic, from the float ``weight``, in the order of the docstring."""
    geometry = layer.geometry
    scaled = isinstance(layer, BinaryConv2dCutlass)
    x = x.float()
    shifted = x + layer.bias_a.detach().view(-1, 1, 1) if scaled else x
    padded = F.pad(sign(shifted), geometry.torch_padding(), value=geometry.padding_value)
    y = correlate(padded, sign(weight), geometry.stride, geometry.dilation, geometry.groups).float()
    if scaled:
        y = y * layer.scale_a.detach()
        y = y * layer.scale_w.detach().reshape(-1, 1, 1)
    return y if layer.bias is None else y + layer.bias.detach().view(-1, 1, 1)


@pytest.mark.parametrize(
    ("function", "leading", "defaults"),
    [
        (
            cls,
            [
                "in_channels",
                "out_channels",
                "kernel_size",
                "stride",
                "padding",
                "dilation",
                "device",
                "dtype",
                "symmetric",
            ],
            [1, 0, 1, None, torch.float, True],
        )
        for cls in ALL
    ]
    + [
        (BinaryConv2dBase.generate_quantized_weight, ["self", "qweight_only"], [False]),
        (BinaryConv2dBase.set_weight_data, ["self", "x"], []),
        (BinaryConv2dBase.set_quantized_weight_data, ["self", "x"], []),
        (BinaryConv2dBase.prepare_params, ["self"], []),
        (BinaryConv2dBase.set_bits_binary_word, ["self", "num_bit"], []),
        (BinaryConv2dCutlass.set_activation, ["self", "x"], []),
        (BinaryConv2dCutlass._check_forward, ["self", "x"], []),
    ],
)
def test_signatures_of_the_original(function, leading, defaults):
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert [p.name for p in parameters] == leading
    assert [p.default for p in parameters if p.default is not p.empty] == defaults


def test_attributes_of_the_original():
    layer = BinaryConv2dCutlass(8, 4, 3, 2, 1)
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (8, 4, 3)
    assert (layer.stride, layer.padding, layer.dilation) == (2, 1, 1)
    assert (layer.bits_binary_word, layer.symmetric, layer.qweight) == (8, True, None)
    assert layer.weight.shape == (4, 8, 3, 3)
    assert layer.bias_a.tolist() == [0] * 8
    assert (layer.scale_a.item(), layer.scale_w.item()) == (0, 1)
    assert layer.scale_a.requires_grad
    assert isinstance(layer.scale_w, nn.Parameter)
    assert not layer.scale_w.requires_grad
    assert (layer.device, layer.dtype) == (torch.device("cpu"), torch.float32)
    layer.set_bits_binary_word(32)
    assert layer.bits_binary_word == 32
    with pytest.raises(ValueError, match="8, 16, 32, 64 bits, got 12"):
        layer.set_bits_binary_word(12)
    assert (BinaryConv2dCPP(1, 1, 1).padding_value, layer.padding_value) == (-1, 0)


@pytest.mark.parametrize("cls", ALL)
def test_weights_are_drawn(cls):
    """D13: the original leaves whatever was in memory, and the batch of a run decides what it is."""
    junk = [torch.full((16, 32, 3, 3), 1e6) for _ in range(4)]
    del junk
    layer = cls(32, 16, 3, bias=True)
    bound = (32 * 9) ** -0.5
    for values in (layer.weight.detach(), layer.bias.detach()):
        assert float(values.abs().max()) <= bound
        assert float(values.std()) > bound / 4
    assert float(layer.weight.detach().mean().abs()) < bound / 10


# ---- forward ------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    cls=st.sampled_from(ALL),
    shape=convolutions(),
    form=st.sampled_from(["train", "eval", "packed"]),
    layout=st.sampled_from(["dense", "channels_last", "strided", "unbatched"]),
    scale=st.sampled_from(["tensor", "row"]),
)
def test_any_shape_and_stride(cls, shape, form, layout, scale):
    """D4: the original is wrong for rectangular images and for dilation, and aborts where weights are
    packed. D5: its CUTLASS layer uses an eighth of the channels, in another layout, and does not turn
    counts of differing signs into sums."""
    options = {"scale": scale} if cls is BinaryConv2dCutlass else {}
    layer = calibrated(cls, *shape["arguments"], **shape["options"], **options)
    weight = layer.weight.detach().clone()
    batch, *size = shape["image"]
    x = torch.randn(batch, layer.in_channels, *size)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.randn(batch, layer.in_channels, size[0], 2 * size[1] + 1)[..., 1::2]
    if form != "train":
        layer.eval()
    if form == "packed":
        layer.generate_quantized_weight(qweight_only=True)
        assert layer.weight is None
    if layout == "unbatched":
        for image in x:
            assert torch.equal(layer(image), expected(layer, weight, image[None])[0])
    else:
        assert torch.equal(layer(x), expected(layer, weight, x))


def test_values_by_hand():
    """D5: 2 x 2 signs against one kernel, with each border."""
    x = torch.tensor([[[[1.0, -1.0], [-0.0, 5.0]]]])
    weight = torch.tensor([[[[1.0, -1.0], [1.0, 1.0]]]])
    for value in (-1, 0, 1):
        layer = BinaryConv2dCPP(1, 1, 2, padding=1, padding_value=value)
        layer.set_weight_data(weight)
        y = layer(x)[0, 0]
        assert y.shape == (3, 3)
        assert y[1, 1] == 1 - (-1) + 1 + 1
        # The first window sees the border in three places, under +1, -1 and +1, and x[0, 0] under +1.
        assert y[0, 0] == value * (1 - 1 + 1) + 1


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3, (4, 1)])
def test_named_paddings_are_those_of_torch(cls, padding, kernel):
    layer = calibrated(cls, 3, 2, kernel, padding=padding, dilation=2, padding_value=0.0)
    reference = nn.Conv2d(3, 2, kernel, padding=padding, dilation=2, bias=False)
    x = torch.randn(2, 3, 9, 8)
    weight = layer.weight.detach().clone()
    assert layer(x).shape == reference(x).shape
    with torch.no_grad():
        reference.weight.copy_(sign(weight))
        if cls is not BinaryConv2dCutlass:
            assert torch.equal(layer(x), reference(sign(x)))
    assert torch.equal(layer(x), expected(layer, weight, x))


@pytest.mark.parametrize("packed", [False, True])
def test_a_nan_stays_in_its_sample(packed):
    layer = BinaryConv2dCPP(3, 4, 1, padding=1)
    x = torch.randn(3, 3, 5, 5)
    clean = layer(x)
    x[1, 2, 4, 4] = torch.nan
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    y = layer(x)
    assert torch.isnan(y[1]).all()
    assert torch.equal(y[::2], clean[::2])


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
def test_dtypes_round_once(cls, dtype, packed):
    """Every sum is 999, which bfloat16 holds as 1000: the bias shows that rounding comes last."""
    layer = cls(111, 2, 3, bias=True)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(-996)
        if cls is BinaryConv2dCutlass:
            layer.scale_a.fill_(1)
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    x = torch.ones(1, 111, 3, 3, dtype=dtype)
    assert layer(x).dtype == dtype
    assert layer(x).flatten().tolist() == [3, 3]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.float())
    assert y.dtype == torch.bfloat16
    assert y.flatten().tolist() == [3, 3]


@pytest.mark.parametrize("cls", ALL)
def test_what_cannot_be_served_raises(cls):
    """D10: the original ends the process for dtypes that it does not know."""
    layer = cls(4, 6, 3)
    for x, error, message in (
        (torch.randn(1, 4, 5, 5, dtype=torch.float64), TypeError, r"got torch\.float64"),
        (torch.ones(1, 4, 5, 5, dtype=torch.uint8), TypeError, r"got torch\.uint8"),
        (torch.randn(1, 5, 5, 5), ValueError, r"in_channels = 4, .* got shape \[1, 5, 5, 5\]"),
        (torch.randn(5, 5), ValueError, r"got shape \[5, 5\]"),
        (torch.randn(1, 4, 0, 5), ValueError, r"got shape \[1, 4, 0, 5\]"),
        (torch.randn(1, 4, 2, 5), ValueError, "2 long in spatial dimension 0, the dilated kernel 3"),
    ):
        with pytest.raises(error, match=message):
            layer(x)
    for arguments, options, error, message in (
        ((4, 6, 3), {"dtype": torch.float64}, TypeError, r"got torch\.float64"),
        ((4, 0, 3), {}, ValueError, "out_channels must be at least 1, got 0"),
        ((4, 6, 0), {}, ValueError, "kernel_size must be at least 1, got 0"),
        ((4, 6, (3, 3, 3)), {}, ValueError, "kernel_size must be an int or 2"),
        ((4, 6, 3), {"padding": -1}, ValueError, "padding must be at least 0, got -1"),
        ((4, 6, 3), {"padding_value": 0.5}, ValueError, r"padding_value must be -1, 0 or \+1, got 0.5"),
        ((4, 6, 3), {"groups": 3}, ValueError, "in_channels = 4 must be a multiple of groups = 3"),
        ((4, 6, 3), {"groups": 4}, ValueError, "out_channels = 6 must be a multiple of groups = 4"),
    ):
        with pytest.raises(error, match=message):
            cls(*arguments, **options)
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        layer.generate_quantized_weight()


# ---- scales of the activations ------------------------------------------------------------------


@pytest.mark.parametrize(("symmetric", "factor"), [(True, 2), (False, 4)])
def test_the_first_training_batch_sets_the_scale(symmetric, factor):
    layer = BinaryConv2dCutlass(5, 3, 2, symmetric=symmetric)
    x = torch.randn(4, 5, 6, 6)
    y = layer(x)
    assert layer.scale_a.item() == pytest.approx(factor * x.abs().mean().item())
    assert torch.equal(y, expected(layer, layer.weight.detach(), x))
    before = layer.scale_a.item()
    layer(10 * x)
    assert layer.scale_a.item() == before
    layer.reset_parameters()
    assert layer.scale_a.item() == 0


def test_eval_stores_nothing():
    """In the original the first batch sets the scale in eval mode as well."""
    layer = BinaryConv2dCutlass(5, 3, 2).eval()
    x = torch.randn(4, 5, 6, 6)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    y = layer(x)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    own = 2 * x.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(y, F.conv2d(sign(x), sign(layer.weight)) * own)
    assert torch.equal(layer(x[:1]), y[:1])


# ---- other layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("bias", [True, False])
def test_conversion_draws_nothing(nothing_drawn, cls, bias):
    """A bias that the convolution does not have was random, everything else was drawn for nothing."""
    conv, x = nn.Conv2d(4, 6, 3, bias=bias), torch.randn(2, 4, 7, 7)
    with nothing_drawn():
        layer = cls.from_conv(conv, bias=True)
    assert torch.equal(layer.bias, conv.bias if bias else torch.zeros(6))
    weight = conv.weight.detach()
    if cls is BinaryConv2dCutlass:
        assert (layer.scale_a.item(), layer.bias_a.abs().sum().item()) == (0, 0)
        weight = weight - weight.mean()
    y = layer(x)
    assert torch.equal(y, expected(layer, weight, x))


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("padding", ["same", (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_conv_keeps_weight_bias_and_shape(cls, padding, dtype):
    """D17: the original's converters make fresh random layers without bias."""
    conv = nn.Conv2d(4, 6, (2, 3), padding=padding, dilation=(2, 1), groups=2, dtype=dtype).eval()
    layer = cls.from_conv(conv, padding_value=0.0)
    assert torch.equal(layer.bias, conv.bias)
    assert not layer.training
    assert layer.dtype == dtype
    x = torch.randn(2, 4, 7, 7)
    weight = conv.weight.detach().float()
    if cls is BinaryConv2dCutlass:
        torch.testing.assert_close(layer.scale_w.float(), weight.abs().mean(), rtol=1e-2, atol=1e-3)
        layer.train()(x)
        weight = weight - weight.mean()
    else:
        assert torch.equal(layer.weight, conv.weight)
        assert layer.weight is not conv.weight
    assert torch.equal(layer(x), expected(layer, weight, x))
    assert layer(x).shape == conv(x.to(dtype)).shape
    assert cls.from_conv(nn.Conv2d(2, 2, 1, bias=False)).bias is None
    with pytest.raises(TypeError, match=r"takes an nn\.Conv2d, got Conv1d"):
        cls.from_conv(nn.Conv1d(2, 2, 1))
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        cls.from_conv(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
