"""zeta's BitLinear and absmax_quantize: documented examples, and the defects of the original."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.compat.zeta import BitLinear, absmax_quantize


def test_signatures():
    assert list(inspect.signature(absmax_quantize).parameters) == ["x", "bits"]
    positional = [
        p.name for p in inspect.signature(BitLinear).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    assert positional == ["in_features", "out_features", "groups"]
    assert list(inspect.signature(BitLinear.forward).parameters) == ["self", "input"]


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 200])
def test_documented_examples_run(groups):
    """zeta: documented example with groups=2 raises RuntimeError."""
    layer = BitLinear(10, 20, groups=groups)
    assert layer(torch.randn(128, 10)).size() == (128, 20)


def test_inside_a_model():
    model = nn.Sequential(BitLinear(10, 20), nn.ReLU(), BitLinear(20, 3, 2))
    assert model(torch.randn(128, 10)).shape == (128, 3)
    assert copy.deepcopy(model).state_dict().keys() == {"0.weight", "2.weight"}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 3)])
def test_leading_dimensions_are_kept(groups, lead):
    """zeta: batch of one returns two rows in the grouped path."""
    assert BitLinear(6, 4, groups)(torch.randn(*lead, 6)).shape == (*lead, 4)


def test_values_by_hand():
    layer = BitLinear(2, 2)
    weight = torch.tensor([[0.5, -0.5], [0.1, 0.0]])  # mean .025, mean magnitude .275
    with torch.no_grad():
        layer.weight.copy_(weight)
    torch.testing.assert_close(layer.quantized_weight(), torch.tensor([[0.275, -0.275], [0.275, -0.275]]))
    torch.testing.assert_close(layer(torch.eye(2)), torch.tensor([[0.275, 0.275], [-0.275, -0.275]]))
    rows = BitLinear(2, 2, groups=2)
    with torch.no_grad():
        rows.weight.copy_(weight)
    torch.testing.assert_close(rows.quantized_weight(), torch.tensor([[0.5, -0.5], [0.05, -0.05]]))


def test_scale_is_that_of_the_weight():
    """zeta: scale taken of the signs, so 1 whatever the weight, then divided out."""
    layer, x = BitLinear(12, 5), torch.randn(4, 12)
    before = layer(x).detach()
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), 2 * before)


def test_outputs_are_in_the_unit_of_the_input():
    """zeta: unit of the input is lost, l(x) == l(3 x): activations are never scaled back."""
    layer, x = BitLinear(32, 8, 2), torch.randn(5, 32)
    torch.testing.assert_close(layer(3 * x), 3 * layer(x))
    torch.testing.assert_close(layer(x), x @ layer.quantized_weight().T, rtol=0, atol=0.1)


def test_rows_do_not_see_each_other():
    """zeta: rows share one activation scale over the whole batch."""
    layer, x = BitLinear(16, 6), torch.randn(4, 16)
    crowded = torch.cat([x, 1000 * torch.randn(3, 16)])
    torch.testing.assert_close(layer(crowded)[:4], layer(x))


def test_gradients_reach_weight_and_input():
    """zeta: gradient of the weight is zero and the input has none."""
    layer = BitLinear(12, 5, 3)
    x, towards = torch.randn(7, 12, requires_grad=True), torch.randn(7, 5)
    layer(x).backward(towards)
    torch.testing.assert_close(x.grad, towards @ layer.quantized_weight())
    rounded = torch.stack([row * 127 / row.abs().max() for row in x.detach()]).round()
    rounded = rounded * x.detach().abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(layer.weight.grad, towards.T @ rounded)


@pytest.mark.parametrize("groups", [1, 4])
def test_trains(groups):
    torch.manual_seed(0)
    target = 0.3 * torch.where(torch.randn(4, 16) >= 0, 1.0, -1.0)
    x = torch.randn(256, 16)
    layer = BitLinear(16, 4, groups)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(300):
        loss = nn.functional.mse_loss(layer(x), x @ target.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-20:]) < 0.2 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer = BitLinear(12, 5, dtype=dtype)
    y = layer(torch.randn(3, 12, dtype=dtype))
    assert y.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert BitLinear(12, 5)(torch.randn(3, 12)).dtype == torch.bfloat16


def test_refusals():
    with pytest.raises(ValueError, match="groups = 3 does not divide the 5 x 4 = 20"):
        BitLinear(4, 5, 3)
    with pytest.raises(TypeError, match="float32, bfloat16 or float16"):
        BitLinear(4, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match="in_features = 4, got 3"):
        BitLinear(4, 5)(torch.randn(2, 3))


def test_absmax_by_hand():
    x = torch.tensor([1.0, -2.0, 3.0, -4.0])
    quantised, dequantised = absmax_quantize(x)
    assert quantised.dtype == torch.int8
    assert quantised.tolist() == [32, -64, 95, -127]  # x times 31.75, half to even
    torch.testing.assert_close(dequantised, torch.tensor([32, -64, 95, -127]) / 31.75)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    st.sampled_from([2, 4, 8, 9, 16]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_absmax_is_within_half_a_step(values, bits, dtype):
    x = torch.tensor(values, dtype=dtype)
    quantised, dequantised = absmax_quantize(x, bits)
    limit = 2 ** (bits - 1) - 1
    step = x.abs().max().item() / limit
    assert quantised.abs().max().item() <= limit
    assert (dequantised - x).abs().max().item() <= step * (0.5 + 1e-2) + 1e-30
    assert dequantised.dtype == dtype


def test_absmax_of_zeros():
    """zeta: zeros are divided by zero."""
    for x in (torch.zeros(2, 3), torch.zeros(0, 3), torch.tensor([1e-45, 0.0])):
        quantised, dequantised = absmax_quantize(x)
        assert quantised.shape == dequantised.shape == x.shape
        assert not quantised.any()
        assert not dequantised.any()


@pytest.mark.parametrize(
    ("bits", "dtype"), [(8, torch.int8), (9, torch.int16), (16, torch.int16), (24, torch.int32)]
)
def test_absmax_of_more_bits_does_not_overflow(bits, dtype):
    """zeta: bits beyond 8 overflow, as everything is cast to int8."""
    x = torch.tensor([1.0, -0.5])
    quantised, dequantised = absmax_quantize(x, bits)
    assert quantised.dtype == dtype
    assert quantised[0].item() == 2 ** (bits - 1) - 1
    torch.testing.assert_close(dequantised, x, rtol=0, atol=0.5 / (2 ** (bits - 1) - 1) + 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_absmax_of_half_precision(dtype):
    x = torch.tensor([6e4, -3e4, 1.0], dtype=dtype)
    quantised, dequantised = absmax_quantize(x)
    assert quantised.tolist()[0] == 127
    assert dequantised.dtype == dtype
    assert torch.isfinite(dequantised).all()
    # Neither the range of float16 nor the precision of bfloat16 holds what lies between.
    assert absmax_quantize(torch.tensor([2.0**-13, -(2.0**-14)], dtype=dtype))[0].tolist() == [127, -64]
    assert absmax_quantize(torch.tensor([1.0, 0.75], dtype=dtype), 16)[0].tolist() == [32767, 24575]


def test_absmax_passes_the_gradient():
    x = torch.randn(5, requires_grad=True)
    (absmax_quantize(x)[1] * torch.arange(5.0)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 3, 4]


def test_absmax_refusals():
    with pytest.raises(ValueError, match="2 NaN or infinite values of 3"):
        absmax_quantize(torch.tensor([1.0, torch.inf, torch.nan]))
    with pytest.raises(ValueError, match="from 2 to 24, got 1"):
        absmax_quantize(torch.ones(3), 1)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        absmax_quantize(torch.ones(3, dtype=torch.int64))
