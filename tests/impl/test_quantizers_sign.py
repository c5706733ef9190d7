"""Forward values and gradients of the estimators, against formulas and against smooth references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impl.quantizers.sign import (
    approx_sign,
    magnitude_aware_sign,
    ste_heaviside,
    ste_sign,
    ste_tern,
    swish_sign,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
GRID = [-3.0, -1.0, -0.7, -0.05, -1e-30, -0.0, 0.0, 1e-30, 0.04, 0.3, 1.0, 1.5]


def sign(v):
    return 1.0 if v >= 0 else -1.0


def inside(v):
    return float(abs(v) <= 1)


def swish_slope(v):
    z = 5 * v
    if abs(z) > 700:  # beyond the range of math.cosh the slope underflows
        return 0.0
    return 5 * (2 - z * math.tanh(z / 2)) / (1 + math.cosh(z))


def tern(v):
    return 0.0 if abs(v) <= 0.05 else sign(v)


# function, its value and its slope in plain Python, and a smooth function with that slope
FAMILY = [
    pytest.param(ste_sign, sign, inside, lambda x: x.clamp(-1, 1), id="ste_sign"),
    pytest.param(
        approx_sign,
        sign,
        lambda v: 2 * max(0.0, 1 - abs(v)),
        lambda x: 2 * x.clamp(-1, 1) - x.clamp(-1, 1) * x.clamp(-1, 1).abs(),
        id="approx_sign",
    ),
    pytest.param(
        swish_sign,
        sign,
        swish_slope,
        lambda x: 2 * torch.sigmoid(5 * x) * (1 + 5 * x * (1 - torch.sigmoid(5 * x))) - 1,
        id="swish_sign",
    ),
    pytest.param(ste_heaviside, lambda v: float(v > 0), inside, lambda x: x.clamp(-1, 1), id="ste_heaviside"),
    pytest.param(ste_tern, tern, inside, lambda x: x.clamp(-1, 1), id="ste_tern"),
]


def gradient(function, x, upstream=None):
    x = x.detach().clone().requires_grad_()
    y = function(x)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return x.grad


@pytest.mark.parametrize(("function", "value", "slope", "smooth"), FAMILY)
@given(values=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30))
def test_values_and_slopes_are_those_of_the_formulas(function, value, slope, smooth, values):
    x = torch.tensor(values, dtype=torch.float64)
    assert function(x).tolist() == [value(v) for v in values]
    expected = torch.tensor([slope(v) for v in values], dtype=torch.float64)
    torch.testing.assert_close(gradient(function, x), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("function", "value", "slope", "smooth"), FAMILY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_is_autograd_of_the_smooth_reference(function, value, slope, smooth, dtype):
    x = torch.tensor(GRID, dtype=dtype)
    upstream = torch.linspace(-2, 3, len(GRID)).to(dtype)
    expected = gradient(smooth, x.double(), upstream.double())
    found = gradient(function, x, upstream)
    assert found.dtype == dtype
    # cosh and tanh of the slope lose some digits of float64 on either side.
    tolerance = max(4 * torch.finfo(dtype).eps, 1e-13)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize(("function", "slope"), [(ste_sign, 1), (approx_sign, 2), (swish_sign, 5)])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_is_positive_in_both_passes(function, slope, zero):
    """D14: +1 at zero, and the gradient of the middle of the window, where torch.sign gives 0."""
    x = torch.tensor([zero])
    assert function(x).item() == 1
    assert gradient(function, x).item() == slope


@pytest.mark.parametrize(("function", "value", "slope", "smooth"), FAMILY)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)])
def test_shapes_and_dtypes_are_kept(function, value, slope, smooth, dtype, shape):
    x = torch.randn(shape).to(dtype)
    y = function(x)
    assert y.dtype == dtype
    assert y.shape == shape
    assert y.flatten().tolist() == [value(v) for v in x.flatten().tolist()]


def test_strided_inputs():
    x = torch.randn(6, 8)[:, ::2].T
    assert torch.equal(ste_sign(x), ste_sign(x.contiguous()))
    assert torch.equal(gradient(approx_sign, x), gradient(approx_sign, x.contiguous()))


@pytest.mark.parametrize(("function", "value", "slope", "smooth"), FAMILY)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(function, value, slope, smooth, bad):
    y = function(torch.tensor([0.5, bad, -0.5]))
    assert torch.isnan(y).tolist() == [False, True, False]


@pytest.mark.parametrize("function", [ste_sign, ste_heaviside, ste_tern])
def test_clip_value_moves_the_window_and_none_removes_it(function):
    x = torch.tensor([-2.5, -2.0, 0.1, 2.0, 2.5])
    assert gradient(lambda v: function(v, clip_value=2.0), x).tolist() == [0, 1, 1, 1, 0]
    assert gradient(lambda v: function(v, clip_value=None), x * 1e6).tolist() == [1, 1, 1, 1, 1]


def test_beta_is_the_steepness_of_swish_sign():
    x = torch.tensor([0.0, 0.2])
    slope = gradient(lambda v: swish_sign(v, beta=10.0), x)
    assert slope[0].item() == 10
    assert slope[1].item() == pytest.approx(10 * (2 - 2 * math.tanh(1)) / (1 + math.cosh(2)), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_finite_inputs_have_a_sign_and_no_slope(dtype):
    """Infinity over infinity in the slope would make them NaN."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest], dtype=dtype)
    for function in (swish_sign, approx_sign, ste_sign):
        assert function(x).tolist() == [1, -1]
        assert gradient(function, x).double().abs().max() < 1e-300


