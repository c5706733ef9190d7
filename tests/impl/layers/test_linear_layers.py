"""Forward, gradients, construction and errors of the linear layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, functional
from impl.quantizers import STE, fake_quantize_activations, quantize_ternary

CLASSES = [BinaryLinear, BitLinear, MultiTernaryLinear]


def reference(layer, x):
    python = functional.binary_linear_python if layer.format == "binary" else functional.ternary_linear_python
    return python(x, layer.packed_weight, layer.bias, layer.activation_bits)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_integer_activations_are_exact(cls, bits, dtype):
    torch.manual_seed(0)
    layer = cls(45, 31, activation_bits=bits).pack()
    for shape in ((45,), (1, 45), (9, 45), (2, 3, 45)):
        x = torch.randn(shape, dtype=dtype)
        with torch.no_grad():
            y = layer(x)
        assert y.dtype == dtype
        assert torch.equal(y, reference(layer, x))


def test_sign_activations_are_exact():
    torch.manual_seed(0)
    layer = BinaryLinear(45, 31, activation_bits=1).pack()
    x = torch.randn(6, 45)
    x[0, :3] = torch.tensor([0.0, -0.0, -1.0])
    with torch.no_grad():
        assert torch.equal(layer(x), reference(layer, x))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_float_activations_are_close_for_few_and_many_rows(cls, rows):
    torch.manual_seed(0)
    layer = cls(200, 90).pack()
    x = torch.randn(rows, 200)
    with torch.no_grad():
        expected = F.linear(x.double(), layer.dequantize(dtype=torch.float64), layer.bias.double())
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_any_strides_and_empty_batches(cls):
    torch.manual_seed(0)
    wide = torch.randn(6, 48)
    inputs = {
        "every second column": wide[:, ::2],
        "every second row": wide[::2, :24],
        "right half": wide[:, 24:],
        "transposed": torch.randn(24, 5).t(),
        "repeated row": torch.randn(1, 24).expand(4, 24),
        "turned cube": torch.randn(3, 24, 2).transpose(1, 2),
        "no rows": torch.empty(0, 24),
        "no columns of rows": torch.empty(2, 0, 24),
    }
    layers = [cls(24, 10, activation_bits=8).pack(), cls(24, 10).pack(), cls(24, 10, activation_bits=8)]
    for layer in layers:
        for name, x in inputs.items():
            with torch.no_grad():
                y, expected = layer(x), layer(x.contiguous())
            assert y.shape == (*x.shape[:-1], 10), name
            # Only integer dot products are the same bits in any order of summation.
            exact = layer.is_packed and layer.activation_bits is not None
            torch.testing.assert_close(y, expected, **({"rtol": 0, "atol": 0} if exact else {}))


def test_a_bad_row_spoils_itself_only():
    layer = BitLinear(24, 10, activation_bits=8).pack()
    x = torch.randn(4, 24)
    with torch.no_grad():
        good = layer(x)
        x[1, 2], x[3, 0] = float("nan"), float("inf")
        y = layer(x)
    assert torch.isnan(y[[1, 3]]).all()
    assert torch.equal(y[[0, 2]], good[[0, 2]])


@pytest.mark.parametrize("cls", CLASSES)
def test_eval_before_packing_is_never_stale(cls):
    layer = cls(24, 10).eval()
    x = torch.randn(2, 24)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(-3)
        torch.testing.assert_close(layer(x) - layer.bias, -3 * (before - layer.bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ste", STE)
def test_latent_gradient_is_that_of_the_estimator(ste):
    from impl.quantizers import straight_through

    layer = BinaryLinear(12, 5, ste=ste)
    nn.init.normal_(layer.weight)
    x = torch.randn(3, 12)
    layer(x).sum().backward()
    weight = layer.weight.detach().requires_grad_()
    F.linear(x, straight_through(weight, layer._quantized(final=False), ste)).sum().backward()
    assert torch.equal(layer.weight.grad, weight.grad)
    assert torch.equal(layer.bias.grad, torch.full((5,), 3.0))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_packed_gradients_are_those_of_training_form(cls, bits):
    torch.manual_seed(0)
    layer = cls(40, 70, activation_bits=bits, **({"refit": False} if cls is MultiTernaryLinear else {}))
    x = torch.randn(2, 5, 40)

    def gradients():
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        return leaf.grad, layer.bias.grad.clone()

    training = gradients()
    layer.pack()
    for packed, expected in zip(gradients(), training, strict=True):
        torch.testing.assert_close(packed, expected, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_layer_before_a_packed_one():
    model = nn.Sequential(nn.Linear(8, 16), BitLinear(16, 4).pack())
    model(torch.randn(3, 8)).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0
    assert model[1].bias.grad.abs().sum() > 0


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_keeps_bias_dtype_and_mode(cls, dtype, bias):
    linear = nn.Linear(24, 10, bias=bias, dtype=dtype).eval()
    linear.weight.requires_grad_(False)
    before = linear.weight.clone()
    for pack in (True, False):
        layer = cls.from_linear(linear, pack=pack)
        assert layer.is_packed is pack
        assert not layer.training
        assert layer.weight_dtype == dtype
        if bias:
            assert torch.equal(layer.bias, linear.bias)
            assert layer.bias.dtype == dtype
            assert layer.bias.data_ptr() != linear.bias.data_ptr()
        else:
            assert layer.bias is None
        if not pack:
            assert torch.equal(layer.weight, linear.weight)
            assert not layer.weight.requires_grad
            nn.init.zeros_(layer.weight)
            assert torch.equal(linear.weight, before)
        assert layer(torch.randn(2, 24, dtype=dtype)).dtype == dtype
        assert layer.unpack().weight.dtype == dtype


def test_default_rules():
    linear = nn.Linear(24, 10)
    assert BitLinear(24, 10).rule == "absmean"
    assert BitLinear.from_linear(linear).rule == "optimal"
    assert BitLinear.from_linear(linear, pack=False).rule == "absmean"
    assert BitLinear.from_linear(linear, rule="twn").rule == "twn"
    expected = quantize_ternary(linear.weight, rule="absmax").dequantize()
    assert torch.equal(BitLinear.from_linear(linear, rule="absmax").dequantize(), expected)


def test_refit_on_packing_improves_k_ternary():
    layer = MultiTernaryLinear(64, 16, k=2)
    nn.init.normal_(layer.weight)
    weight = layer.weight.detach().clone()
    greedy = (layer.dequantize() - weight).norm()
    assert (layer.pack().dequantize() - weight).norm() < greedy


@pytest.mark.parametrize("cls", CLASSES)
def test_training_lowers_the_loss_and_survives_packing(cls):
    torch.manual_seed(0)
    model = nn.Sequential(cls(16, 64, activation_bits=8), nn.ReLU(), cls(64, 1))
    x = torch.randn(256, 16)
    y = x[:, :4].sum(1, keepdim=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BitLinear(0, 4), ValueError, "in_features must be at least 1, got 0"),
        (lambda: BitLinear(4, -1), ValueError, "out_features must be at least 1, got -1"),
        (lambda: BitLinear(4.0, 4), TypeError, "in_features must be an integer"),
        (lambda: MultiTernaryLinear(4, 4, k=0), ValueError, "k must be at least 1, got 0"),
        (lambda: MultiTernaryLinear(4, 4, k=17), ValueError, "k must be at most 16"),
        (lambda: BitLinear(4, 4, format="base4"), ValueError, "did you mean 'base3'"),
        (lambda: BitLinear(4, 4, rule="absmin"), ValueError, "rule"),
        (lambda: BitLinear(4, 4, activation_bits=3), ValueError, "activation_bits=3"),
        (lambda: BitLinear(4, 4, activation_bits=4), ValueError, "activation_bits=4"),
        (
            lambda: BinaryLinear(4, 4, activation_bits=True),
            TypeError,
            "activation_bits must be an int or None",
        ),
        (lambda: BitLinear(4, 4, activation_bits=8.0), TypeError, "got 8.0 \\(float\\)"),
        (lambda: BitLinear(True, 4), TypeError, "in_features must be an integer"),
        (lambda: BitLinear(4, 4, dtype=torch.float64), TypeError, r"with \.float\(\) first"),
        (lambda: BitLinear(4, 4, group_size=12), ValueError, "multiple of 8"),
        (lambda: BinaryLinear(4, 4, scale="column"), ValueError, "unknown scale 'column'"),
        (lambda: BinaryLinear(4, 4, scale=None), ValueError, "unknown scale None"),
        (lambda: BinaryLinear(4, 4, scale="tensor", group_size=8), ValueError, "excludes scale='tensor'"),
        (lambda: BinaryLinear(4, 4, ste="clamp"), ValueError, "did you mean 'clip'"),
        (lambda: BinaryLinear(4, 4, scale_dtype=torch.bfloat16), TypeError, "scale_dtype"),
        (lambda: BinaryLinear(4, 4, dtype=torch.int8), TypeError, "dtype must be"),
        (lambda: BitLinear.from_linear(nn.Conv1d(1, 1, 1)), TypeError, "takes an nn.Linear, got Conv1d"),
    ],
)
def test_wrong_construction_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 9), ValueError, "in_features = 8, got 9"),
        (torch.tensor(1.0), ValueError, "last dimension"),
        (torch.ones(2, 8, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.ones(2, 8, dtype=torch.float64), TypeError, "torch.float64"),
        (torch.ones(2, 8, dtype=torch.bool), TypeError, "torch.bool"),
    ],
)
def test_wrong_input_says_what_is_wrong(packed, x, error, message):
    layer = BitLinear(8, 4)
    layer = layer.pack() if packed else layer
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(error, match=message):
            layer(x)


@pytest.mark.parametrize("cls", CLASSES)
def test_numpy_integers_are_integers(cls):
    layer = cls(np.int64(8), np.int32(4)).pack()
    assert type(layer.in_features) is type(layer.out_features) is int
    assert layer(torch.ones(2, 8)).shape == (2, 4)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_either_form_takes_inputs_of_another_dtype_than_the_weight(cls, dtype):
    layer = cls(24, 10)
    x = torch.randn(3, 24, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    packed = layer.pack()(x)
    assert packed.dtype == dtype
    if cls is not MultiTernaryLinear:  # packing refits its components
        torch.testing.assert_close(packed, y, rtol=2e-2, atol=2e-2)


def test_input_on_another_device_is_named():
    with torch.no_grad(), pytest.raises(ValueError, match="input is on meta, the packed weight on cpu"):
        BitLinear(8, 4).pack()(torch.ones(2, 8, device="meta"))


def test_repr_tells_format_and_form():
    text = repr(MultiTernaryLinear(8, 4, k=3, group_size=8, activation_bits=8).pack())
    for part in (
        "in_features=8",
        "out_features=4",
        "k=3",
        "base3",
        "activation_bits=8",
        "group_size=8",
        "packed",
    ):
        assert part in text
    assert "training, ste=clip" in repr(BinaryLinear(8, 4))


def test_activations_are_quantised_in_training_form_too():
    layer = BitLinear(24, 10, activation_bits=8)
    x = torch.randn(3, 24)
    with torch.no_grad():
        expected = F.linear(fake_quantize_activations(x, 8), layer.dequantize(), layer.bias)
        torch.testing.assert_close(layer(x), expected)


def test_zero_counts_as_plus_one_forward_and_backward():
    layer = BinaryLinear(4, 2, bias=False, activation_bits=1)
    layer.weight.data = torch.tensor([[0.0, -0.0, 2.0, -2.0], [-1.0, 1.0, 0.0, -0.0]])
    signs = torch.tensor([[1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]])
    x = torch.tensor([[0.0, -0.0, -3.0, 1.0]], requires_grad=True)
    for _ in range(2):
        assert torch.equal(layer.W_binary, signs)
        x.grad = None
        layer(x).sum().backward()
        # |x| <= 2 mean|x| = 2 lets the gradient of the zeros pass, not that of -3.
        expected = (signs * layer.gamma[:, None]).sum(0) * torch.tensor([1.0, 1.0, 0.0, 1.0])
        torch.testing.assert_close(x.grad[0], expected)
        layer.pack()


def test_gradients_of_eager_calls_are_those_of_the_operator():
    torch.manual_seed(0)
    for bits in (None, 1, 2, 8):
        layer = BinaryLinear(20, 6, activation_bits=bits).pack()
        x = torch.randn(3, 20, requires_grad=True)
        eager = torch.autograd.grad(layer(x).square().sum(), (x, layer.bias))
        through = functional.binary_linear(x, layer.packed_weight, layer.bias, bits)
        operator = torch.autograd.grad(through.square().sum(), (x, layer.bias))
        for one, other in zip(eager, operator, strict=True):
            torch.testing.assert_close(one, other)
