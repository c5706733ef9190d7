"""Bop: flips against a persistent gradient, and only then."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.optim import Bop
from impl.parameters import BinaryLinearParameter


def test_the_defaults_are_those_of_larq():
    optimizer = Bop([BinaryLinearParameter(torch.ones(2, 2))])
    assert optimizer.defaults == {"threshold": 1e-8, "gamma": 1e-4}


def test_without_gradient_nothing_flips_even_at_threshold_zero():
    parameter = BinaryLinearParameter(torch.tensor([[1.0, -1.0]]))
    optimizer = Bop([parameter], threshold=0.0)
    for _ in range(3):
        parameter.grad = torch.zeros(1, 2)
        optimizer.step()
    assert parameter.signs().tolist() == [[1, -1]]


@pytest.mark.parametrize("packed", [True, False])
def test_a_weight_flips_when_the_average_passes_the_threshold(packed):
    parameter = BinaryLinearParameter(torch.tensor([[1.0, 1.0, -1.0, -1.0]]), packed=packed)
    optimizer = Bop([parameter], threshold=0.05, gamma=0.01)
    flipped_at = {}
    for step in range(1, 21):
        before = parameter.signs().clone()
        parameter.grad = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
        optimizer.step()
        for column in (parameter.signs() != before)[0].nonzero().flatten().tolist():
            flipped_at[column] = step
    # 1 - 0.99^t exceeds 0.05 from t = 6 on; the other two already oppose their gradient.
    assert flipped_at == {0: 6, 2: 6}


def test_the_rule_in_full():
    torch.manual_seed(0)
    parameter = BinaryLinearParameter(torch.randn(5, 7))
    optimizer = Bop([parameter], threshold=1e-2, gamma=0.1)
    signs, average = parameter.signs().float(), torch.zeros(5, 7)
    for _ in range(30):
        gradient = torch.randn(5, 7)
        parameter.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        flips = (average.abs() > 1e-2) & (average.sign() == signs)
        signs = torch.where(flips, -signs, signs)
        assert torch.equal(parameter.signs().float(), signs)


def test_a_student_finds_its_teacher():
    torch.manual_seed(0)
    teacher = torch.where(torch.randn(6, 20) >= 0, 1.0, -1.0)
    student = BinaryLinearParameter(torch.randn(6, 20), scales=torch.ones(1))
    optimizer = Bop([student], threshold=0.2, gamma=0.05)
    for _ in range(200):
        x = torch.randn(64, 20)
        optimizer.zero_grad()
        F.mse_loss(F.linear(x, student), x @ teacher.T).backward()
        optimizer.step()
    assert torch.equal(student.dequantize(), teacher)


def test_the_average_survives_a_checkpoint_of_a_bfloat16_parameter():
    parameter = BinaryLinearParameter(torch.randn(5, 7, dtype=torch.bfloat16))
    optimizer = Bop([parameter])
    parameter.grad = torch.randn(5, 7, dtype=torch.bfloat16)
    optimizer.step()
    other = Bop([parameter])
    other.load_state_dict(optimizer.state_dict())
    saved, loaded = optimizer.state[parameter]["exp_avg"], other.state[parameter]["exp_avg"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, saved)
    assert loaded is not saved


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": -1.0}, "threshold"), ({"gamma": 0.0}, r"\(0, 1\], got 0.0"), ({"gamma": 2.0}, "gamma")],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Bop([BinaryLinearParameter(torch.ones(2, 2))], **options)


def test_gradients_that_are_not_finite_are_refused():
    """The average would stay NaN, and the weight never flip again."""
    parameter = BinaryLinearParameter(torch.ones(2, 2))
    optimizer = Bop([parameter])
    parameter.grad = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    with pytest.raises(ValueError, match="1 NaN or infinite values of 4"):
        optimizer.step()
    assert torch.equal(parameter.dequantize(), torch.ones(2, 2))
    assert not optimizer.state


def test_ordinary_parameters_are_refused():
    with pytest.raises(TypeError, match=r"got Parameter of shape \(2,\)"):
        Bop([nn.Parameter(torch.ones(2))])
