"""4- and 8-bit layers of bitorch_engine: names, rules, and the defects of the original."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.compat.bitorch_engine.nbit import Q4LinearCutlass, Q4MatMul, Q8LinearCutlass, nBitLinearBase
from impl.compat.bitorch_engine.nbit_conv import Q4Conv2dCutlass, nBitConv2dBase
from impl.compat.bitorch_engine.nbit_tools import q4_quantization, q8_quantization
from impl.convert_tools import load_checkpoint, pack_bie_layers, prepare_bie_layers, save_checkpoint

DIVISORS = {4: 5.6345, 8: 11.269}


def names_of(function):
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def test_signatures_of_the_original():
    linear = ["in_channels", "out_channels", "a_bit", "w_bit", "device", "dtype"]
    conv = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"]
    for cls in (nBitLinearBase, Q4LinearCutlass, Q8LinearCutlass):
        assert names_of(cls) == linear
    for cls in (nBitConv2dBase, Q4Conv2dCutlass):
        assert names_of(cls) == [*conv, "a_bit", "w_bit", "device", "dtype"]
    assert names_of(Q4MatMul) == ["dtype", "device"]
    for name in ("q4_quantization", "q8_quantization"):
        assert names_of(globals()[name]) == ["input", "scale_a", "eps"]


def test_attributes_of_the_original():
    layer = Q4LinearCutlass(24, 5)
    assert (layer.in_channels, layer.out_channels, layer.a_bit, layer.w_bit) == (24, 5, 4, 4)
    assert layer.bias_a.tolist() == [0] * 24
    assert layer.scale_a.item() == 0
    assert isinstance(layer.scale_a, nn.Parameter)
    assert layer.scale_w.item() == pytest.approx(2 * layer.weight.abs().mean().item() / 5.6345)
    assert (layer.eps, layer.dtype, layer.device) == (1e-5, torch.float32, torch.device("cpu"))
    assert layer.qweight is None
    assert (Q8LinearCutlass(3, 2).a_bit, Q8LinearCutlass(3, 2).w_bit) == (8, 8)
    conv = Q4Conv2dCutlass(3, 4, 3)
    assert conv.weight.shape == (4, 3, 3, 3)
    assert conv.bias_a.shape == (3,)


def codes(values, scale, bits):
    return (values / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@settings(max_examples=25, deadline=None)
@given(
    cls=st.sampled_from([Q4LinearCutlass, Q8LinearCutlass]),
    columns=st.integers(1, 40),
    rows=st.integers(1, 9),
    lead=st.lists(st.integers(1, 3), max_size=3),
    strided=st.booleans(),
    bias=st.booleans(),
)
def test_any_shape_in_training_eval_and_packed(cls, columns, rows, lead, strided, bias):
    """1.5: the original takes multiples of 32 and two dimensions only, and its check of the shape fails
    once the float weight is gone."""
    layer = cls(columns, rows, bias=bias)
    with torch.no_grad():
        layer.bias_a.normal_(std=0.3)
    x = torch.randn(*lead, columns, 2)[..., 0] if strided else torch.randn(*lead, columns)
    y = layer(x)
    bits = layer.a_bit
    mean = torch.tensor(2 / DIVISORS[bits]) * x.abs().mean()
    torch.testing.assert_close(layer.scale_a.detach(), mean)
    step = layer.scale_a.detach().clamp_min(1e-5)
    weight_step = 2 * layer.weight.detach().abs().mean() / DIVISORS[bits]
    dot = (
        codes((x + layer.bias_a.detach()).double(), step, bits)
        @ codes(layer.weight.detach(), weight_step, bits).double().t()
    )
    expected = weight_step * dot.float() * step
    if bias:
        expected = expected + layer.bias.detach()
    torch.testing.assert_close(y, expected)
    layer.eval()
    assert torch.equal(layer(x), y)
    layer.generate_quantized_weight(qweight_only=True)
    assert layer.weight is None
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_of_any_shape(groups):
    """1.5: the original views the image as channels-last without moving a value, and takes multiples
    of 32 channels only."""
    layer = Q4Conv2dCutlass(4, 6, (3, 2), (2, 1), (1, 0), groups=groups)
    x = torch.randn(2, 4, 9, 7)
    y = layer(x)
    step, weight_step = layer.scale_a.detach(), layer.scale_w
    dot = F.conv2d(
        codes(x, step, 4).double(),
        codes(layer.weight.detach(), weight_step, 4).double(),
        None,
        (2, 1),
        (1, 0),
        1,
        groups,
    )
    torch.testing.assert_close(y, weight_step * dot.float() * step)
    layer.eval().generate_quantized_weight(qweight_only=True)
    assert torch.equal(layer(x), y)
    y.sum().backward()
    assert layer.bias_a.grad.abs().sum() > 0
    assert layer.scale_a.grad.abs() > 0


@pytest.mark.parametrize("cls", [Q4LinearCutlass, Q8LinearCutlass])
def test_gradients(cls):
    """1.5: the original multiplies the gradient of an 8-bit layer's input by scale_a once more."""
    torch.manual_seed(0)
    layer = cls(12, 5)
    x = torch.randn(7, 12, requires_grad=True)
    layer(x)
    with torch.no_grad():
        layer.scale_a.fill_(0.1 if layer.a_bit == 4 else 0.01)  # some values are beyond the last code
    towards = torch.randn(7, 5)
    layer(x).backward(towards)
    ratio = x.detach() / layer.scale_a.detach()
    high = 2 ** (layer.a_bit - 1)
    inside = (ratio >= -high) & (ratio <= high - 1)
    assert not inside.all()
    expected = (towards @ layer.dequantize()) * inside
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(layer.bias_a.grad, expected.sum(0))
    rounded = codes(x.detach(), layer.scale_a.detach(), layer.a_bit) * layer.scale_a.detach()
    torch.testing.assert_close(layer.weight.grad, towards.t() @ rounded)
    error = torch.where(inside, ratio.round() - ratio, ratio.clamp(-high, high - 1))
    total = ((towards @ layer.dequantize()) * error).sum() / math.sqrt(x.numel() * (high - 1))
    torch.testing.assert_close(layer.scale_a.grad, total)


