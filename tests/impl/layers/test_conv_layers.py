"""Forward, gradients, construction and errors of the convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl import functional, native
from impl.convolution import convolve
from impl.layers.binary_conv import BinaryConv, BinaryConv1d, BinaryConv2d, BinaryConv3d
from impl.layers.k_ternary_conv import (
    MultiTernaryConv,
    MultiTernaryConv1d,
    MultiTernaryConv2d,
    MultiTernaryConv3d,
)
from impl.layers.nbit import NBitConv2d
from impl.layers.ternary_conv import TernaryConv, TernaryConv1d, TernaryConv2d, TernaryConv3d
from impl.quantizers import STE, fake_quantize_samples, straight_through

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = [BinaryConv, TernaryConv, MultiTernaryConv]
IMAGES = [BinaryConv2d, TernaryConv2d, MultiTernaryConv2d]
ALL = [
    (BinaryConv1d, BinaryConv2d, BinaryConv3d),
    (TernaryConv1d, TernaryConv2d, TernaryConv3d),
    (MultiTernaryConv1d, MultiTernaryConv2d, MultiTernaryConv3d),
]
TORCH = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def reference(layer, x):
    python = functional.binary_conv_python if layer.format == "binary" else functional.ternary_conv_python
    return python(x, layer.packed_weight, layer.geometry, layer.bias, layer.activation_bits)


@st.composite
def layers(draw):
    """A packed layer with integer activations and an input for it."""
    classes = draw(st.sampled_from(ALL))
    dims = draw(st.integers(1, 3))

    def sizes(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    groups = draw(st.integers(1, 3))
    kernel, stride = sizes(1, 3), sizes(1, 2)
    padding = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "same":
        stride = (1,) * dims
    options = {"activation_bits": draw(st.sampled_from((classes[0].activations)[1:]))}
    torch.manual_seed(draw(st.integers(0, 99)))
    layer = classes[dims - 1](
        groups * draw(st.sampled_from([1, 2, 9, 64])),
        groups * draw(st.integers(1, 9)),
        kernel,
        stride,
        sizes(0, 2) if padding == "numbers" else padding,
        sizes(1, 2),
        groups,
        bias=draw(st.booleans()),
        padding_value=draw(st.sampled_from([-1, 0, 1])),
        format=draw(st.sampled_from(classes[0].formats)),
        **options,
    ).pack()
    least = [
        layer.dilation[axis] * (kernel[axis] - 1) + 1 - sum(layer.geometry.padding[axis])
        for axis in range(dims)
    ]
    spatial = [max(1, size) + draw(st.integers(0, 3)) for size in least]
    x = torch.randn(draw(st.integers(0, 2)), layer.in_channels, *spatial)
    return layer, x.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])))


@settings(max_examples=40, deadline=None)
@given(layers(), st.booleans())
def test_integer_activations_are_exact(case, last):
    layer, x = case
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    with torch.no_grad():
        y, expected = layer(x), reference(layer, x)
        assert y.dtype == x.dtype
        assert torch.equal(y, expected)
        if len(x):
            assert torch.equal(layer(x[0]), expected[0])


@pytest.mark.parametrize("classes", ALL)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_float_activations_are_those_of_torch_with_the_decoded_weight(classes, dims):
    torch.manual_seed(0)
    layer = classes[dims - 1](6, 8, 3, stride=2, padding=1, dilation=2, groups=2)
    plain = TORCH[dims](6, 8, 3, stride=2, padding=1, dilation=2, groups=2)
    x = torch.randn(2, 6, *[9, 8, 7][:dims])
    for form in (layer, layer.pack()):
        plain.weight.data, plain.bias.data = form.dequantize(), form.bias.detach()
        torch.testing.assert_close(form(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", [0, 1, (1, 2), "same", "valid"])
@pytest.mark.parametrize("kernel", [(2, 3), (3, 4)])
def test_borders_lie_as_those_of_torch(padding, kernel):
    """Defect D4: rectangular and dilated convolutions."""
    options = {"padding": padding, "dilation": (2, 1), "bias": False}
    layer = BinaryConv2d(2, 3, kernel, **options).pack()
    plain = nn.Conv2d(2, 3, kernel, **options)
    plain.weight.data = layer.dequantize()
    x = torch.randn(2, 2, 9, 7)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [-1, 0, 1])
@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_either_form_lays_the_same_border(value, bits):
    torch.manual_seed(0)
    layer = BinaryConv2d(3, 5, 3, padding=(2, 1), padding_value=value, activation_bits=bits)
    x = torch.randn(2, 3, 5, 6)
    y = layer(x)
    torch.testing.assert_close(layer.pack()(x), y, rtol=1e-4, atol=1e-4)
    if value:
        zeros = BinaryConv2d(3, 5, 3, padding=(2, 1), activation_bits=bits)
        zeros.load_state_dict(layer.state_dict())
        assert not torch.allclose(zeros(x), y, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("cls", IMAGES)
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("packed", [True, False])
def test_channels_last_in_channels_last_out(cls, bits, packed):
    torch.manual_seed(0)
    layer = cls(4, 6, 3, padding=1, padding_value=1, activation_bits=bits)
    layer = layer.pack() if packed else layer
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        y = layer(x)
        last = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", IMAGES)
def test_any_strides_and_empty_batches(cls):
    torch.manual_seed(0)
    wide = torch.randn(4, 6, 10, 12)
    inputs = {
        "every second row": wide[:, :3, ::2],
        "cut out": wide[1:3, 3:, 2:7, 5:9],
        "turned": wide[:, :3].transpose(2, 3),
        "flipped channels and batch": wide[:3, :4].transpose(0, 1)[:, :3],
        "one image for all": torch.randn(1, 3, 5, 4).expand(3, -1, -1, -1),
        "one pixel for all": torch.randn(2, 3, 1, 1).expand(-1, -1, 5, 4),
        "no images": torch.empty(0, 3, 5, 4),
    }
    exact, close, latent = (
        cls(3, 5, 3, padding=1, activation_bits=8).pack(),
        cls(3, 5, 3, padding=1).pack(),
        cls(3, 5, 3, padding=1, activation_bits=8),
    )
    for name, x in inputs.items():
        with torch.no_grad():
            assert torch.equal(exact(x), exact(x.contiguous())), name
            for layer in (close, latent):
                torch.testing.assert_close(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("cls", IMAGES)
def test_eval_before_packing_is_never_stale(cls):
    """Defect D9: packed weights that further training left behind."""
    layer = cls(3, 4, 3).eval()
    x = torch.randn(2, 3, 5, 5)
    bias = layer.bias.view(-1, 1, 1)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(-3)
        torch.testing.assert_close(layer(x) - bias, -3 * (before - bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("families", ALL)
def test_new_weights_are_those_of_torch_not_memory(families):
    """Defect D13: the weight of a new convolution is drawn, and as nn.Conv2d draws it."""
    for dims, cls in enumerate(families, start=1):
        torch.manual_seed(3)
        layer = cls(6, 8, 3, groups=2)
        torch.manual_seed(3)
        plain = TORCH[dims](6, 8, 3, groups=2)
        assert torch.equal(layer.weight, plain.weight)
        assert torch.equal(layer.bias, plain.bias)


@pytest.mark.parametrize("ste", STE)
def test_latent_gradient_is_that_of_the_estimator(ste):
    layer = BinaryConv2d(4, 5, (3, 2), padding=1, padding_value=1, ste=ste, activation_bits=8)
    nn.init.normal_(layer.weight)
    x = torch.randn(3, 4, 6, 5)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().requires_grad_()
    value = straight_through(weight, layer.dequantize(), ste)
    z = convolve(fake_quantize_samples(x, 8, layer.geometry), value, layer.geometry, layer.bias.detach())
    z.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
@pytest.mark.parametrize("value", [0, 1])
def test_packed_gradients_are_those_of_training_form(bits, value):
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_value=value, activation_bits=bits)
    x = torch.randn(2, 4, 6, 5)

    def gradients():
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        return leaf.grad, layer.bias.grad.clone()

    training = gradients()
    layer.pack()
    for packed, expected in zip(gradients(), training, strict=True):
        torch.testing.assert_close(packed, expected, rtol=1e-3, atol=1e-3)
    through = functional.binary_conv(leaf := x.clone().requires_grad_(), layer.packed_weight, layer.geometry,
                                     layer.bias, bits)  # fmt: skip
    through.square().sum().backward()
    torch.testing.assert_close(leaf.grad, training[0], rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_layer_before_a_packed_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), TernaryConv2d(4, 2, 3).pack())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[1].bias.grad.abs().sum() > 0


def test_a_frozen_packed_layer_makes_no_graph():
    layer = TernaryConv2d(4, 2, 3).pack().requires_grad_(False)
    assert not layer(torch.randn(1, 4, 5, 5)).requires_grad


@pytest.mark.parametrize("cls", IMAGES)
def test_training_lowers_the_loss_and_survives_packing(cls):
    torch.manual_seed(0)
    refit = {"refit": False} if cls is MultiTernaryConv2d else {}
    model = nn.Sequential(
        cls(1, 16, 3, padding=1, activation_bits=8, **refit), nn.ReLU(), cls(16, 1, 3, padding=1, **refit)
    )
    x = torch.randn(12, 1, 8, 8)
    y = F.avg_pool2d(x, 3, stride=1, padding=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        trained = F.mse_loss(model(x), y)
        for layer in (model[0], model[2]):
            layer.pack()
        torch.testing.assert_close(F.mse_loss(model(x), y), trained, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BinaryConv2d(0, 4, 3), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: BinaryConv2d(4, 4.0, 3), TypeError, "out_channels must be an integer"),
        (lambda: BinaryConv2d(4, 4, 0), ValueError, "kernel_size must be at least 1, got 0"),
        (
            lambda: BinaryConv2d(4, 4, (3,)),
            ValueError,
            r"kernel_size must be an int or 2 of them, got \(3,\)",
        ),
        (lambda: BinaryConv1d(4, 4, (3, 3)), ValueError, "kernel_size must be an int or 1 of them"),
        (lambda: BinaryConv2d(4, 4, "3"), TypeError, "kernel_size must be an integer, got '3'"),
        (lambda: BinaryConv2d(4, 4, 3, stride=0), ValueError, "stride must be at least 1"),
        (lambda: BinaryConv2d(4, 4, 3, padding=-1), ValueError, "padding must be at least 0, got -1"),
        (lambda: BinaryConv2d(4, 4, 3, padding="reflect"), ValueError, "unknown padding 'reflect'"),
        (lambda: BinaryConv2d(4, 4, 3, 2, "same"), ValueError, r"needs stride 1, got \(2, 2\)"),
        (lambda: BinaryConv2d(4, 4, 3, dilation=(1, 0)), ValueError, "dilation must be at least 1, got 0"),
        (lambda: BinaryConv2d(4, 4, 3, groups=3), ValueError, "in_channels = 4 must be a multiple of groups"),
        (lambda: BinaryConv2d(6, 4, 3, groups=3), ValueError, "out_channels = 4 must be a multiple of gro"),
        (lambda: BinaryConv2d(4, 4, 3, padding_value=2), ValueError, "padding_value must be -1, 0 or"),
        (lambda: BinaryConv2d(4, 4, 3, padding_value="zeros"), ValueError, "padding_value must be"),
        (lambda: BinaryConv2d(4, 4, 3, activation_bits=4), ValueError, "activation_bits=4"),
        (lambda: TernaryConv2d(4, 4, 3, activation_bits=3), ValueError, "activation_bits=3, TernaryConv2d"),
        (lambda: TernaryConv2d(4, 4, 3, rule="absmin"), ValueError, "rule"),
        (lambda: TernaryConv2d(4, 4, 3, format="base4"), ValueError, "did you mean 'base3'"),
        (lambda: MultiTernaryConv2d(4, 4, 3, k=0), ValueError, "k must be at least 1"),
        (lambda: BinaryConv2d(4, 4, 3, scale=None), ValueError, "unknown scale None"),
        (lambda: BinaryConv2d(4, 4, 3, dtype=torch.float64), TypeError, r"with \.float\(\) first"),
        (lambda: BinaryConv2d(4, 4, 3, group_size=8), TypeError, "group_size"),
        (lambda: TernaryConv(4, 4, 3), TypeError, "use TernaryConv1d, TernaryConv2d, TernaryConv3d"),
    ],
)
def test_wrong_construction_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 3, 8, 8), ValueError, "in_channels = 4 in its second dimension, got 3"),
        (torch.ones(8, 8), ValueError, "2 spatial dimensions"),
        (torch.ones(1, 2, 4, 8, 8), ValueError, "2 spatial dimensions"),
        (torch.ones(2, 4, 0, 8), ValueError, "no positions"),
        (torch.ones(2, 4, 8, 2), ValueError, "2 long in spatial dimension 1, the dilated kernel 3"),
        (torch.ones(2, 4, 8, 8, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.ones(2, 4, 8, 8, dtype=torch.float64), TypeError, "torch.float64"),
        ("image", TypeError, "must be a torch.Tensor, got str"),
    ],
)
def test_wrong_input_says_what_is_wrong(packed, x, error, message):
    layer = TernaryConv2d(4, 5, 3)
    layer = layer.pack() if packed else layer
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(error, match=message):
            layer(x)


def test_input_on_another_device_is_named():
    with torch.no_grad(), pytest.raises(ValueError, match="input is on meta, the packed weight on cpu"):
        TernaryConv2d(4, 5, 3).pack()(torch.ones(1, 4, 5, 5, device="meta"))


def test_attributes_are_those_of_torch():
    for padding in (0, (1, 2), "same", "valid"):
        options = {"padding": padding, "dilation": (1, 2), "groups": 2}
        layer, plain = BinaryConv2d(4, 6, (3, 1), **options), nn.Conv2d(4, 6, (3, 1), **options)
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        for name in names:
            assert getattr(layer, name) == getattr(plain, name), name
        assert layer.weight.shape == plain.weight.shape == layer.weight_shape
    assert type(BinaryConv2d(np.int64(4), np.int32(4), [3, 3]).in_channels) is int


def test_repr_tells_geometry_format_and_form():
    text = repr(MultiTernaryConv2d(8, 4, (3, 1), padding="same", padding_value=-1, groups=2, k=3).pack())
    for part in ("8, 4, kernel_size=(3, 1)", "padding='same', padding_value=-1", "groups=2, k=3", "packed"):
        assert part in text
    assert "padding" not in repr(BinaryConv2d(8, 4, 3))


def test_last_kernel_names_what_served():
    layer = BinaryConv2d(4, 5, 3, activation_bits=1)
    x = torch.randn(1, 4, 5, 5)
    layer(x)
    assert layer.last_kernel == "binary_conv/latent/torch"
    layer.pack()
    with native.backend("torch"):
        layer(x)
    assert layer.last_kernel == "binary_conv/binary/sign/reference/torch"


@pytest.mark.skipif(not native.available(), reason="no native library here")
@pytest.mark.parametrize("grad", [True, False])
def test_the_native_kernels_serve(grad):
    for cls, bits, kernel in (
        (BinaryConv2d, 1, "binary_conv/binary/sign/gemm"),
        (TernaryConv2d, 8, "ternary_conv/base3/int8/gemm"),
        (TernaryConv2d, 2, "ternary_conv/base3/ternary/gemm"),
        (TernaryConv2d, 1, "ternary_conv/base3/sign/gemm"),
        (TernaryConv2d, None, "ternary_conv/base3/float/decode+conv"),
    ):
        layer = cls(4, 5, 3, activation_bits=bits).pack()
        with torch.set_grad_enabled(grad):
            y = layer(torch.randn(1, 4, 5, 5))
        assert y.requires_grad is grad
        assert layer.last_kernel == f"{kernel}/{native.isa()}"


@pytest.mark.parametrize("name", ["kernel_size", "stride", "padding", "dilation", "groups", "padding_value"])
@pytest.mark.parametrize("cls", [BinaryConv2d, NBitConv2d])
def test_attributes_of_the_geometry_cannot_be_set(cls, name):
    """A stride that was set showed in ``repr`` and took no part in the forward."""
    layer = cls(4, 6, 3, padding="same")
    for attribute in (name, "geometry"):
        value = getattr(layer, attribute)
        with pytest.raises(AttributeError):
            setattr(layer, attribute, 2)
        assert getattr(layer, attribute) == value


@pytest.mark.skipif(not native.available(), reason="no native library: a C++ compiler builds it")
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("learns", [False, True])
def test_the_weight_is_described_once_whatever_the_call(bits, learns, monkeypatch):
    """Float activations and calls with gradients described it anew each time."""
    made = []
    real = native.prepare_conv

    def counted(*arguments):
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(native, "prepare_conv", counted)
    layer = TernaryConv2d(3, 4, 3, activation_bits=bits).pack()
    x = torch.randn(2, 3, 5, 5, requires_grad=learns)
    expected = reference(layer, x)
    for _ in range(3):
        y = layer(x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert len(made) == 1
    if learns:
        y.sum().backward()
        assert x.grad.abs().sum() > 0
    layer.bias = nn.Parameter(torch.ones(4))
    torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-4, atol=1e-5)
    assert len(made) == 2, "described again where a tensor is another"
