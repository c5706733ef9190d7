"""Writing to low-bit parameters: what is written ends at the nearest values, or is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from impl.parameters import BinaryLinearParameter


def assert_same(one, other):
    assert type(one) is type(other)
    assert one._attributes == other._attributes
    for name in one._tensors:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_in_place_operations_end_at_the_nearest_value():
    parameter = BinaryLinearParameter(torch.tensor([[1.0, -1.0], [2.0, 2.0]]))
    with torch.no_grad():
        assert parameter.mul_(-0.5) is parameter
    assert torch.equal(parameter.dequantize(), torch.tensor([[-0.5, 0.5], [-1.0, -1.0]]))
    with torch.no_grad():
        torch._foreach_mul_([parameter], 2.0)
        nn.init.kaiming_uniform_(parameter)
    assert set(parameter.signs().unique().tolist()) <= {-1, 1}
    with pytest.raises(ValueError, match="NaN"), torch.no_grad():
        parameter.fill_(float("nan"))


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.SGD,
        torch.optim.AdamW,
        torch.optim.RMSprop,
        lambda p, lr: torch.optim.AdamW(p, lr, foreach=True),
        lambda p, lr: torch.optim.SGD(p, lr, foreach=True),
        lambda p, lr: torch.optim.Adam(p, lr, fused=True),
    ],
    ids=["sgd", "adamw", "rmsprop", "adamw-foreach", "sgd-foreach", "adam-fused"],
)
def test_optimizers_whose_steps_would_be_rounded_away_are_refused(optimizer, parameter):
    """They would train nothing, in silence: the weight snaps back after each small step."""
    before = parameter.dequantize()
    stepping = optimizer([parameter], lr=1e-3)
    parameter.sum().backward()
    with pytest.raises(RuntimeError, match="DiodeMix"):
        stepping.step()
    # AdamW has decayed the weight by then, by 1e-5 of it.
    assert (parameter.dequantize() - before).norm() < 1e-2 * before.norm()


def test_averages_of_weights_are_refused():
    parameter = BinaryLinearParameter(torch.randn(3, 5))
    with torch.no_grad(), pytest.raises(RuntimeError, match="lerp_"):
        parameter.lerp_(torch.randn(3, 5), 0.1)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"add_.* steps smaller"):
        parameter += 0.1


def test_assigning_data_assigns_the_integers(parameter):
    """Torch alone would swap what is outside: the decoded values would stay what they were."""
    codes = parameter._tensors[0]
    other = copy.deepcopy(parameter)
    with torch.no_grad():
        other.neg_()
    assert not torch.equal(getattr(other, codes), getattr(parameter, codes))
    parameter.data = other.data.to(torch.bfloat16)
    assert_same(parameter, other)
    assert parameter.dtype == parameter.dequantize().dtype == torch.bfloat16
    assert isinstance(parameter, nn.Parameter)
    assert parameter.requires_grad
    parameter.data = -other.dequantize()
    torch.testing.assert_close(parameter.dequantize().float(), -other.dequantize(), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"data must have shape .* got \(1,\)"):
        parameter.data = torch.ones(1)


def test_vectors_become_parameters():
    module = nn.Linear(5, 3)
    module.weight = BinaryLinearParameter(torch.randn(3, 5))
    flat = nn.utils.parameters_to_vector(module.parameters())
    before = module.weight.dequantize()
    nn.utils.vector_to_parameters(-flat, module.parameters())
    assert torch.equal(module.weight.dequantize(), -before)


def test_assigning_rows_assigns_the_integers(parameter):
    expected = parameter.dequantize()
    expected[1] = -expected[1]
    twin = copy.deepcopy(parameter)
    with pytest.raises(RuntimeError, match="leaf"):
        parameter[1] = expected[1]
    with torch.no_grad():
        parameter[1] = expected[1]
        twin.copy_(expected)
    assert_same(parameter, twin)
    assert torch.equal(parameter.dequantize()[1].sign(), expected[1].sign())


def test_values_of_another_range_are_taken(parameter):
    fresh = copy.deepcopy(parameter)
    magnitude = parameter.dequantize().abs().max()
    with torch.no_grad():
        parameter.copy_(5 * parameter.dequantize())
        fresh.copy_(parameter)
    torch.testing.assert_close(parameter.dequantize().abs().max(), 5 * magnitude, rtol=1e-3, atol=1e-3)
    assert_same(fresh, parameter)
    with torch.no_grad(), pytest.raises(ValueError, match="NaN"):
        parameter.fill_(float("nan"))
    assert_same(fresh, parameter)


def test_replicas_that_take_the_same_values_are_alike_in_half_precision():
    """As the first broadcast of DistributedDataParallel does, to the one that sends as well."""
    one, two = (BinaryLinearParameter(torch.randn(5, 40).bfloat16()) for _ in range(2))
    values = one.dequantize()
    with torch.no_grad():
        one.copy_(values)
        two.copy_(values)
    assert_same(one, two)
    assert torch.equal(one.dequantize(), values)
