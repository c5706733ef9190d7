"""n-bit and mixed-precision parameters: codes, layouts, and AdamW through integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.optim import GaLoreProjector
from impl.parameters import MPQWeightParameter, nBitConvParameter, nBitLinearParameter
from impl.parameters.bitstream import pack_words, unpack_words
from impl.parameters.rules import dithered

ROWS = [32, 32, 32, 64, 64, 96]  # 32 rows of 8 bits, 32 of 4, 32 of 2


def make(kind, weight):
    """A parameter of ``kind`` from a matrix [96, n]."""
    if kind == "nbit":
        return nBitLinearParameter(weight)
    if kind == "mpq":
        return MPQWeightParameter(weight, w_bit=8, group_size=32)
    if kind == "mpq-asym":
        return MPQWeightParameter(weight, w_bit=8, group_size=32, asym=True)
    return MPQWeightParameter(weight, rows=ROWS, group_size=32)


KINDS = ["nbit", "mpq", "mpq-asym", "mbwq"]


def state_of(parameter, projector=None):
    short, long = parameter.initial_state(projector=projector)
    return {"exp_avg_s": short, "exp_avg_l": long, "step": torch.zeros(())}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_words_of_decoded_values_are_the_words(kind):
    parameter = make(kind, torch.randn(96, 5))
    before = parameter.codes.clone()
    assert torch.equal(parameter.nearest_words(parameter.dequantize()), before)
    with torch.no_grad():
        parameter.scales[0] = 0  # where every code has the same value
    again = parameter.nearest_words(parameter.dequantize())
    assert torch.equal(parameter.codes, before)
    words = 8  # of the first group: 32 rows of 8 bits  # of the first group, which has 8 bits in every kind
    assert torch.equal(again[words:], before[words:])
    value = parameter.dequantize()
    parameter.codes.copy_(again)
    assert torch.equal(parameter.dequantize(), value)


def test_the_scale_comes_from_the_largest_magnitude():
    """D8: with the largest value as range, -10 would saturate and all-negative weights would fail."""
    parameter = nBitLinearParameter(torch.tensor([[-10.0, -1.0, 0.5, 1.0], [-4.0, -3.0, -2.1, -1.0]]))
    assert parameter.codes.tolist() == [[-127, -13, 6, 13], [-127, -95, -67, -32]]
    torch.testing.assert_close(parameter.scales, torch.tensor([10.0, 4.0]) / 127)
    gradient = torch.full((2, 4), -3.0)
    state = state_of(parameter)
    nBitLinearParameter.update(parameter, **state, grad=gradient, lr=0.1, correct_bias=True)
    torch.testing.assert_close(state["exp_avg_s"], gradient * 0.01)


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(1, 6), cols=st.integers(1, 12), seed=st.integers(0, 9))
def test_values_are_off_by_half_a_code_at_most(bits, rows, cols, seed):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    parameter = nBitLinearParameter(weight, bits=bits)
    half = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1) / 2
    assert bool(((parameter.dequantize() - weight).abs() <= half * 1.0001).all())


@settings(max_examples=30, deadline=None)
@given(bits=st.integers(1, 8), blocks=st.integers(1, 3), cols=st.integers(1, 4), seed=st.integers(0, 9))
def test_words_round_trip(bits, blocks, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (32 * blocks, cols), generator=generator, dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (blocks * bits, cols)
    assert torch.equal(unpack_words(words, bits), codes)
    # Oracle: one integer of 32 * bits bits, code 0 in the lowest of them.
    stream = sum(int(code) << bits * j for j, code in enumerate(codes[:32, 0]))
    first = [(stream >> 32 * word) & 0xFFFFFFFF for word in range(bits)]
    assert [int(word) & 0xFFFFFFFF for word in words[:bits, 0]] == first


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradient_and_decay_nothing_changes(kind):
    torch.manual_seed(0)
    parameter = make(kind, torch.randn(96, 5))
    before = {name: getattr(parameter, name).clone() for name in parameter._tensors}
    state = state_of(parameter)
    for _ in range(20):
        type(parameter).update(parameter, **state, grad=torch.zeros(96, 5), lr=0.1)
    for name, tensor in before.items():
        assert torch.equal(getattr(parameter, name), tensor), name


@pytest.mark.parametrize("kind", ["nbit", "mpq", "mpq-asym"])
@pytest.mark.parametrize("correct_bias", [True, None])
def test_the_update_is_adamw(kind, correct_bias):
    """lr, weight_decay, betas, eps and correct_bias against torch.optim.AdamW on the decoded values."""
    torch.manual_seed(0)
    parameter = make(kind, torch.randn(96, 5))
    options = {"lr": 5e-2, "weight_decay": 0.3, "eps": 1e-3}
    start = parameter.dequantize()
    gradients = [torch.randn(96, 5) for _ in range(10)]
    state = state_of(parameter)
    for gradient in gradients:
        type(parameter).update(
            parameter, **state, grad=gradient, beta1=0.8, beta2=0.9, correct_bias=correct_bias, **options
        )
    if correct_bias:
        reference = nn.Parameter(start.clone())
        adamw = torch.optim.AdamW([reference], betas=(0.8, 0.9), **options)
        for gradient in gradients:
            reference.grad = gradient
            adamw.step()
        expected = reference.detach()
    else:
        expected, mean, square = start.clone(), torch.zeros(96, 5), torch.zeros(96, 5)
        for gradient in gradients:
            mean = 0.8 * mean + 0.2 * gradient
            square = 0.9 * square + 0.1 * gradient**2
            expected = expected * (1 - 5e-2 * 0.3) - 5e-2 * mean / (square.sqrt() + 1e-3)
    moved = (expected - start).norm()
    assert (parameter.dequantize() - expected).norm() < 0.25 * moved
    assert (start - expected).norm() > 0.05 * start.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_below_half_a_code_are_not_lost(kind):
    """Rounded to the nearest code, a small lr would never change anything."""
    torch.manual_seed(0)
    parameter = make(kind, torch.randn(96, 5))
    start = parameter.dequantize()
    state = state_of(parameter)
    for _ in range(400):
        type(parameter).update(
            parameter, **state, grad=torch.ones(96, 5), lr=1e-4, beta1=0.0, beta2=0.0, eps=0.0
        )
    moved = (parameter.dequantize() - start).mean().item()
    assert moved == pytest.approx(-400 * 1e-4, rel=0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_grow_out_of_their_range(kind):
    parameter = make(kind, torch.linspace(-1, 1, 480).view(96, 5))
    state = state_of(parameter)
    for _ in range(300):
        type(parameter).update(parameter, **state, grad=-torch.ones(96, 5), lr=1e-2, beta1=0.0, beta2=0.0)
    assert parameter.dequantize().max().item() == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("kind", ["nbit", "mpq"])
def test_the_projector_keeps_the_averages_small(kind):
    """The seed's n-bit rule failed on projected gradients."""
    torch.manual_seed(0)
    parameter = make(kind, torch.randn(96, 5))
    projector = GaLoreProjector(rank=2, scale=0.5)
    start, state = parameter.dequantize(), state_of(parameter, projector)
    assert state["exp_avg_s"].shape == state["exp_avg_l"].shape == (96, 2)
    gradient = torch.randn(96, 1) @ torch.randn(1, 5)
    for _ in range(40):
        type(parameter).update(
            parameter,
            **state,
            grad=gradient,
            lr=1e-2,
            eps=1e-2,
            projector=projector,
            correct_bias=True,
        )
    change = parameter.dequantize() - start
    assert (change * gradient).sum() < 0
    singular = torch.linalg.svdvals(change)
    assert singular[1:].norm() < 0.5 * singular[0]


