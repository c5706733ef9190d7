"""Integer codes: bytes, exact sums, and LSQ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.layers.nbit.activations import LearnedStep, quantize_dynamic, quantize_learned
from impl.layers.nbit.integers import exact_dtype, exact_matmul, largest_code, pack_codes, unpack_codes
from impl.quantizers import quantize_activations


@settings(max_examples=40, deadline=None)
@given(bits=st.integers(2, 8), rows=st.integers(1, 5), cols=st.integers(1, 19), seed=st.integers(0, 9))
def test_bytes_round_trip(bits, rows, cols, seed):
    high = largest_code(bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-high - 1, high + 1, (rows, cols), generator=generator, dtype=torch.int8)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, math.ceil(cols / 2) if bits <= 4 else cols)
    assert torch.equal(unpack_codes(packed, cols, bits), codes)


def test_nibbles_lie_low_first_in_twos_complement():
    assert pack_codes(torch.tensor([[1, -1, -8]], dtype=torch.int8), 4).tolist() == [[0xF1, 0x08]]


def test_the_sums_are_exact_at_the_ends_of_their_dtypes():
    assert exact_dtype(1023, 8, 8) is torch.float32
    assert exact_dtype(1024, 8, 8) is torch.float64
    for terms in (1023, 4096):
        left = torch.full((1, terms), -128, dtype=torch.int8)
        left[0, 0] = 1
        right = torch.full((1, terms), -127, dtype=torch.int8)
        exact = (terms - 1) * 128 * 127 - 127
        assert exact_matmul(left, right, 8, 8).item() == torch.tensor(exact).float().item()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 9)),
    scale=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_eight_bits_are_those_of_the_library(shape, scale, dtype):
    x = (torch.randn(shape) * scale).to(dtype)
    codes, step = quantize_dynamic(x, 8, (-1,))
    expected, expected_step = quantize_activations(x, 8)
    assert torch.equal(codes, expected)
    assert torch.equal(step, expected_step)


def test_a_row_with_nan_or_infinity_is_marked_and_no_other():
    x = torch.tensor([[1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
    for codes, step in (
        quantize_dynamic(x, 4, (-1,)),
        quantize_learned(x, torch.tensor(0.5), 4, (-1,)),
    ):
        assert step.isnan().flatten().tolist() == [False, True, True]
        assert codes[0].any()


def test_learned_steps_round_and_clamp():
    x = torch.tensor([[-9.0, -0.26, 0.25, 0.75, 9.0]])
    codes, step = quantize_learned(x, torch.tensor(-0.5), 4, (-1,))
    assert codes.tolist() == [[-8, -1, 0, 2, 7]]
    assert step.item() == 0.5
    assert LearnedStep.apply(x, torch.tensor(-0.5), 7).tolist() == [[-4.0, -0.5, 0.0, 1.0, 3.5]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_gradient_of_the_step_is_that_of_the_paper(sign):
    """1.5: in the original, values outside the range take no part in the gradient of the scale, as the
    gradient of x has been cut off before it is used."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40), torch.tensor([50.0, -50.0])]).requires_grad_()
    scale = torch.tensor(0.3 * sign, requires_grad=True)
    weights = torch.randn(42)
    (LearnedStep.apply(x, scale, 7) * weights).sum().backward()
    # Autograd, with the rounding passed straight through.
    reference_x, reference_scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    step = reference_scale.abs()
    ratio = reference_x / step
    clamped = ratio.clamp(-8, 7)
    rounded = clamped + (clamped.round() - clamped).detach()
    (rounded * step * weights).sum().backward()
    torch.testing.assert_close(x.grad, reference_x.grad)
    torch.testing.assert_close(scale.grad, reference_scale.grad / math.sqrt(42 * 7))
    without = scale.grad - (weights[40] * 7 - weights[41] * 8) * sign / math.sqrt(42 * 7)
    assert not torch.isclose(scale.grad, without)
