"""Integer linear layers and convolutions: exact arithmetic, gradients, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.layers.nbit import NBitConv1d, NBitConv2d, NBitConv3d, NBitLinear, base, integers

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
WIDTHS = st.sampled_from([(4, 4), (4, 8), (8, 8), (8, 4), (2, 3), (5, 8)])


def integer_operands(layer, x, dims):
    """Weights and activations as int64 codes with their scales, from the rules in the docstrings."""
    weight = layer.weight.detach().float().flatten(1)
    high = 2 ** (layer.weight_bits - 1) - 1
    amax = weight.abs().amax() if layer.scale == "tensor" else weight.abs().amax(1)
    weight_scale = (amax / torch.tensor(high)).expand(len(weight)).contiguous()
    codes = (weight / weight_scale.unsqueeze(1)).round().clamp(-high, high).long()
    high = 2 ** (layer.activation_bits - 1) - 1
    largest = x.float().abs().amax(dim=dims, keepdim=True).clamp_min(1e-5)
    levels = torch.full_like(largest, high)
    activations = (x.float() * (levels / largest)).round().clamp(-high, high).long()
    return codes.reshape(layer.weight_shape), weight_scale, activations, largest / levels


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 7),
    cols=st.integers(1, 33),
    lead=st.lists(st.integers(0, 3), max_size=3),
    widths=WIDTHS,
    dtype=DTYPES,
    scale=st.sampled_from(["row", "tensor"]),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_linear_is_exact(rows, cols, lead, widths, dtype, scale, bias, strided):
    layer = NBitLinear(
        cols, rows, bias, dtype=dtype, weight_bits=widths[0], activation_bits=widths[1], scale=scale
    )
    x = torch.randn(*lead, cols, 2).to(dtype)[..., 0] if strided else torch.randn(*lead, cols).to(dtype)
    codes, weight_scale, activations, activation_scale = integer_operands(layer, x, (-1,))
    dot = (activations.unsqueeze(-2) * codes).sum(-1)
    expected = weight_scale * dot.float() * activation_scale
    if bias:
        expected = expected + layer.bias.float()
    expected = expected.to(dtype)
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), expected)
        assert torch.equal(layer.pack()(x), expected)


CONVS = {1: NBitConv1d, 2: NBitConv2d, 3: NBitConv3d}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=30, deadline=None)
@given(
    dims=st.integers(1, 3),
    channels=st.integers(1, 3),
    outputs=st.integers(1, 3),
    groups=st.integers(1, 3),
    batch=st.integers(0, 2),
    geometry=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2)),
    same=st.booleans(),
    widths=WIDTHS,
    bias=st.booleans(),
)
def test_convolutions_are_exact(dims, channels, outputs, groups, batch, geometry, same, widths, bias):
    kernel, stride, padding, dilation = geometry
    kernels = (kernel, *[1] * (dims - 1)) if dims > 1 else kernel
    layer = CONVS[dims](
        channels * groups,
        outputs * groups,
        kernels,
        1 if same else stride,
        "same" if same else padding,
        dilation,
        groups,
        bias,
        weight_bits=widths[0],
        activation_bits=widths[1],
    )
    x = torch.randn(batch, channels * groups, *range(6, 6 + dims))
    codes, weight_scale, activations, activation_scale = integer_operands(layer, x, tuple(range(1, dims + 2)))
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    options = (layer.stride, layer.padding, layer.dilation, groups)
    dot = convolve(activations, codes, None, *options) if batch else None  # int64, no rounding anywhere
    y = layer(x)
    if batch == 0:
        assert y.shape[:2] == (0, outputs * groups)
        return
    over = (-1, *[1] * dims)
    expected = weight_scale.view(over) * dot.float() * activation_scale
    if bias:
        expected = expected + layer.bias.detach().view(over)
    assert torch.equal(y, expected)
    assert torch.equal(layer.pack()(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0], rtol=0, atol=0)


def float_twin(layer, x):
    """The layer in plain float operations with straight-through rounding, on leaves of its own."""
    weight = layer.weight.detach().clone().requires_grad_()
    leaf = x.detach().clone().requires_grad_()
    rounded_weight = weight + (layer.dequantize() - weight).detach()
    dims = (-1,) if isinstance(layer, NBitLinear) else tuple(range(1, x.dim()))
    high = 2 ** (layer.activation_bits - 1) - 1
    step = x.detach().abs().amax(dim=dims, keepdim=True) / high
    rounded = leaf + ((leaf / step).round() * step - leaf).detach()
    if isinstance(layer, NBitLinear):
        return leaf, weight, F.linear(rounded, rounded_weight, layer.bias.detach())
    y = F.conv2d(rounded, rounded_weight, layer.bias.detach(), layer.stride, layer.padding)
    return leaf, weight, y


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_are_those_of_the_float_product(kind):
    torch.manual_seed(0)
    if kind == "linear":
        layer, x = NBitLinear(13, 5), torch.randn(2, 3, 13, requires_grad=True)
    else:
        layer, x = NBitConv2d(3, 4, (3, 2), (1, 2), (1, 0)), torch.randn(2, 3, 6, 7, requires_grad=True)
    y = layer(x)
    leaf, weight, twin = float_twin(layer, x)
    torch.testing.assert_close(y, twin)
    towards = torch.randn_like(y)
    y.backward(towards)
    twin.backward(towards)
    torch.testing.assert_close(x.grad, leaf.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    others = tuple(dim for dim in range(y.dim()) if dim != (y.dim() - 1 if kind == "linear" else 1))
    torch.testing.assert_close(layer.bias.grad, towards.sum(others))
    x.grad = None
    layer.pack()(x).backward(towards)
    torch.testing.assert_close(x.grad, leaf.grad)


def test_a_learned_scale_starts_from_the_first_training_batch():
    """1.5: the constant of the original is that of 8 bits, whatever the width."""
    layer = NBitLinear(9, 4, activation_bits=4, activation_scale="learned").eval()
    dynamic = NBitLinear.from_linear(nn.Linear(9, 4), pack=False, activation_bits=4)
    dynamic.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "scale_a"})
    x = torch.randn(6, 9)
    assert torch.equal(layer(x), dynamic(x))
    assert layer.scale_a.item() == 0
    layer.train()(x)
    assert layer.scale_a.item() == pytest.approx(2 * x.abs().mean().item() / math.sqrt(7))
    before = layer.scale_a.item()
    layer(10 * x).square().sum().backward()
    assert layer.scale_a.item() == before
    assert layer.scale_a.grad.abs() > 0
    twin = NBitLinear(9, 4, activation_bits=4, activation_scale="learned").eval()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer.eval()(x))
    unset = {**layer.state_dict(), "scale_a": torch.zeros(())}
    twin.load_state_dict(unset)
    assert torch.equal(twin(x), dynamic(x))
    with pytest.raises(ValueError, match="scale_a cannot be set"):
        NBitLinear(2, 2, activation_scale="learned")(torch.full((1, 2), math.nan))


def test_learning_lowers_the_loss():
    torch.manual_seed(0)
    target = nn.Linear(16, 8)
    layer = NBitLinear(16, 8, weight_bits=4, activation_bits=4, activation_scale="learned")
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-2)
    x = torch.randn(256, 16)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(layer(x), target(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]
    with torch.no_grad():
        packed = layer.eval().pack()
        assert F.mse_loss(packed(x), target(x)).item() < 0.15 * losses[0]


@pytest.mark.parametrize("scale", ["dynamic", "learned"])
def test_nan_and_infinity_stay_in_their_row_and_sample(scale):
    linear = NBitLinear(6, 3, activation_scale=scale)
    conv = NBitConv2d(2, 3, 3, padding=1, activation_scale=scale)
    for layer, shape in ((linear, (4, 6)), (conv, (4, 2, 5, 5))):
        x = torch.randn(shape)
        layer(x)
        clean = layer(x)
        x[1].view(-1)[0], x[2].view(-1)[1] = math.nan, math.inf
        y = layer(x)
        assert y[1:3].isnan().all()
        assert torch.equal(y[0], clean[0])
        assert torch.equal(y[3], clean[3])


def test_float_activations_multiply_by_the_decoded_weight():
    layer = NBitLinear(11, 5, weight_bits=3, activation_bits=None)
    x = torch.randn(4, 11)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantize(), layer.bias))
    before = layer(x)
    assert torch.equal(layer.pack()(x), before)


def test_rounding_is_as_good_as_the_width():
    torch.manual_seed(0)
    linear, x = nn.Linear(512, 64), torch.randn(32, 512)
    with torch.no_grad():
        y = linear(x)
        errors = [
            (
                (NBitLinear.from_linear(linear, weight_bits=b, activation_bits=b)(x) - y).norm() / y.norm()
            ).item()
            for b in (8, 4)
        ]
    assert errors[0] < 0.015
    assert errors[1] < 0.25


def test_conversion_keeps_what_there_is():
    """D17: the original's converters drop pretrained weight and bias."""
    linear = nn.Linear(7, 3, dtype=torch.bfloat16).eval()
    linear.bias.requires_grad_(False)
    layer = NBitLinear.from_linear(linear, pack=False)
    assert torch.equal(layer.weight, linear.weight)
    assert layer.weight.data_ptr() != linear.weight.data_ptr()
    assert torch.equal(layer.bias, linear.bias)
    assert not layer.bias.requires_grad
    assert not layer.training
    conv = nn.Conv2d(4, 6, (3, 1), 2, (1, 0), groups=2, bias=False)
    twin = NBitConv2d.from_conv(conv, weight_bits=8)
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(twin(x), conv(x), rtol=0.1, atol=0.03)
    assert twin.is_packed
    assert twin.bias is None


