"""Group-wise quantised linear layers: codes, GPTQ's layout, several widths, training."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.layers.nbit import GroupwiseLinear, MixedGroupwiseLinear
from impl.layers.nbit.gptq import pack_zeros, unpack_zeros
from impl.optim import DiodeMix


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 70),
    bits=st.integers(1, 8),
    group_size=st.sampled_from([-1, 1, 5, 8, 32, 100]),
    asym=st.booleans(),
    lead=st.lists(st.integers(0, 3), max_size=2),
)
def test_values_are_off_by_half_a_step_of_their_group(rows, cols, bits, group_size, asym, lead):
    linear = nn.Linear(cols, rows)
    layer = GroupwiseLinear.from_linear(linear, bits=bits, group_size=group_size, asym=asym)
    size = cols if group_size == -1 else group_size
    decoded = layer.dequantize()
    for begin in range(0, cols, size):
        group = linear.weight.detach()[:, begin : begin + size]
        step = (group.amax(1, keepdim=True) - group.amin(1, keepdim=True)) / (2**bits - 1)
        error = (decoded[:, begin : begin + size] - group).abs()
        assert bool((error <= step * 0.5001 + 1e-6).all())
    x = torch.randn(*lead, cols)
    torch.testing.assert_close(layer(x), F.linear(x, decoded, linear.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_product_rounds_as_one_of_its_dtype(dtype):
    linear = nn.Linear(70, 9)
    layer = GroupwiseLinear.from_linear(linear, group_size=16)
    x = torch.randn(5, 70).to(dtype)
    expected = x.double() @ layer.dequantize().t().double() + linear.bias.double()
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=70 * torch.finfo(dtype).eps)


def test_decoding_is_not_rounded_to_the_dtype_of_the_layer():
    layer = GroupwiseLinear(32, 4, bits=8)
    exact = layer.dequantize()
    assert torch.equal(layer.half().dequantize(), exact)
    assert torch.equal(layer.dequantize(torch.float16), exact.half())


@pytest.mark.parametrize("cls", [GroupwiseLinear, MixedGroupwiseLinear])
@pytest.mark.parametrize("bias", [True, False])
def test_conversion_draws_nothing(nothing_drawn, cls, bias):
    linear = nn.Linear(70, 9, bias=bias, dtype=torch.bfloat16).eval()
    linear.requires_grad_(False)
    with nothing_drawn():
        layer = cls.from_linear(linear, group_size=16)
    assert layer.weight.dtype == torch.bfloat16
    assert not layer.training
    assert (layer.bias is not None) == bias
    if bias:
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias.data_ptr() != linear.bias.data_ptr()
        assert (layer.bias.dtype, layer.bias.requires_grad) == (torch.bfloat16, False)
    assert bool(layer.dequantize().isfinite().all())


def test_memory_is_that_of_the_codes():
    layer = GroupwiseLinear(1024, 256, bias=False, bits=4, group_size=128)
    assert layer.weight.codes.nbytes == 1024 * 256 // 2
    assert layer.stored_bytes < 0.16 * 1024 * 256 * 4


def test_gradients_and_training_without_a_float_copy():
    torch.manual_seed(0)
    target = nn.Linear(40, 6)
    layer = GroupwiseLinear(40, 6, bits=8, group_size=8)
    x = torch.randn(128, 40, requires_grad=True)
    y = layer(x)
    towards = torch.randn_like(y)
    y.backward(towards)
    torch.testing.assert_close(x.grad, towards @ layer.dequantize())
    torch.testing.assert_close(layer.weight.grad[:40], x.detach().t() @ towards)
    assert not layer.weight.grad[40:].any()
    optimizer = DiodeMix(layer.parameters(), lr=2e-2, betas=(0.9, 0.99))
    losses = []
    for _ in range(30):
        loss = F.mse_loss(layer(x.detach()), target(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# ---- GPTQ's layout --------------------------------------------------------------------------


def gptq_reference(state, bits):
    """The decoding that GPTQ's format prescribes, bit by bit."""
    mask = (1 << bits) - 1

    def field(words, index):
        stream = sum((int(word) & 0xFFFFFFFF) << 32 * place for place, word in enumerate(words))
        return stream >> bits * index & mask

    in_features, out_features = state["qweight"].shape[0] * 32 // bits, state["qweight"].shape[1]
    weight = torch.empty(in_features, out_features)
    for i in range(in_features):
        block, place = divmod(i, 32)
        group = int(state["g_idx"][i])
        for o in range(out_features):
            code = field(state["qweight"][block * bits : (block + 1) * bits, o], place)
            zero = field(state["qzeros"][group], o) + 1
            weight[i, o] = float(state["scales"][group, o]) * (code - zero)
    return weight


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_in_and_out(bits):
    torch.manual_seed(bits)
    layer = GroupwiseLinear(64, 32, bits=bits, group_size=16, asym=True)
    weight = torch.randn(64, 32)
    layer.quantize_(weight, whole_zeros=True)
    state = layer.to_gptq()
    assert state["qweight"].shape == (64 // 32 * bits, 32)
    assert state["qzeros"].shape == (4, bits)
    assert state["qzeros"].dtype == state["g_idx"].dtype == torch.int32
    torch.testing.assert_close(layer.dequantize().t(), gptq_reference(state, bits))
    again = GroupwiseLinear.from_gptq(**state, bits=bits)
    x = torch.randn(3, 64)
    assert torch.equal(again(x), layer(x))
    assert torch.equal(again.to_gptq()["qweight"], state["qweight"])
    step = layer.weight.scales[torch.arange(64) // 16]
    assert bool(((layer.dequantize().t() - weight).abs() <= step * 1.001).all())


def test_gptq_with_features_out_of_order():
    torch.manual_seed(0)
    layer = GroupwiseLinear(64, 8, bits=4, group_size=32, asym=True)
    layer.quantize_(torch.randn(64, 8), whole_zeros=True)
    state = layer.to_gptq()
    state["g_idx"] = state["g_idx"][torch.randperm(64)]
    again = GroupwiseLinear.from_gptq(**state, bits=4)
    torch.testing.assert_close(again.dequantize().t(), gptq_reference(state, 4))
    assert torch.equal(again.to_gptq()["g_idx"], state["g_idx"])


def test_weights_on_one_side_of_zero_have_whole_zeros_too():
    for weight in (torch.rand(32, 4) + 1, -torch.rand(32, 4) - 1, torch.zeros(32, 4)):
        layer = GroupwiseLinear(32, 4, bits=4, asym=True)
        layer.quantize_(weight, whole_zeros=True)
        torch.testing.assert_close(layer.dequantize().t(), weight, rtol=0, atol=0.08)
        assert layer.to_gptq()["qzeros"].shape == (1, 4)


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    offset=st.integers(0, 1),
    groups=st.integers(1, 3),
    columns=st.integers(1, 70),
)
@settings(max_examples=30, deadline=None)
def test_zeros_round_trip(bits, offset, groups, columns):
    zeros = torch.randint(offset, 2**bits + offset, (groups, columns)).float()
    packed = pack_zeros(zeros, bits, offset=offset)
    assert torch.equal(unpack_zeros(packed, bits, columns, offset=offset).float(), zeros)


# ---- several widths -------------------------------------------------------------------------


def test_important_inputs_get_the_wide_codes():
    torch.manual_seed(0)
    linear = nn.Linear(128, 16, bias=False)
    importance = torch.ones(128)
    importance[::4] = 1e4
    layer = MixedGroupwiseLinear.from_linear(
        linear, bits=(8, 4, 2), proportions=(0.25, 0.25, 0.5), group_size=16, importance=importance
    )
    assert layer.regions == ((32, 8), (32, 4), (64, 2))
    assert layer.bits_per_weight == 4.0
    assert set(layer.weight.order[:32].tolist()) == set(range(0, 128, 4))
    error = (layer.dequantize() - linear.weight).abs().amax(0)
    assert error[::4].max() < 0.002 < error.max()
    plain = MixedGroupwiseLinear.from_linear(linear, bits=(8, 2), proportions=(0.5, 0.5))
    norms = linear.weight.detach().square().sum(0)
    assert norms[plain.weight.order[:64]].min() >= norms[plain.weight.order[64:]].max()


@settings(max_examples=30, deadline=None)
@given(
    cols=st.integers(1, 200),
    bits=st.sampled_from([(4, 2), (8, 6, 5, 4, 3, 2), (3,), (6, 5)]),
    group_size=st.sampled_from([-1, 7, 32, 64]),
)
def test_any_number_of_inputs(cols, bits, group_size):
    linear = nn.Linear(cols, 3)
    layer = MixedGroupwiseLinear.from_linear(
        linear, bits=bits, proportions=[1 / len(bits)] * len(bits), group_size=group_size
    )
    x = torch.randn(2, cols)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantize(), linear.bias))
    error = (layer.dequantize() - linear.weight).abs().max()
    assert error <= linear.weight.detach().abs().max() * 2 / (2 ** min(bits) - 1) * 0.51