def test_a_heaviside_step_at_zero_is_zero_and_says_nothing(capsys):
    x = torch.tensor([-1.0, 0.0, -0.0, 1e-30])
    assert ste_heaviside(x).tolist() == [0, 0, 0, 1]
    gradient(ste_heaviside, x)
    assert capsys.readouterr().out == ""


def test_magnitude_aware_sign_scales_each_channel_by_its_mean():
    weight = torch.tensor([[0.5, -0.1, 0.0], [2.0, 0.5, -0.5]])
    expected = torch.tensor([[0.2, -0.2, 0.2], [1.0, 1.0, -1.0]])
    torch.testing.assert_close(magnitude_aware_sign(weight), expected)
    slope = torch.tensor([[0.2, 0.2, 0.2], [0.0, 1.0, 1.0]])
    torch.testing.assert_close(gradient(magnitude_aware_sign, weight), slope)
    torch.testing.assert_close(magnitude_aware_sign(weight.T, channel_dim=-1), expected.T)
    kernel = weight.view(2, 1, 3, 1)
    torch.testing.assert_close(magnitude_aware_sign(kernel), expected.view_as(kernel))


def test_the_mean_of_a_long_half_precision_channel_does_not_overflow():
    weight = torch.full((1, 4096), 100.0, dtype=torch.float16)
    assert magnitude_aware_sign(weight)[0, 0].item() == 100


def test_ternary_threshold():
    x = torch.tensor([0.05, 0.0501, -0.05, -0.0501, 0.3])
    assert ste_tern(x).tolist() == [0, 1, 0, -1, 1]
    assert ste_tern(x, threshold_value=0.2).tolist() == [0, 0, 0, 0, 1]
    assert ste_tern(x, threshold_value=0.0).tolist() == [1, 1, -1, -1, 1]


def test_ternary_weight_networks_use_the_mean_of_the_whole_tensor():
    # Mean magnitude 2: the threshold is 1.4, for both rows.
    x = torch.tensor([[0.2, -1.2, 0.6], [3.0, -5.5, 1.5]])
    assert ste_tern(x, ternary_weight_networks=True).tolist() == [[0, 0, 0], [1, -1, 1]]


def test_they_pass_through_transforms_and_compile_into_one_graph():
    x = torch.randn(4, 6)
    slopes = torch.func.vmap(torch.func.grad(lambda row: approx_sign(row).sum()))(x)
    torch.testing.assert_close(slopes, gradient(approx_sign, x))
    _, tangent = torch.func.jvp(approx_sign, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, slopes)
    compiled = torch.compile(swish_sign, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, x), gradient(swish_sign, x))


def test_refusals():
    x = torch.randn(3)
    with pytest.raises(TypeError, match=r"floating point, got torch\.int64"):
        ste_sign(torch.arange(3))
    with pytest.raises(TypeError, match="got list"):
        approx_sign([1.0])
    for clip in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="clip_value must be a positive number"):
            ste_sign(x, clip)
    with pytest.raises(ValueError, match="beta must be a positive number"):
        swish_sign(x, 0.0)
    with pytest.raises(ValueError, match="threshold_value must be"):
        ste_tern(x, -0.1)
    with pytest.raises(ValueError, match="use ste_sign"):
        magnitude_aware_sign(x)
    with pytest.raises(ValueError, match="use ste_sign"):
        magnitude_aware_sign(torch.empty(3, 0))
    with pytest.raises(ValueError, match="channel_dim=2 is not a dimension"):
        magnitude_aware_sign(torch.randn(2, 3), channel_dim=2)