def test_the_convolution_parameter_updates():
    parameter = nBitConvParameter(torch.randn(4, 3, 2, 3))
    start, state = parameter.dequantize(), state_of(parameter)
    for _ in range(10):
        nBitConvParameter.update(parameter, **state, grad=torch.ones(4, 3, 2, 3), lr=1e-2, correct_bias=True)
    assert (parameter.dequantize() - start).mean() == pytest.approx(-0.1, rel=0.2)


def test_rounding_is_right_in_the_mean_and_keeps_integers():
    zero, steps = torch.zeros(50), range(1, 401)
    for value in (0.0, 255.0, -127.0):
        whole = torch.full((50,), value)
        assert all(torch.equal(dithered(whole, zero, step), whole) for step in steps)
    for part in (0.3, 0.01, -0.2):
        rounded = torch.stack([dithered(zero, zero + part, step) for step in steps])
        assert set(rounded.unique().tolist()) <= {math.floor(part), math.floor(part) + 1.0}
        torch.testing.assert_close(rounded.mean(0), zero + part, rtol=0, atol=0.02)


# ---- mixed precision ------------------------------------------------------------------------


@pytest.mark.parametrize("asym", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_words_scales_and_zeros_decode_to_the_formula(asym, bits):
    torch.manual_seed(0)
    codes = torch.randint(0, 2**bits, (64, 6))
    scales, zeros = torch.rand(2, 6) + 0.1, torch.rand(2, 6)
    parameter = MPQWeightParameter(
        pack_words(codes, bits), scales=scales, zeros=zeros, w_bit=bits, group_size=32, asym=asym
    )
    group = torch.arange(64) // 32
    expected = scales[group] * (codes - zeros[group]) if asym else scales[group] * codes - zeros[group]
    torch.testing.assert_close(parameter.dequantize(), expected)
    assert torch.equal(parameter.integers(), codes.to(torch.uint8))
    assert parameter.codes.nbytes == 64 * 6 * bits // 8


def test_groups_and_permutations():
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (64, 3))
    scales, zeros = torch.rand(2, 3) + 0.1, torch.rand(2, 3)
    shared = {"scales": scales, "zeros": zeros, "w_bit": 4}
    order = torch.randperm(64)
    by_feature = torch.arange(64) % 2
    parameter = MPQWeightParameter(pack_words(codes[order], 4), g_idx=by_feature, q_perm=order, **shared)
    expected = scales[by_feature] * codes - zeros[by_feature]
    torch.testing.assert_close(parameter.dequantize(), expected)
    by_row = by_feature[order]
    pairs = torch.stack([by_row, torch.arange(64, 0, -1)], 1).flatten().to(torch.int16)
    for group_map in (by_row, pairs):
        same = MPQWeightParameter(pack_words(codes[order], 4), q_group_map=group_map, q_perm=order, **shared)
        torch.testing.assert_close(same.dequantize(), expected)