def test_packed_codes_are_never_older_than_the_weight():
    """D9: the original packs once, and keeps those bits through further training."""
    layer = Q4LinearCutlass(10, 3).eval()
    first = layer.opt_weight.clone()
    assert first.dtype == torch.uint8
    assert "qweight" not in layer.state_dict()
    with torch.no_grad():
        layer.weight.neg_()
    assert not torch.equal(layer.opt_weight, first)
    assert layer.train().opt_weight is layer.weight
    layer.generate_quantized_weight(qweight_only=True)
    assert "qweight" in layer.state_dict()
    assert layer.opt_weight is layer.qweight
    layer.generate_quantized_weight()
    with pytest.raises(TypeError, match="float64"):
        layer.set_weight_data(torch.ones(3, 10, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\[3, 10\]"):
        layer.set_weight_data(torch.ones(10, 3))
    layer.set_weight_data(torch.ones(3, 10))
    assert layer.qweight is None
    assert layer.weight.requires_grad


def test_codes_from_elsewhere():
    layer, other = Q4LinearCutlass(9, 3), Q4LinearCutlass(9, 3)
    scale = layer.scale_w.clone()
    layer.set_quantized_weight_data(other.eval().opt_weight)
    assert torch.equal(layer.scale_w, scale)
    torch.testing.assert_close(layer.dequantize() / scale, other.dequantize() / other.scale_w)
    with pytest.raises(TypeError, match="uint8"):
        layer.set_quantized_weight_data(torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"\[3, 5\], got \[5, 3\]"):
        layer.set_quantized_weight_data(torch.zeros(5, 3, dtype=torch.uint8))


def test_whole_models(tmp_path):
    """D12: the root module is prepared and packed too, and loading is strict."""
    model = nn.Sequential(Q4Conv2dCutlass(2, 4, 3), nn.Flatten(), Q8LinearCutlass(36, 5))
    x = torch.randn(3, 2, 5, 5)
    assert prepare_bie_layers(model) == ["0", "2"]
    y = model(x)
    save_checkpoint(model, tmp_path / "model.pth")
    save_checkpoint(model, tmp_path / "model.safetensors")
    for name in ("model.pth", "model.safetensors"):
        twin = nn.Sequential(Q4Conv2dCutlass(2, 4, 3), nn.Flatten(), Q8LinearCutlass(36, 5))
        load_checkpoint(twin, tmp_path / name)
        assert twin[0].is_packed
        assert torch.equal(twin(x), y)
    root = Q4LinearCutlass(4, 2)
    assert pack_bie_layers(root) == [""]
    assert root.is_packed


def test_conversion_keeps_weight_and_bias():
    """D17: the original's converters build fresh random layers."""
    linear, conv = nn.Linear(64, 32).eval(), nn.Conv2d(3, 8, 3, padding=1, groups=1).eval()
    x, image = torch.randn(16, 64), torch.randn(2, 3, 8, 8)
    layer = Q8LinearCutlass.from_linear(linear)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    assert ((layer(x) - linear(x)).norm() / linear(x).norm()).item() < 0.15
    twin = Q4Conv2dCutlass.from_conv(conv, pack=True)
    assert ((twin(image) - conv(image)).norm() / conv(image).norm()).item() < 0.5
    assert twin.is_packed
    with pytest.raises(TypeError, match=r"nn.Conv2d, got Linear"):
        Q4Conv2dCutlass.from_conv(linear)


@pytest.mark.parametrize("cls", [Q4LinearCutlass, Q8LinearCutlass, Q4Conv2dCutlass])
@pytest.mark.parametrize("packed", [False, True])
def test_conversion_draws_nothing(nothing_drawn, cls, packed):
    """It drew a weight and a bias that were overwritten, and moved the generator of whoever converts."""
    is_conv = issubclass(cls, nBitConv2dBase)
    old = nn.Conv2d(3, 8, 3) if is_conv else nn.Linear(64, 32)
    x = torch.randn(2, 3, 8, 8) if is_conv else torch.randn(2, 64)
    with nothing_drawn():
        layer = (cls.from_conv if is_conv else cls.from_linear)(old, pack=packed)
    assert layer.is_packed == packed
    assert packed or torch.equal(layer.weight, old.weight)
    assert torch.equal(layer.bias, old.bias)
    assert (layer.scale_a.item(), layer.bias_a.abs().sum().item()) == (0, 0)
    assert bool(layer.eval()(x).isfinite().all())


@pytest.mark.parametrize("shapes", [((3, 5), (4, 5)), ((2, 1, 3, 33), (4, 6, 33)), ((0, 3, 5), (0, 2, 5))])
def test_matmul(shapes):
    """1.5: the original starts y_clip from x, and cuts 4-bit gradients at the bounds of 8 bits."""
    torch.manual_seed(0)
    x, y = (torch.randn(shape) for shape in shapes)
    y = (5 * y).requires_grad_()
    x.requires_grad_()
    layer = Q4MatMul()
    before = layer.eval()(x, y)
    assert layer.x_clip.item() == 0
    z = layer.train()(x, y)
    if x.numel() == 0:
        assert z.shape == (0, 3, 2)
        return
    for clip, operand in ((layer.x_clip, x), (layer.y_clip, y)):
        torch.testing.assert_close(clip.detach(), 2 * operand.detach().abs().mean() / 5.6345)
    dot = codes(x.detach(), layer.x_clip.detach(), 4).double() @ codes(
        y.detach(), layer.y_clip.detach(), 4
    ).double().transpose(-1, -2)
    expected = dot.float() * layer.x_clip.detach() * layer.y_clip.detach()
    torch.testing.assert_close(z.detach(), expected)
    torch.testing.assert_close(before, z)
    assert torch.equal(layer.eval()(x, y), z)
    with torch.no_grad():
        layer.x_clip.mul_(0.3)
    z = layer.train()(x, y)
    z.sum().backward()
    outside = codes(x.detach(), layer.x_clip.detach(), 4).mul(layer.x_clip.detach()) - x.detach()
    cut = outside.abs() > layer.x_clip.detach()
    assert cut.any()
    assert not x.grad[cut].any()
    assert layer.x_clip.grad.abs() > 0
    assert layer.y_clip.grad.abs() > 0


def test_matmul_refuses():
    with pytest.raises(TypeError, match="float64"):
        Q4MatMul(torch.float64)
    with pytest.raises(ValueError, match="two dimensions"):
        Q4MatMul()(torch.ones(3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="in_features = 3, got 4"):
        Q4MatMul()(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.parametrize(("function", "bits"), [(q4_quantization, 4), (q8_quantization, 8)])
def test_quantisation_by_mean(function, bits):
    """1.5: with eps=None the original raises TypeError."""
    x = torch.tensor([-1e4, -1.0, -0.5, 0.0, 0.5, 1e4])
    numbers, scale = function(x)
    assert scale.item() == pytest.approx(2 * x.abs().mean().item() / DIVISORS[bits])
    assert torch.equal(numbers, codes(x, scale, bits))
    assert function(x, torch.tensor(0.5)).tolist() == codes(x, 0.5, bits).tolist()
    assert function(x, torch.tensor(0.5))[[0, -1]].tolist() == [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1]
    assert function(torch.zeros(3))[1].item() == pytest.approx(1e-5)
    assert function(torch.zeros(3), None, torch.tensor(0.1))[1].item() == pytest.approx(0.1)
    assert function(x.half(), torch.tensor(0.5)).dtype == torch.float32
    with pytest.raises(TypeError, match="int64"):
        function(torch.arange(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Q4LinearCutlass(4, 4, 8), "a_bit must be 4 for Q4LinearCutlass, got 8"),
        (lambda: Q8LinearCutlass(4, 4, 8, 4), "w_bit must be 8 for Q8LinearCutlass, got 4"),
        (lambda: nBitLinearBase(4, 4, 4, 2), "w_bit must be 4 or 8"),
        (lambda: Q4Conv2dCutlass(4, 4, 3, a_bit=8), "a_bit must be 4"),
        (lambda: Q4LinearCutlass(4, 4)(torch.ones(2, 5)), "in_features = 4, got 5"),
        (lambda: Q4LinearCutlass(2, 2)(torch.full((1, 2), math.nan)), "scale_a cannot be set"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
