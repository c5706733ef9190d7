"""Symmetric integer quantisation and int8 training weights of bitorch_engine."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.compat.bitorch_engine import init_weight, nv_tensor_quant


def test_signature():
    parameters = inspect.signature(nv_tensor_quant).parameters
    assert list(parameters) == ["inputs", "amax", "num_bits", "unsigned", "narrow_range"]
    assert [p.default for p in parameters.values()][1:] == [None, 8, False, True]


def test_scale_is_of_the_largest_magnitude():
    """D8: the original takes the largest value, so that -10 saturates at -127 / 127 of it."""
    numbers, scale = nv_tensor_quant(torch.tensor([-10.0, -1.0, 0.5, 1.0]))
    assert numbers.tolist() == [-127, -13, 6, 13]
    assert scale.tolist() == pytest.approx([12.7])


def test_negative_tensors():
    """D8: the original raises ValueError where every value is negative."""
    numbers, _ = nv_tensor_quant(torch.tensor([[-4.0, -2.0], [-1.0, -0.5]]))
    assert numbers.tolist() == [[-127, -64], [-32, -16]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=12),
    st.integers(2, 10),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
    st.booleans(),
)
def test_numbers_are_within_half_a_step(values, bits, dtype, narrow):
    x = torch.tensor(values, dtype=dtype)
    numbers, scale = nv_tensor_quant(x, num_bits=bits, narrow_range=narrow)
    assert numbers.dtype == dtype
    assert scale.shape == (1,)
    limit = 2 ** (bits - 1) - 1
    assert numbers.abs().max().item() <= limit
    assert torch.equal(numbers, numbers.round())
    error = (numbers.double() / scale.double() - x.double()).abs().max().item()
    assert error <= max(0.501 / scale.item(), 2**-24)


def test_rows_and_given_extremes():
    x = torch.tensor([[1.0, -2.0], [32.0, 16.0]])
    numbers, scale = nv_tensor_quant(x, x.abs().amax(1, keepdim=True))
    assert numbers.tolist() == [[64, -127], [127, 64]]
    assert scale.shape == (2, 1)
    assert nv_tensor_quant(x, torch.tensor([[1.0]]))[0].tolist() == [[127, -127], [127, 127]]
    assert nv_tensor_quant(x, torch.tensor([[1.0]]), narrow_range=False)[0].tolist() == [
        [127, -128],
        [127, 127],
    ]
    assert nv_tensor_quant(x.abs(), unsigned=True)[0].tolist() == [[8, 16], [255, 128]]
    assert nv_tensor_quant(torch.tensor([0.0, 0.5, 1.0]), unsigned=True)[0].tolist() == [0, 128, 255]
    assert nv_tensor_quant(x, torch.tensor([[2.0**-24], [2.0**-23]]))[0].tolist() == [[0, 0], [127, 127]]
    assert nv_tensor_quant(torch.zeros(0, 3), torch.zeros(0, 1))[1].shape == (0, 1)


def test_zeros_and_nothing():
    for x in (torch.zeros(2, 3), torch.zeros(0, 3)):
        numbers, scale = nv_tensor_quant(x)
        assert numbers.shape == x.shape
        assert not numbers.any()
        assert scale.tolist() == [[1.0]]
    assert torch.isnan(nv_tensor_quant(torch.tensor([1.0, torch.nan]))[0]).all()


def test_refusals():
    with pytest.raises(TypeError, match="unsigned quantisation of negative values"):
        nv_tensor_quant(torch.tensor([-1.0]), unsigned=True)
    with pytest.raises(ValueError, match="amax has 0 dimensions, the inputs 1"):
        nv_tensor_quant(torch.ones(3), torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"amax must be a torch\.Tensor or None, got 2\.0"):
        nv_tensor_quant(torch.ones(3), 2.0)
    with pytest.raises(ValueError, match="amax holds negative values"):
        nv_tensor_quant(torch.ones(3), torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="numbers up to 511"):
        nv_tensor_quant(torch.ones(3, dtype=torch.bfloat16), num_bits=10)
    with pytest.raises(ValueError, match="num_bits=1"):
        nv_tensor_quant(torch.ones(3), num_bits=1)
    with pytest.raises(TypeError, match=r"torch\.int8"):
        nv_tensor_quant(torch.ones(3, dtype=torch.int8))


def test_initial_weights():
    weight = torch.tensor([[-10.0, -1.0, 0.5, 2.5]])  # mean -2
    parameter, scale = init_weight(weight)
    assert parameter.dtype == torch.int8
    assert not parameter.requires_grad
    assert parameter.tolist() == [[-127, 16, 40, 71]]  # (-8, 1, 2.5, 4.5) * 127 / 8
    assert scale.item() == 3.5


def test_initial_weights_are_never_zero():
    """D8 and D14: what rounds to zero keeps its sign, and an exact zero counts as +1."""
    weight = torch.tensor([[1000.0, -1000.0, 0.001, -0.001, 0.0]])
    parameter, _ = init_weight(weight)
    assert parameter.tolist() == [[127, -127, 1, -1, 1]]
    assert init_weight(torch.zeros(2, 3))[0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_initial_weights_by_row():
    weight = torch.randn(5, 40) * torch.arange(1.0, 6.0)[:, None] + 1
    parameter, scale = init_weight(weight, scale="row")
    torch.testing.assert_close(scale, weight.abs().mean(1))
    assert torch.equal(parameter > 0, weight >= weight.mean(1, keepdim=True))
    with pytest.raises(ValueError, match=r"unknown scale 'rows'.*did you mean 'row'"):
        init_weight(weight, scale="rows")
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        init_weight(torch.tensor([[1.0, torch.nan]]))
