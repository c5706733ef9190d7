"""DoReFa against its formulas in numpy, and its gradients against autograd of smooth references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impl.quantizers.dorefa import dorefa

BITS = [1, 2, 3, 8, 16]
rows = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30)


def gradient(x, k_bit, mode):
    x = x.detach().clone().requires_grad_()
    dorefa(x, k_bit, mode).sum().backward()
    return x.grad


@pytest.mark.parametrize("k_bit", BITS)
@given(row=rows)
def test_activations(k_bit, row):
    x = np.array(row)
    steps = 2**k_bit - 1
    found = dorefa(torch.from_numpy(x), k_bit)
    np.testing.assert_allclose(found.numpy(), np.rint(np.clip(x, 0, 1) * steps) / steps, rtol=1e-15)
    assert gradient(torch.from_numpy(x), k_bit, "activations").tolist() == [float(0 <= v <= 1) for v in row]


@pytest.mark.parametrize("k_bit", BITS[1:])
@given(row=rows)
def test_weights(k_bit, row):
    x = torch.tensor(row, dtype=torch.float64)
    steps = 2**k_bit - 1
    squashed = torch.tanh(x)
    largest = squashed.abs().max()
    normed = squashed / largest if largest > 0 else squashed
    places = (dorefa(x, k_bit, "weights") + 1) / 2 * steps
    # On the grid, and at the nearest point of it.
    torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-9)
    assert (places - (normed + 1) / 2 * steps).abs().max() <= 0.5 + 1e-9


def test_two_bit_values_by_hand():
    assert dorefa(torch.tensor([-1.0, 0.1, 0.2, 0.5, 0.8, 7.0])).tolist() == pytest.approx(
        [0, 0, 1 / 3, 2 / 3, 2 / 3, 1]
    )
    # tanh: .462, -.762, .0997, 0; over .762 and on the grid -1, -1/3, 1/3, 1
    weights = dorefa(torch.tensor([0.5, -1.0, 0.1, 0.0]), 2, "weights")
    assert weights.tolist() == pytest.approx([1 / 3, -1, 1 / 3, 1 / 3])


def test_the_largest_weight_reaches_the_end_of_the_range():
    for k_bit in BITS:
        weight = torch.tensor([0.003, -0.004, 0.004])
        assert dorefa(weight, k_bit, "weights")[1:].tolist() == [-1, 1]


def test_one_bit_weights_are_signs():
    """D14: zero is +1, as for every other sign, where rounding its place halfway gives -1."""
    weight = torch.tensor([0.0, -0.0, -1e-30, 0.2, -3.0])
    assert dorefa(weight, 1, "weights").tolist() == [1, 1, -1, 1, -1]


@pytest.mark.parametrize("k_bit", [1, 2, 8])
def test_gradient_of_weights_is_autograd_of_the_normed_tanh(k_bit):
    weight = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    (torch.tanh(weight) / torch.tanh(weight).abs().max().detach()).sum().backward()
    torch.testing.assert_close(gradient(weight, k_bit, "weights"), weight.grad)


@pytest.mark.parametrize("k_bit", [1, 2])
def test_zeros_have_values_and_gradients(k_bit):
    weight = torch.zeros(3, 4)
    assert torch.isfinite(dorefa(weight, k_bit, "weights")).all()
    assert torch.equal(gradient(weight, k_bit, "weights"), torch.ones(3, 4))


@pytest.mark.parametrize("mode", ["activations", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes_and_dtypes(mode, dtype, shape):
    x = torch.rand(shape).to(dtype)
    y = dorefa(x, 8, mode)
    assert y.dtype == dtype
    assert y.shape == shape
    # 255 steps are finer than bfloat16: they are taken in float32, then rounded once.
    assert torch.equal(y, dorefa(x.float(), 8, mode).to(dtype))


@pytest.mark.parametrize("mode", ["activations", "weights"])
def test_nan_is_not_hidden(mode):
    assert torch.isnan(dorefa(torch.tensor([0.5, torch.nan]), 2, mode))[1]


def test_refusals():
    x = torch.randn(3)
    with pytest.raises(ValueError, match="did you mean 'weights'"):
        dorefa(x, 2, "weight")
    with pytest.raises(ValueError, match="k_bit must be at least 1"):
        dorefa(x, 0)
    with pytest.raises(ValueError, match="k_bit must be at most 16, got 17"):
        dorefa(x, 17)
    with pytest.raises(TypeError, match="k_bit must be an integer"):
        dorefa(x, 2.5)
    with pytest.raises(TypeError, match="floating point"):
        dorefa(torch.arange(3))
