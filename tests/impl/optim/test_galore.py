"""GaLore: the projection keeps the main directions of a gradient."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from torch import nn

from impl.optim import DiodeMix, GaLoreProjector
from impl.optim.galore import PROJ_TYPES
from impl.parameters import MPQWeightParameter


def test_the_signature_is_that_of_the_seed():
    parameters = inspect.signature(GaLoreProjector).parameters
    assert {name: p.default for name, p in parameters.items() if name != "rank"} == {
        "verbose": False,
        "update_proj_gap": 200,
        "scale": 1.0,
        "proj_type": "std",
    }


@pytest.mark.parametrize(
    ("proj_type", "tall", "wide"),
    [
        ("std", (9, 2), (2, 9)),
        ("reverse_std", (2, 5), (5, 2)),
        ("right", (9, 2), (5, 2)),
        ("left", (2, 5), (2, 9)),
        ("full", (2, 2), (2, 2)),
    ],
)
def test_shapes(proj_type, tall, wide):
    for shape, expected in (((9, 5), tall), ((5, 9), wide)):
        projector = GaLoreProjector(2, proj_type=proj_type)
        low = projector.project(torch.randn(shape), 0)
        assert tuple(low.shape) == projector.low_rank_shape(*shape) == expected
        assert projector.project_back(low).shape == shape


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_a_gradient_of_that_rank_comes_back_whole(proj_type):
    torch.manual_seed(0)
    gradient = torch.randn(9, 2) @ torch.randn(2, 5)
    projector = GaLoreProjector(2, proj_type=proj_type, scale=0.25)
    back = projector.project_back(projector.project(gradient, 0))
    torch.testing.assert_close(back, 0.25 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_the_rest_is_the_best_approximation(proj_type):
    torch.manual_seed(0)
    gradient = torch.randn(9, 5)
    projector = GaLoreProjector(3, proj_type=proj_type)
    rest = gradient - projector.project_back(projector.project(gradient, 0))
    torch.testing.assert_close(rest.norm(), torch.linalg.svdvals(gradient)[3:].norm())
    whole = GaLoreProjector(50, proj_type=proj_type)
    torch.testing.assert_close(whole.project_back(whole.project(gradient, 0)), gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_the_subspace_stays_for_the_gap(proj_type):
    """The first one is found whenever the first gradient comes, later ones every third step."""
    torch.manual_seed(0)
    projector = GaLoreProjector(1, update_proj_gap=3, proj_type=proj_type)
    bases = []
    for step in range(1, 6):
        projector.project(torch.randn(6, 4), step)
        sides = (side for side in (projector.left, projector.right) if side is not None)
        bases.append(torch.cat([side.flatten() for side in sides]))
    assert torch.equal(bases[0], bases[1])
    assert not torch.equal(bases[1], bases[2])
    assert torch.equal(bases[2], bases[4])


def test_half_precision_gradients():
    projector = GaLoreProjector(2)
    low = projector.project(torch.randn(6, 4, dtype=torch.bfloat16), 0)
    assert low.dtype == projector.project_back(low).dtype == torch.bfloat16


def test_verbose_logs_the_energy_kept(caplog):
    with caplog.at_level(logging.INFO):
        GaLoreProjector(1, verbose=True).project(torch.diag(torch.tensor([3.0, 1.0])), 0)
    assert "rank 1 of 2 holds 90.0 %" in caplog.text


def test_errors():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        GaLoreProjector(0)
    with pytest.raises(ValueError, match="did you mean 'right'"):
        GaLoreProjector(1, proj_type="rihgt")
    with pytest.raises(ValueError, match="projects matrices"):
        GaLoreProjector(1).project(torch.ones(3), 0)
    with pytest.raises(RuntimeError, match="no subspace yet"):
        GaLoreProjector(1).project_back(torch.ones(3, 1))


# ---- as options of DiodeMix's groups --------------------------------------------------------


@pytest.mark.parametrize(
    "parameter_of", [nn.Parameter, lambda w: MPQWeightParameter(w.repeat(6, 1)[:32], w_bit=8)]
)
def test_a_schedule_of_the_scale_takes_effect(parameter_of):
    """What a group says at a step is what counts, not what it said at the first one."""
    torch.manual_seed(0)
    value = torch.randn(6, 4)
    constant, scheduled = parameter_of(value.clone()), parameter_of(value.clone())
    optimizers = [DiodeMix([{"params": [p], "rank": 2}], lr=1e-2) for p in (constant, scheduled)]

    def step():
        gradient = torch.randn(constant.shape)
        for parameter, optimizer in zip((constant, scheduled), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()

    step()
    before = constant.detach() + 0
    assert torch.equal(scheduled.detach() + 0, before)
    optimizers[1].param_groups[0]["scale"] = 0.0
    step()
    assert torch.equal(scheduled.detach() + 0, before)
    assert not torch.equal(constant.detach() + 0, before)


def test_a_shorter_gap_takes_effect():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 4))
    optimizer = DiodeMix([{"params": [parameter], "rank": 1, "update_proj_gap": 100}])

    def subspace_after_a_step():
        parameter.grad = torch.randn(6, 4)
        optimizer.step()
        return optimizer.state[parameter]["galore_right"].clone()

    first = subspace_after_a_step()
    assert torch.equal(subspace_after_a_step(), first)
    optimizer.param_groups[0]["update_proj_gap"] = 1
    assert not torch.equal(subspace_after_a_step(), first)


@pytest.mark.parametrize("change", [{"rank": 1}, {"proj_type": "right"}])
def test_averages_of_another_space_are_refused(change):
    """Square matrices have averages of as many elements on either side: they would be taken as they lie."""
    parameter, other = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
    options = {"rank": 2, "proj_type": "left"}
    optimizer = DiodeMix([{"params": [other]}, {"params": [parameter], **options}])
    parameter.grad, other.grad = torch.randn(4, 4), torch.randn(4, 4)
    optimizer.step()
    optimizer.param_groups[1].update(change)
    before = other.detach().clone()
    with pytest.raises(ValueError, match=r"have shape \(2, 4\), its group now asks for"):
        optimizer.step()
    assert torch.equal(other, before)
