"""Binary linear layers of bitorch_engine: their function, and the defects of the original."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from binary_cases import PLAIN, SCALED, calibrated, sign
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.compat.bitorch_engine import (
    BMM,
    BinaryLinear,
    BinaryLinearBase,
    BinaryLinearCPP,
    BinaryLinearCuda,
    BinaryLinearCutlass,
    get_best_binary_implementation,
)


def expected(layer, weight, x):
    """The documented arithmetic, from the float ``weight``, in the order of the docstring."""
    x = x.float()
    if isinstance(layer, (BinaryLinearCuda, BinaryLinearCutlass)):
        dot = sign(x + layer.bias_a.detach()) @ sign(weight).T
        y = dot * layer.scale_a.detach() * layer.scale_w.detach()
    else:
        y = sign(x) @ sign(weight).T
    return y if layer.bias is None else y + layer.bias.detach()


@pytest.mark.parametrize(
    ("function", "leading", "defaults"),
    [
        (
            BinaryLinearBase,
            ["input_features", "out_features", "device", "dtype", "symmetric"],
            [None, torch.float32, True],
        ),
        (BinaryLinearCPP, ["input_features", "out_features", "device"], [None]),
        (BinaryLinearCuda, ["input_features", "out_features", "device", "dtype", "symmetric"], None),
        (BinaryLinearBase.generate_quantized_weight, ["self", "qweight_only"], [False]),
        (BinaryLinearBase.set_weight_data, ["self", "x"], []),
        (BinaryLinearBase.set_quantized_weight_data, ["self", "x"], []),
        (BinaryLinearBase.prepare_params, ["self"], []),
        (BinaryLinearBase.set_bits_binary_word, ["self", "num_bit"], []),
        (BinaryLinearCuda.set_activation, ["self", "x"], []),
        (BinaryLinearCuda.forward, ["self", "x", "bmm_type"], None),
        (BinaryLinearCuda.w_pack, ["weights", "bmm_type"], None),
        (BinaryLinearCutlass.select_gemm_kernel, ["self", "x"], []),
    ],
)
def test_signatures_of_the_original(function, leading, defaults):
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert [p.name for p in parameters] == leading
    if defaults is not None:
        assert [p.default for p in parameters if p.default is not p.empty] == defaults


def test_attributes_of_the_original():
    layer = BinaryLinearCuda(24, 5, bmm_type=BMM.BSTC32)
    assert (layer.input_features, layer.output_features, layer.bits_binary_word) == (24, 5, 8)
    assert (layer.in_features, layer.out_features, layer.symmetric) == (24, 5, True)
    assert layer.qweight is None
    assert layer.dtype == torch.float32
    assert layer.device == torch.device("cpu")
    assert layer.device_id == -1
    assert layer.bmm_type is BMM.BSTC32
    assert [member.value for member in BMM] == [1, 2, 3]
    assert layer.bias_a.tolist() == [0] * 24
    assert (layer.scale_a.item(), layer.scale_w.item()) == (0, 1)
    assert "scale_w" in dict(layer.named_buffers())
    cutlass = BinaryLinearCutlass(24, 5)
    assert isinstance(cutlass.scale_w, nn.Parameter)
    assert not cutlass.scale_w.requires_grad
    assert cutlass.gemm_kernel_id == 3
    layer.set_bits_binary_word(32)
    assert layer.bits_binary_word == 32
    with pytest.raises(ValueError, match="8, 16, 32, 64 bits, got 12"):
        layer.set_bits_binary_word(12)


def test_best_implementation():
    best = BinaryLinearCuda if torch.cuda.is_available() else BinaryLinearCPP
    assert get_best_binary_implementation() is BinaryLinear is best


# ---- forward ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    cls=st.sampled_from(PLAIN + SCALED),
    columns=st.integers(1, 70),
    rows=st.integers(1, 40),
    lead=st.lists(st.integers(0, 3), max_size=3),
    form=st.sampled_from(["train", "eval", "packed"]),
    strided=st.booleans(),
    bias=st.booleans(),
    scale=st.sampled_from(["tensor", "row"]),
)
def test_any_shape_and_stride(cls, columns, rows, lead, form, strided, bias, scale):
    """D3: the original overflows the heap where the outputs are no multiple of 4, and is wrong for
    strided inputs, for three dimensions and for widths that do not fill its words."""
    options = {"scale": scale} if cls in SCALED else {}
    layer = calibrated(cls, columns, rows, bias=bias, **options)
    weight = layer.weight.detach().clone()
    x = torch.randn(*lead, columns)
    if strided:
        x = torch.randn(*lead, columns, 2)[..., 1]
    if form != "train":
        layer.eval()
    if form == "packed":
        layer.generate_quantized_weight(qweight_only=True)
        assert layer.weight is None
    y = layer(x)
    assert y.shape == (*lead, rows)
    assert torch.equal(y, expected(layer, weight, x))


@pytest.mark.parametrize("cls", PLAIN + SCALED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("packed", [False, True])
def test_dtypes_round_once(cls, dtype, packed):
    """Every dot is 1003, which bfloat16 holds as 1004: the bias shows that rounding comes last."""
    layer = cls(1003, 3, bias=True)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(-1000)
        if cls in SCALED:
            layer.scale_a.fill_(1)
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    x = torch.ones(2, 1003, dtype=dtype)
    assert layer(x).dtype == dtype
    assert layer(x).tolist() == [[3, 3, 3]] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.float())
    assert y.dtype == torch.bfloat16
    assert y.tolist() == [[3, 3, 3]] * 2


@pytest.mark.parametrize("packed", [False, True])
def test_zero_is_positive_and_nan_shows(packed):
    """D14, forward: 0 and -0.0 count as +1 on both sides."""
    layer = BinaryLinearCPP(3, 2)
    layer.set_weight_data(torch.tensor([[0.0, -0.0, 1.0], [-1.0, 0.0, -1.0]]))
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    x = torch.tensor([[0.0, -0.0, 2.0], [-1.0, 0.0, -2.0], [1.0, torch.nan, 1.0]])
    y = layer(x)
    assert y[:2].tolist() == [[3, -1], [-1, 3]]
    assert torch.isnan(y[2]).all()


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 9, 64])
@pytest.mark.parametrize("bmm_type", list(BMM))
def test_every_kernel_name_and_batch_gives_the_same_numbers(rows, bmm_type):
    """D6: in the original packed weights and kernel disagree where the batch is no multiple of 8."""
    layer = calibrated(BinaryLinearCuda, 128, 8, bmm_type=bmm_type)
    x = torch.randn(rows, 128)
    unpacked = layer(x)
    packed = BinaryLinearCuda.w_pack(layer.weight, bmm_type)
    layer.generate_quantized_weight(qweight_only=True)
    assert torch.equal(layer.qweight, packed)
    for choice in (None, *BMM):
        assert torch.equal(layer.eval()(x, choice), unpacked)


def test_the_constructors_kernel_stays():
    """D6: in the original the default argument of forward overwrites it."""
    layer = BinaryLinearCuda(16, 4, bmm_type=BMM.BTC32)
    layer(torch.randn(3, 16))
    layer(torch.randn(3, 16), bmm_type=BMM.BSTC32)
    assert layer.bmm_type is BMM.BTC32
    with pytest.raises(TypeError, match=r"BMM\.ADAPTIVE, got 2"):
        layer(torch.randn(3, 16), bmm_type=2)


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_what_cannot_be_served_raises(cls):
    """D10: the original ends the process for dtypes and devices that it does not know."""
    layer = cls(16, 4)
    with pytest.raises(TypeError, match=r"got torch\.float64"):
        layer(torch.randn(2, 16, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        layer(torch.ones(2, 16, dtype=torch.int32))
    with pytest.raises(ValueError, match="in_features = 16, got 15"):
        layer(torch.randn(2, 15))
    with pytest.raises(TypeError, match=r"dtype must be .* got torch\.float64"):
        cls(16, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="out_features must be at least 1, got 0"):
        cls(16, 0)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        layer.generate_quantized_weight()


def test_kernel_selection_knows_every_device():
    """D10: the original ends the process on GPUs that are not in its table."""
    layer = BinaryLinearCutlass(16, 4)
    layer.select_gemm_kernel(torch.randn(3, 16))
    assert layer.gemm_kernel_id == 3
    with pytest.raises(ValueError, match="got 8"):
        layer.select_gemm_kernel(torch.randn(3, 8))


@pytest.mark.parametrize("columns", [16, 21])
def test_packed_inputs(columns):
    layer = BinaryLinearCPP(columns, 4)
    x = torch.randn(2, 3, columns)
    bits = BinaryLinearCuda.w_pack(x.reshape(6, columns)).reshape(2, 3, -1)
    assert torch.equal(layer(bits), layer(x))
    for wrong in (bits[..., 1:], torch.tensor(3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="bytes in the last dimension"):
            layer(wrong)
    with pytest.raises(TypeError, match=r"got torch\.uint8"):
        BinaryLinearCuda(columns, 4)(bits)


# ---- scales of the activations ------------------------------------------------------------------


@pytest.mark.parametrize("cls", SCALED)
@pytest.mark.parametrize(("symmetric", "factor"), [(True, 2), (False, 4)])
def test_the_first_training_batch_sets_the_scale(cls, symmetric, factor):
    layer = cls(40, 6, symmetric=symmetric)
    x = torch.randn(5, 40)
    y = layer(x)
    assert layer.scale_a.item() == pytest.approx(factor * x.abs().mean().item())
    assert torch.equal(y, sign(x) @ sign(layer.weight).T * layer.scale_a)
    before = layer.scale_a.item()
    layer(10 * x)
    assert layer.scale_a.item() == before


@pytest.mark.parametrize("cls", SCALED)
def test_eval_stores_nothing(cls):
    """In the original the first batch sets the scale in eval mode as well."""
    layer = cls(40, 6).eval()
    x = torch.randn(5, 40)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    y = layer(x)
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())
    own = 2 * x.abs().mean(1, keepdim=True)
    torch.testing.assert_close(y, sign(x) @ sign(layer.weight).T * own)
    assert torch.equal(layer(x[:1]), y[:1])


def test_a_batch_without_a_mean_does_not_set_the_scale():
    layer = BinaryLinearCuda(8, 3)
    assert layer(torch.empty(0, 8)).shape == (0, 3)
    assert layer(torch.zeros(2, 8)).tolist() == [[0, 0, 0]] * 2
    assert layer.scale_a.item() == 0
    with pytest.raises(ValueError, match="scale_a cannot be set from a batch with a mean magnitude of inf"):
        layer(torch.tensor([[torch.inf] * 8]))
    half = BinaryLinearCuda(8, 3, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"scale_a cannot be set .* huge values"):
        half(torch.full((2, 8), 6e4, dtype=torch.float16))  # twice the mean is beyond float16
    assert half.scale_a.item() == layer.scale_a.item() == 0
    layer(torch.ones(2, 8))
    assert layer.scale_a.item() == 2


def test_the_shift_is_added():
    layer = BinaryLinearCuda(8, 3)
    x = torch.randn(4, 8)
    with torch.no_grad():
        layer.bias_a.copy_(torch.arange(8.0))
    assert torch.equal(layer.set_activation(x), x + torch.arange(8.0))
    layer.reset_parameters()
    assert (layer.scale_a.item(), layer.bias_a.abs().sum().item()) == (0, 0)


# ---- other layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_linear_keeps_weight_and_bias(cls, dtype):
    """D17: the original's converters make fresh random layers without bias."""
    linear = nn.Linear(21, 6, dtype=dtype).eval()
    layer = cls.from_linear(linear)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    assert layer.weight is not linear.weight
    assert not layer.training
    assert layer.dtype == dtype
    x = torch.randn(5, 21)
    assert torch.equal(layer(x), expected(layer, linear.weight.float(), x))
    assert cls.from_linear(nn.Linear(21, 6, bias=False)).bias is None
    with pytest.raises(TypeError, match=r"takes an nn\.Linear, got Tanh"):
        cls.from_linear(nn.Tanh())


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_conversion_draws_nothing(nothing_drawn, cls):
    """It drew a weight and a bias that were overwritten, and moved the generator of whoever converts."""
    linear, x = nn.Linear(21, 6), torch.randn(5, 21)
    with nothing_drawn():
        layer = cls.from_linear(linear)
        clone = cls.create_clone_from(SimpleNamespace(layer=linear))
    weight = linear.weight.detach()
    for new in (layer, clone):
        assert torch.equal(new.bias, linear.bias)
        if cls in SCALED:
            assert (new.scale_a.item(), new.bias_a.abs().sum().item()) == (0, 0)
        y = new(x)
        assert torch.equal(y, expected(new, weight - weight.mean() if cls in SCALED else weight, x))


def test_clones_keep_the_weight():
    linear = nn.Linear(21, 6)
    clone = BinaryLinearCPP.create_clone_from(SimpleNamespace(layer=linear))
    assert clone.weight is None
    x = torch.randn(5, 21)
    assert torch.equal(clone(x), sign(x) @ sign(linear.weight).T + linear.bias)
    with pytest.raises(TypeError, match="Tanh has no weight"):
        BinaryLinearCPP.create_clone_from(SimpleNamespace(layer=nn.Tanh()))