@pytest.mark.parametrize("activation_scale", ["dynamic", "learned"])
def test_conversion_draws_nothing(nothing_drawn, activation_scale):
    """It drew a weight and a bias that were overwritten, and moved the generator of whoever converts."""
    linear, conv = nn.Linear(7, 3), nn.Conv2d(2, 3, 3)
    x, image = torch.randn(2, 7), torch.randn(2, 2, 5, 5)
    options = {"pack": False, "activation_bits": 8, "activation_scale": activation_scale}
    with nothing_drawn():
        layer, twin = NBitLinear.from_linear(linear, **options), NBitConv2d.from_conv(conv, **options)
    for new, old, inputs in ((layer, linear, x), (twin, conv, image)):
        assert torch.equal(new.weight, old.weight)
        assert torch.equal(new.bias, old.bias)
        assert new.scale_a is None or new.scale_a.item() == 0
        torch.testing.assert_close(new(inputs), old(inputs), rtol=0.3, atol=0.3)


def test_packing_is_undone_and_repeated():
    layer = NBitLinear(21, 6).pack()
    packed, y = layer.qweight.clone(), layer.dequantize()
    assert packed.nbytes == 6 * 11
    assert torch.equal(layer.unpack().weight, y)
    assert torch.equal(layer.pack().qweight, packed)
    zero = NBitLinear(3, 2)
    nn.init.zeros_(zero.weight)
    assert not zero.pack().dequantize().any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NBitLinear(2, 2, weight_bits=9), ValueError, "from 2 to 8, got 9"),
        (lambda: NBitLinear(2, 2, weight_bits=True), TypeError, "weight_bits"),
        (lambda: NBitLinear(2, 2, activation_bits=1), ValueError, "activation_bits must be"),
        (lambda: NBitLinear(2, 2, activation_scale="learnt"), ValueError, "did you mean 'learned'"),
        (
            lambda: NBitLinear(2, 2, activation_bits=None, activation_scale="learned"),
            ValueError,
            "no scale",
        ),
        (lambda: NBitLinear(2, 2, scale="rows"), ValueError, "did you mean 'row'"),
        (lambda: NBitLinear(0, 2), ValueError, "in_features"),
        (lambda: NBitLinear(2, 2, dtype=torch.float64), TypeError, "float64"),
        (lambda: NBitLinear(2, 2)(torch.ones(3)), ValueError, "in_features = 2, got 3"),
        (lambda: NBitLinear(2, 2)(torch.ones(2, dtype=torch.int32)), TypeError, "int32"),
        (lambda: NBitLinear.from_linear(nn.Conv1d(2, 2, 1)), TypeError, "Conv1d"),
        (lambda: NBitLinear(2, 2).pack().reset_parameters(), RuntimeError, r"unpack\(\) it"),
        (
            lambda: NBitConv2d(3, 4, 3, groups=2),
            ValueError,
            "in_channels = 3 must be a multiple of groups = 2",
        ),
        (lambda: NBitConv2d(3, 4, (3, 3, 3)), ValueError, "2 of them"),
        (lambda: NBitConv2d(3, 4, 0), ValueError, "kernel_size must be at least 1"),
        (lambda: NBitConv2d(3, 4, 3, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: NBitConv2d(3, 4, 3, 2, "same"), ValueError, "stride 1"),
        (lambda: NBitConv2d(3, 4, 3, padding="full"), ValueError, "'full'"),
        (
            lambda: NBitConv2d(3, 4, 3)(torch.ones(1, 2, 5, 5)),
            ValueError,
            "in_channels = 3 in its second dimension, got 2",
        ),
        (lambda: NBitConv2d(3, 4, 3)(torch.ones(1, 3, 5, 2)), ValueError, "2 long in spatial dimension 1"),
        (lambda: NBitConv2d.from_conv(nn.Conv1d(2, 2, 1)), TypeError, "nn.Conv2d, got Conv1d"),
        (
            lambda: NBitConv1d.from_conv(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")),
            ValueError,
            "padding_mode='circular' is not supported",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_weights_that_are_not_finite_are_not_packed():
    layer = NBitLinear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        layer.pack()
    assert not layer.is_packed


@pytest.mark.parametrize("activation_scale", ["dynamic", "learned"])
def test_a_training_step_quantises_the_weight_once(monkeypatch, activation_scale):
    """The float product that carries the gradient quantised weight and activations a second time."""
    calls = []
    for module, name in ((integers, "nearest_codes"), (base, "quantize_dynamic"), (base, "quantize_learned")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=original, n=name: calls.append(n) or f(*a))
    layer, x = NBitLinear(13, 5, activation_scale=activation_scale), torch.randn(2, 13, requires_grad=True)
    layer(x).sum().backward()
    assert calls == [f"quantize_{activation_scale}", "nearest_codes"]
    assert x.grad is not None
    assert layer.weight.grad is not None
