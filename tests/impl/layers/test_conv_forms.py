"""Packing, unpacking, loading and converting convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from impl import BinaryLinear
from impl.layers.binary_conv import BinaryConv, BinaryConv1d, BinaryConv2d, BinaryConv3d
from impl.layers.k_ternary_conv import MultiTernaryConv, MultiTernaryConv2d, MultiTernaryConv3d
from impl.layers.ternary_conv import TernaryConv, TernaryConv1d, TernaryConv2d
from impl.quantizers import quantize_binary, quantize_k_ternary, quantize_ternary

LAYERS = [
    pytest.param(BinaryConv2d, {"activation_bits": 1, "padding_value": -1}, id="binary"),
    pytest.param(TernaryConv2d, {"activation_bits": 8}, id="ternary"),
    pytest.param(TernaryConv2d, {"format": "two_bit", "rule": "optimal", "scale": "row"}, id="two-bit"),
    pytest.param(MultiTernaryConv2d, {"k": 2}, id="k-ternary"),
]


def build(cls, options, packed=False):
    torch.manual_seed(5)
    layer = cls(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2, **options)
    return layer.pack() if packed else layer


def image(**options):
    return torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(1), **options)


def same_function(one, other):
    with torch.no_grad():
        return torch.equal(one(image()), other(image()))


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_one_form_at_a_time(cls, options):
    layer = build(cls, options)
    assert set(layer.state_dict()) == {"weight", "bias"}
    layer.pack()
    assert set(layer.state_dict()) == {"codes", "scales", "packing", "bias"}
    assert layer.weight is None
    assert layer.packing.tolist()[3:] == [layer.components, 6, 12, 0, layer.scales.shape[1], 3, 2]
    decoded = layer.dequantize()
    layer.unpack()
    assert layer.weight.shape == (6, 2, 3, 2)
    assert torch.equal(layer.weight, decoded)


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_forms_load_each_other(cls, options):
    source = build(cls, options)
    latent = copy.deepcopy(source.state_dict())
    packed = copy.deepcopy(source.pack().state_dict())
    for target in (build(cls, options), build(cls, options, packed=True)):
        nn.init.zeros_(target.bias)
        target.load_state_dict(packed)
        assert target.is_packed
        assert same_function(target, source)
        target.load_state_dict(latent)
        assert torch.equal(target.weight, latent["weight"])
        assert same_function(target.pack(), source)


def test_loading_into_a_called_layer_is_seen_by_the_next_call():
    one = build(BinaryConv2d, {"activation_bits": 8}, packed=True)
    two = BinaryConv2d(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2, activation_bits=8).pack()
    assert not same_function(one, two)
    one.load_state_dict(two.state_dict())
    assert same_function(one, two)
    with torch.no_grad():
        one.scales = two.scales * 2
        one.bias.zero_()
        two.bias.zero_()
        torch.testing.assert_close(one(image()), 2 * two(image()))


def test_a_state_of_another_kernel_is_refused_though_its_bytes_would_fit():
    state = BinaryConv2d(4, 6, (3, 2)).pack().state_dict()
    for other in (BinaryConv2d(4, 6, (2, 3)), BinaryConv1d(4, 6, 6), BinaryConv3d(4, 6, (3, 2, 1))):
        before = other.weight.clone()
        with pytest.raises(RuntimeError, match=r"kernel \(3, 2\), this layer has"):
            other.load_state_dict(state)
        assert torch.equal(other.weight, before)
    with pytest.raises(RuntimeError, match=r"kernel \(3, 2\), this layer has \(\)"):
        BinaryLinear(24, 6).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"kernel \(\), this layer has \(3, 2\)"):
        BinaryConv2d(4, 6, (3, 2)).load_state_dict(BinaryLinear(24, 6).pack().state_dict())
    with pytest.raises(RuntimeError, match=r"weight has shape \[6, 4, 2, 3\]"):
        BinaryConv2d(4, 6, (3, 2)).pack().load_state_dict(BinaryConv2d(4, 6, (2, 3)).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": torch.zeros(12, dtype=torch.int64)}, "a packing header is"),
        ({"packing": torch.tensor([1, 1, 1, 1, 6, 24, 0, 6, 3, 0])}, "kernel must be at least 1"),
        ({"packing": torch.tensor([1, 1, 1, 1, 6, 24, 0, 6, 5, 2])}, "does not divide 24 columns"),
        ({"packing": torch.tensor([2, 1, 1, 1, 6, 24, 0, 6, 3, 2])}, "header version 2"),
        ({"codes": torch.zeros(17, dtype=torch.uint8)}, r"codes are torch\.uint8 \[17\]"),
    ],
)
def test_damaged_states_are_refused(change, message):
    """Defect D4: a packed weight that does not fit freed its memory twice; here it is an error."""
    state = BinaryConv2d(4, 6, (3, 2)).pack().state_dict()
    with pytest.raises(RuntimeError, match=message):
        BinaryConv2d(4, 6, (3, 2)).load_state_dict({**state, **change})


@pytest.mark.parametrize(("cls", "options"), LAYERS)
@pytest.mark.parametrize("packed", [True, False])
def test_copies(cls, options, packed, copied):
    layer = build(cls, options, packed)
    with torch.no_grad():
        layer(image())  # what a call keeps must not travel
    twin = copied(layer)
    assert same_function(layer, twin)
    with torch.no_grad():
        twin.bias.add_(1)
        if packed:
            twin.scales.mul_(2)
    assert not same_function(layer, twin)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
def test_casts_leave_the_packed_weight_alone(cast):
    layer = build(TernaryConv2d, {"activation_bits": 8}, packed=True)
    before = {name: getattr(layer, name).clone() for name in ("codes", "scales", "packing")}
    cast(layer)
    for name, tensor in before.items():
        assert torch.equal(getattr(layer, name), tensor)
        assert getattr(layer, name).dtype == tensor.dtype
    assert layer.bias.dtype != torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [True, False])
def test_half_precision_models_run_in_either_form(packed, dtype):
    layer = build(TernaryConv2d, {"activation_bits": 8}, packed).to(dtype)
    y = layer(image(dtype=torch.float32).to(dtype))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.bias.grad.dtype == dtype
    assert layer.unpack().weight.dtype == dtype


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_meta_device(cls, options):
    with torch.device("meta"):
        layer = cls(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2, **options)
    x = torch.empty(2, 4, 7, 6, device="meta")
    real = build(cls, options, packed=True)
    shape = real(image()).shape
    assert layer(x).shape == layer.pack()(x).shape == shape
    for name in ("codes", "scales", "packing"):
        assert getattr(layer, name).shape == getattr(real, name).shape
    filled = copy.deepcopy(layer).to_empty(device="cpu")
    assert torch.equal(filled.packing, real.packing)
    filled.load_state_dict(real.state_dict())
    assert same_function(filled, real)
    assert layer.unpack().weight.shape == (6, 2, 3, 2)


# ---- values ------------------------------------------------------------------------------------


def test_weights_are_quantised_as_the_matrix_of_their_rows():
    conv = nn.Conv2d(4, 6, (3, 2), groups=2)
    matrix = conv.weight.detach().movedim(1, -1).reshape(6, -1)

    def expected(quantized):
        return quantized.dequantize().view(6, 3, 2, 2).movedim(-1, 1)

    binary = BinaryConv.from_conv(conv)
    assert torch.equal(binary.dequantize(), expected(quantize_binary(matrix, scale="row")))
    ternary = TernaryConv.from_conv(conv)
    assert torch.equal(ternary.dequantize(), expected(quantize_ternary(matrix, rule="optimal")))
    twice = MultiTernaryConv.from_conv(conv, k=3)
    assert torch.equal(twice.dequantize(), expected(quantize_k_ternary(matrix, 3)))
    assert twice.k == 3
    for layer in (binary, ternary, twice):
        whole = layer.dequantize()
        for rows in (slice(0, 2), slice(-1, None), slice(3, 3)):
            assert torch.equal(layer.dequantize(rows), whole[rows])


@pytest.mark.parametrize("packed", [True, False])
def test_codes_and_scales_answer_in_either_form(packed):
    binary, ternary, multiple = (
        build(cls, options, packed)
        for cls, options in ((BinaryConv2d, {}), (TernaryConv2d, {}), (MultiTernaryConv2d, {"k": 3}))
    )

    def wide(scales):
        return scales[..., None, None, None]

    assert torch.equal(binary.W_binary * wide(binary.gamma), binary.dequantize())
    assert torch.equal(ternary.W_ternary * wide(ternary.gamma), ternary.dequantize())
    assert multiple.W_ternary.shape == (3, 6, 2, 3, 2)
    torch.testing.assert_close((multiple.W_ternary * wide(multiple.gammas)).sum(0), multiple.dequantize())
    assert (binary.gamma.shape, multiple.gammas.shape) == ((6,), (3, 6))


def test_nan_weights_are_refused_and_nothing_changes():
    layer = build(BinaryConv2d, {})
    layer.weight.data[1, 1, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        layer.pack()
    assert not layer.is_packed


# ---- from torch's convolutions and from codes ------------------------------------------------------


@pytest.mark.parametrize("family", [BinaryConv, TernaryConv, MultiTernaryConv])
@pytest.mark.parametrize("plain", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize("padding", [2, "same"])
def test_from_conv_keeps_what_the_convolution_knew(family, plain, padding):
    """Defect D17: conversion that discards trained weights and biases."""
    conv = plain(4, 6, 3, padding=padding, dilation=2, groups=2, dtype=torch.bfloat16).eval()
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 4, *[7, 6, 5][: conv.weight.dim() - 2], dtype=torch.bfloat16)
    for pack in (True, False):
        layer = family.from_conv(conv, pack=pack)
        assert type(layer).__name__ == f"{family.__name__}{conv.weight.dim() - 2}d"
        assert (layer.is_packed, layer.training, layer.weight_dtype) == (pack, False, torch.bfloat16)
        assert layer(x).shape == conv(x).shape
        assert torch.equal(layer.bias, conv.bias)
        assert layer.bias.data_ptr() != conv.bias.data_ptr()
        if not pack:
            assert torch.equal(layer.weight, conv.weight)
            assert layer.weight.data_ptr() != conv.weight.data_ptr()
            assert not layer.weight.requires_grad
    assert family.from_conv(plain(4, 6, 3, bias=False)).bias is None


def test_from_conv_comes_near_the_convolution():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, stride=2, padding=1)
    x = torch.randn(2, 16, 9, 9)
    errors = []
    with torch.no_grad():
        for layer in (TernaryConv.from_conv(conv), MultiTernaryConv2d.from_conv(conv, k=2)):
            errors.append(float((layer(x) - conv(x)).norm() / conv(x).norm()))
    assert errors[1] < errors[0] < 0.5
    assert TernaryConv2d(4, 4, 3).rule == TernaryConv.from_conv(conv, pack=False).rule == "absmean"
    assert TernaryConv.from_conv(conv, rule="twn").rule == "twn"


def test_from_conv_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="padding_mode='reflect' is not supported"):
        BinaryConv.from_conv(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(TypeError, match=r"BinaryConv2d\.from_conv takes an nn\.Conv2d, got Conv1d"):
        BinaryConv2d.from_conv(nn.Conv1d(4, 4, 3))
    with pytest.raises(TypeError, match=r"nn\.Conv1d or nn\.Conv2d or nn\.Conv3d, got ConvTranspose2d"):
        TernaryConv.from_conv(nn.ConvTranspose2d(4, 4, 3))
    conv = nn.Conv2d(4, 4, 3)
    conv.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="144 NaN"):
        TernaryConv.from_conv(conv)


@pytest.mark.parametrize(
    ("cls", "shape", "components"),
    [
        (BinaryConv2d, (6, 2, 3, 2), 1),
        (TernaryConv1d, (6, 2, 3), 1),
        (MultiTernaryConv3d, (6, 2, 1, 2, 3), 3),
    ],
)
def test_from_codes(cls, shape, components):
    torch.manual_seed(0)
    codes = torch.randint(0, 2, (components, *shape), dtype=torch.int8) * 2 - 1
    scales, bias = torch.rand(components, 6, 1), torch.randn(6)
    given = codes[0] if components == 1 else codes
    layer = cls.from_codes(given, scales, bias, 2, 1, groups=2, padding_value=1, activation_bits=8)
    assert layer.is_packed
    assert (layer.in_channels, layer.kernel_size, layer.stride[0], layer.padding[0]) == (4, shape[2:], 2, 1)
    decoded = (codes * scales.view(components, 6, *[1] * (len(shape) - 1))).sum(0)
    torch.testing.assert_close(layer.dequantize(), decoded)
    assert torch.equal(layer.bias, bias)
    shared = cls.from_codes(given, scales[:, :1], groups=2)
    assert (shared.scale, shared.bias, shared.stride[0]) == ("tensor", None, 1)


def test_from_codes_refuses_what_no_layer_has():
    codes, scales = torch.ones(6, 2, 3, 2, dtype=torch.int8), torch.ones(1, 6, 1)
    with pytest.raises(ValueError, match=r"\[components, out_channels, channels, \*kernel\]"):
        BinaryConv2d.from_codes(codes[0], scales)
    with pytest.raises(ValueError, match="use MultiTernaryConv"):
        BinaryConv2d.from_codes(torch.stack([codes, codes]), scales)
    with pytest.raises(TypeError, match=r"scales must be a torch\.Tensor"):
        BinaryConv2d.from_codes(codes, 1.0)
    with pytest.raises(TypeError, match="int8"):
        BinaryConv2d.from_codes(codes.float(), scales)
    with pytest.raises(ValueError, match=r"bias must have shape \[6\]"):
        BinaryConv2d.from_codes(codes, scales, torch.ones(5))
    with pytest.raises(TypeError, match="use BinaryConv1d, BinaryConv2d, BinaryConv3d"):
        BinaryConv.from_codes(codes, scales)