def test_rows_that_only_fill_up_take_the_narrow_codes():
    layer = MixedGroupwiseLinear.from_linear(nn.Linear(40, 3), bits=(8, 2))
    assert layer.regions == ((32, 8), (32, 2))
    assert layer.weight.order[:32].max() < 40


# ---- states and refusals --------------------------------------------------------------------


def layers():
    return [
        GroupwiseLinear(70, 9, bits=3, group_size=16),
        GroupwiseLinear(64, 9, bias=False, asym=True),
        MixedGroupwiseLinear(96, 9, bits=(6, 2), group_size=24),
    ]


@pytest.mark.parametrize("index", range(3))
def test_states_hold_plain_tensors_and_load_strictly(index):
    layer, twin = layers()[index], layers()[index]
    state = layer.state_dict()
    assert all(type(tensor) is torch.Tensor for tensor in state.values())
    x = torch.randn(2, layer.in_features)
    assert not torch.equal(twin(x), layer(x))
    parameter = twin.weight
    twin.load_state_dict(state)
    assert torch.equal(twin(x), layer(x))
    if index < 2:  # laid out alike: an optimizer keeps its parameter
        assert twin.weight is parameter
    missing = {key: value for key, value in state.items() if key != "zeros"}
    with pytest.raises(RuntimeError, match=r'Missing key.*"zeros"'):
        twin.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"codes"'):
        twin.load_state_dict({**state, "codes": state["qweight"]})
    model = nn.Sequential(nn.Linear(4, layer.in_features), layer)
    copy = nn.Sequential(nn.Linear(4, layer.in_features), layers()[index])
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy[1](x), layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": torch.tensor([2, 0, 70, 9, 96, 3])}, "version 2, this release reads 1"),
        ({"layout": torch.tensor([1, 1, 70, 9, 96, 3])}, "asym True, this layer False"),
        ({"layout": torch.tensor([1, 0, 71, 9, 96, 3])}, "in_features 71"),
        ({"layout": torch.tensor([1, 0, 70, 9, 96, 4])}, r"\(96, 4\)"),
        ({"layout": torch.zeros(5)}, "layout must be int64"),
        ({"qweight": torch.zeros(8, 9, dtype=torch.int32)}, "multiples of 3, got 8"),
        ({"qweight": torch.zeros(9, 9)}, "multiple of 32|drop them"),
        ({"scales": torch.full((5, 9), math.nan)}, "scales must be finite"),
        ({"zeros": torch.zeros(5, 9, dtype=torch.float16)}, "zeros must be finite float32"),
        ({"scales": torch.ones(4, 9)}, "4 groups, this layer 5"),
        ({"order": torch.zeros(96, dtype=torch.int32)}, "permutation"),
        ({"groups": torch.full((96,), 7, dtype=torch.int32)}, "scales must have shape"),
    ],
)
def test_damaged_states(change, message):
    layer = GroupwiseLinear(70, 9, bits=3, group_size=16)
    before = layer.dequantize()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**layer.state_dict(), **change})
    assert torch.equal(layer.dequantize(), before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: GroupwiseLinear(4, 4, bits=9), ValueError, "1 to 8, got 9"),
        (lambda: GroupwiseLinear(4, 4, group_size=0), ValueError, "group_size"),
        (lambda: GroupwiseLinear(4, 4, dtype=torch.float64), TypeError, "float64"),
        (lambda: GroupwiseLinear(4, 4).double(), TypeError, "float64"),
        (lambda: GroupwiseLinear(4, 4)(torch.ones(5)), ValueError, "in_features = 4, got 5"),
        (lambda: GroupwiseLinear(4, 3).quantize_(torch.ones(3, 4)), ValueError, r"\[4, 3\], got \[3, 4\]"),
        (lambda: GroupwiseLinear(4, 3).quantize_(torch.full((4, 3), math.nan)), ValueError, "NaN"),
        (lambda: GroupwiseLinear(4, 3).quantize_(torch.ones(4, 3), whole_zeros=True), ValueError, "asym"),
        (lambda: GroupwiseLinear(32, 3).to_gptq(), ValueError, "asym=True"),
        (lambda: GroupwiseLinear(33, 3, asym=True).to_gptq(), ValueError, "multiples of 32"),
        (lambda: GroupwiseLinear(32, 3, asym=True).to_gptq(), ValueError, "whole_zeros=True"),
        (lambda: MixedGroupwiseLinear(64, 3, bits=(2, 4)), ValueError, "descending"),
        (lambda: MixedGroupwiseLinear(64, 3, bits=(7, 4)), ValueError, "descending numbers of"),
        (lambda: MixedGroupwiseLinear(64, 3, proportions=(0.5, 0.6)), ValueError, "sum to 1"),
        (
            lambda: MixedGroupwiseLinear.from_linear(nn.Linear(64, 3), importance=torch.ones(3)),
            ValueError,
            "importance",
        ),
        (
            lambda: GroupwiseLinear.from_gptq(torch.zeros(8, 8), torch.zeros(1, 1), torch.ones(1, 8), bits=4),
            ValueError,
            "qweight must be int32",
        ),
        (lambda: pack_zeros(torch.tensor([[0.0]]), 4), ValueError, "offset 1 lie in 1 .. 16, got 0 .. 0"),
        (lambda: unpack_zeros(torch.zeros(1, 1, dtype=torch.int32), 4, 9), ValueError, r"\[groups, 2\]"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
