import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from impl.quantizers import fake_quantize_activations, quantize_activations

LIMITS = {8: 127, 16: 32512}
rows = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30)


@pytest.mark.parametrize("bits", [8, 16])
@given(row=rows)
def test_integers_are_those_of_the_header_file(bits, row):
    x = np.array([row], np.float32)
    limit = np.float32(LIMITS[bits])
    amax = np.maximum(np.abs(x).max(), np.float32(1e-5))
    expected = np.clip(np.rint(x * (limit / amax)), -limit, limit)
    q, scale = quantize_activations(torch.from_numpy(x), bits)
    assert q.dtype == (torch.int8 if bits == 8 else torch.int16)
    assert np.array_equal(q.numpy(), expected.astype(np.int64))
    assert scale.shape == (1, 1)
    assert scale.numpy()[0, 0] == np.float32(amax / limit)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_factor_is_rounded_once(bits):
    # Enough values that a factor off by one unit in the last place moves some of them.
    x = np.random.default_rng(0).standard_normal((200, 1000)).astype(np.float32)
    factor = np.float32(LIMITS[bits]) / np.abs(x).max(axis=1, keepdims=True)
    assert np.array_equal(quantize_activations(torch.from_numpy(x), bits)[0].numpy(), np.rint(x * factor))


@given(row=rows)
def test_signs(row):
    x = np.array([row], np.float32)
    q, scale = quantize_activations(torch.from_numpy(x), 1)
    assert q.dtype == torch.int8
    assert np.array_equal(q.numpy(), np.where(x >= 0, 1, -1))
    assert scale.item() == pytest.approx(np.abs(x.astype(np.float64)).mean(), rel=1e-6)


def test_minus_zero_is_plus_one():
    assert quantize_activations(torch.tensor([[0.0, -0.0, -1e-30]]), 1)[0].tolist() == [[1, 1, -1]]


@given(row=rows)
def test_ternary_values_are_those_of_ternary_weight_networks(row):
    x = np.array([row], np.float32)
    magnitudes = np.abs(x.astype(np.float64))
    delta = np.float32(0.75 * magnitudes.mean())
    kept = np.abs(x) > delta
    q, scale = quantize_activations(torch.from_numpy(x), 2)
    assert q.dtype == torch.int8
    assert np.array_equal(q.numpy(), np.sign(x) * kept)
    assert scale.item() == pytest.approx(magnitudes[kept].mean() if kept.any() else 0.0, rel=1e-6)


def test_ternary_threshold_is_exclusive_and_rows_of_zeros_stay_zeros():
    # Mean 4: the threshold is 3, which is itself a zero.
    x = torch.tensor([[3.0, -3.0, 3.5, -6.5], [0.0, -0.0, 0.0, 0.0], [5.0, 5.0, -5.0, 5.0]])
    q, scale = quantize_activations(x, 2)
    assert q.tolist() == [[0, 0, 1, -1], [0, 0, 0, 0], [1, 1, -1, 1]]
    assert scale.flatten().tolist() == [5.0, 0.0, 5.0]


def test_the_smallest_numbers_have_ternary_values():
    """The threshold of a row may round to 0: what is above it is above it."""
    tiny = 2.0**-149
    q, scale = quantize_activations(torch.tensor([[tiny, 0.0, 0.0, -0.0]]), 2)
    assert (q.tolist(), scale.item()) == ([[1, 0, 0, 0]], tiny)


def test_rounds_half_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize_activations(x, 8)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_value_spoils_its_row_only(bits, bad):
    x = torch.randn(3, 10)
    clean_q, clean_scale = quantize_activations(x, bits)
    x[1, 4] = bad
    q, scale = quantize_activations(x, bits)
    assert torch.isnan(scale).flatten().tolist() == [False, True, False]
    assert torch.equal(q[::2], clean_q[::2])
    assert torch.equal(scale[::2], clean_scale[::2])
    assert torch.isnan(fake_quantize_activations(x, bits)).any(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("bits", [8, 16])
def test_zeros(bits):
    q, scale = quantize_activations(torch.zeros(2, 4), bits)
    assert not q.any()
    assert (scale > 0).all()


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5)])
def test_shapes_and_dtypes(bits, dtype, shape):
    x = torch.randn(shape).to(dtype)
    q, scale = quantize_activations(x, bits)
    assert q.shape == shape
    assert scale.shape == (*shape[:-1], 1)
    assert scale.dtype == torch.float32
    fake = fake_quantize_activations(x, bits)
    assert fake.dtype == dtype
    assert torch.equal(fake, (q * scale).to(dtype))


@pytest.mark.parametrize("bits", [8, 16])
def test_gradient_passes_straight_through(bits):
    x = torch.randn(3, 7, requires_grad=True)
    upstream = torch.randn(3, 7)
    fake_quantize_activations(x, bits).backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_gradient_of_signs_stops_at_twice_the_mean():
    # Magnitudes of mean 1: the window ends at 2, in whatever unit x comes.
    for unit in (1.0, 100.0):
        x = (torch.tensor([[0.5, -0.5, 0.9, 2.1, 1.0]]) * unit).requires_grad_()
        fake_quantize_activations(x, 1).sum().backward()
        assert x.grad.tolist() == [[1, 1, 1, 0, 1]]


def test_gradient_of_ternary_values_stops_at_one_and_a_half_steps():
    # Mean 1, threshold 0.75: the scale is the mean of 0.9, 1.1 and 2.5, 1.5. The window ends at 2.25.
    for unit in (1.0, 64.0):
        x = (torch.tensor([[0.5, 0.0, -0.9, 1.1, 2.5]]) * unit).requires_grad_()
        assert quantize_activations(x, 2)[1].item() == pytest.approx(1.5 * unit)
        fake_quantize_activations(x, 2).sum().backward()
        assert x.grad.tolist() == [[1, 1, 1, 1, 0]]


@pytest.mark.parametrize("bits", [0, 3, 4, 32, None, True])
def test_unknown_width(bits):
    with pytest.raises(ValueError, match="one of 1, 2, 8, 16, got"):
        quantize_activations(torch.randn(2, 4), bits)


@pytest.mark.parametrize("x", [torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.float64)])
def test_unknown_dtype(x):
    with pytest.raises(TypeError, match="float32, bfloat16 or float16"):
        quantize_activations(x, 8)


def test_no_columns():
    with pytest.raises(ValueError, match="last dimension"):
        quantize_activations(torch.ones(2, 0), 8)