def test_regions_of_several_widths():
    torch.manual_seed(0)
    parameter = MPQWeightParameter(torch.randn(96, 4), rows=ROWS, group_size=32)
    assert parameter.regions == ((32, 8), (32, 4), (32, 2))
    assert parameter.codes.shape == (8 + 4 + 2, 4)
    again = MPQWeightParameter(
        parameter.codes,
        scales=parameter.scales,
        zeros=parameter.zeros,
        rows=ROWS,
        group_size=32,
        layer_type=2,
    )
    assert torch.equal(again.dequantize(), parameter.dequantize())


def test_quantised_statistics_are_decoded():
    integers = torch.tensor([[3, 5], [7, 9]], dtype=torch.uint8)
    own_zeros, own_scales = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])
    parameter = MPQWeightParameter(
        pack_words(torch.ones(64, 2), 4),
        scales=integers,
        zeros=torch.zeros(2, 2),
        w_bit=4,
        group_size=32,
        qscales_zeros=own_zeros,
        qscales_scales=own_scales,
    )
    torch.testing.assert_close(parameter.scales, torch.tensor([[0.2, 0.4], [1.0, 1.4]]))


def test_the_privileged_gradient_goes_first():
    parameter = MPQWeightParameter(torch.randn(32, 3), w_bit=8, privileged_grad=torch.ones(32, 3))
    parameter.grad = -torch.ones(32, 3)
    start = parameter.dequantize()
    MPQWeightParameter.update(parameter, **state_of(parameter), lr=0.1, correct_bias=True)
    assert (parameter.dequantize() - start).mean() == pytest.approx(-0.1, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_refused(kind, bad):
    """Integers cannot show them: codes and averages would be garbage from then on, in silence."""
    parameter = make(kind, torch.randn(96, 5))
    before, state = parameter.dequantize(), state_of(parameter)
    gradient = torch.ones(96, 5)
    gradient[3, 2] = gradient[90, 0] = bad
    with pytest.raises(ValueError, match="holds 2 NaN or infinite values of 480"):
        type(parameter).update(parameter, **state, grad=gradient)
    assert torch.equal(parameter.dequantize(), before)
    assert not state["exp_avg_s"].any()
    assert state["step"].item() == 0


def test_averages_of_squares_are_not_kept_in_float16():
    """Squares of gradients of 1e-4 are zero there, and steps divided by it explode."""
    parameter = nBitLinearParameter(torch.randn(4, 6))
    short, long = parameter.initial_state(torch.float16)
    with pytest.raises(ValueError, match=r"torch\.float16.* use torch\.bfloat16"):
        nBitLinearParameter.update(parameter, short, long, torch.zeros(()), grad=torch.ones(4, 6))


@pytest.mark.parametrize("options", [{"w_bit": 4, "group_size": 32}, {"rows": ROWS, "group_size": 32}])
def test_mixed_precision_on_the_meta_device(options):
    torch.manual_seed(0)
    weight = torch.randn(96, 5)
    module, real = nn.Module(), nn.Module()
    module.weight = MPQWeightParameter(weight.to("meta"), **options)
    real.weight = MPQWeightParameter(weight, **options)
    assert module.weight.is_meta
    assert module.weight.regions == real.weight.regions
    module.to_empty(device="cpu").load_state_dict(real.state_dict())
    assert torch.equal(module.weight.dequantize(), real.weight.dequantize())


WORDS = torch.zeros(8, 3, dtype=torch.int32)
ONES = torch.ones(1, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MPQWeightParameter(), ValueError, "non-empty matrix"),
        (lambda: MPQWeightParameter(WORDS.long(), w_bit=4), TypeError, "int64"),
        (lambda: MPQWeightParameter(WORDS, scales=ONES, zeros=ONES), ValueError, "w_bit must lie in 1 .. 8"),
        (lambda: MPQWeightParameter(WORDS, scales=ONES, zeros=ONES, w_bit=3), ValueError, "multiples of 3"),
        (lambda: MPQWeightParameter(WORDS, zeros=ONES, w_bit=4), ValueError, "need scales"),
        (
            lambda: MPQWeightParameter(WORDS, scales=ONES, zeros=ONES.T, w_bit=4),
            ValueError,
            "zeros must have",
        ),
        (lambda: MPQWeightParameter(torch.randn(33, 3), w_bit=4), ValueError, "multiple of 32"),
        (lambda: MPQWeightParameter(torch.randn(32, 3), w_bit=4, scales=ONES), ValueError, "drop them"),
        (lambda: MPQWeightParameter(torch.full((32, 3), math.inf), w_bit=4), ValueError, "NaN or infinite"),
        (lambda: MPQWeightParameter(torch.randn(32, 3), w_bit=4, group_size=0), ValueError, "group_size"),
        (lambda: MPQWeightParameter(torch.randn(32, 3), w_bit=4, layer_type=3), ValueError, "layer_type"),
        (lambda: MPQWeightParameter(torch.randn(64, 3), rows=[64] * 5), ValueError, "six ascending"),
        (lambda: MPQWeightParameter(torch.randn(64, 3), rows=[32] * 6), ValueError, "have 32 rows, got 64"),
        (
            lambda: MPQWeightParameter(torch.randn(96, 3), rows=ROWS, group_size=64),
            ValueError,
            "rows of two widths",
        ),
        (
            lambda: MPQWeightParameter(torch.randn(32, 3), w_bit=4, q_perm=torch.zeros(32)),
            ValueError,
            "permutation",
        ),
        (lambda: nBitLinearParameter(torch.ones(2, 2), bits=9), ValueError, "2 to 8"),
        (lambda: nBitLinearParameter(torch.tensor([[-8]], dtype=torch.int8), bits=4), ValueError, "4 bits"),
        (lambda: nBitLinearParameter(torch.ones(2, 2), scales=torch.ones(2)), ValueError, "drop one"),
        (lambda: nBitConvParameter(torch.ones(2, 2)), ValueError, "dimensions"),
    ],
)
def test_operands_that_do_not_belong_together(call, error, message):
    with pytest.raises(error, match=message):
        call()
