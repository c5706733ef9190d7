"""The perceptron learns, and starts from the same numbers whatever its layers are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.models.mlp import MLP

SIZES = (20, 32, 32, 4)


def test_learns_a_rule() -> None:
    """The class is the quarter of the input that is largest in sum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 20, generator=generator)
    labels = x.view(-1, 4, 5).sum(dim=2).argmax(dim=1)
    model = MLP(SIZES, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimiser.step()
    fresh = torch.randn(512, 20, generator=generator)
    model.eval()
    right = model(fresh).argmax(dim=1) == fresh.view(-1, 4, 5).sum(dim=2).argmax(dim=1)
    assert right.float().mean() > 0.85


def test_equal_seeds_start_equal_and_unequal_ones_do_not() -> None:
    one, same, other = (MLP(SIZES, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["layers.0.weight"], other["layers.0.weight"])
    assert one["layers.1.weight"].abs().max() <= 32**-0.5
    assert one["layers.1.weight"].abs().max() > 0.9 * 32**-0.5


def test_other_layers_start_from_the_same_weights() -> None:
    """A layer that draws random numbers of its own shifts nobody else's."""

    class Noisy(nn.Linear):
        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__(in_features, out_features, bias=False)
            torch.randn(7)
            self.scales = nn.Parameter(torch.full((2, out_features, 1), 5.0))

    noisy, plain = MLP(SIZES, Noisy, seed=3).state_dict(), MLP(SIZES, seed=3).state_dict()
    assert all(torch.equal(noisy[key], plain[key]) for key in plain)
    assert float(noisy["layers.1.scales"].min()) == 5.0


def test_every_matrix_comes_from_the_factory_and_meets_centred_values() -> None:
    met: list[tuple[int, int]] = []

    def factory(in_features: int, out_features: int) -> nn.Module:
        met.append((in_features, out_features))
        return nn.Linear(in_features, out_features, bias=False)

    model = MLP(SIZES, factory)
    assert met == [(20, 32), (32, 32), (32, 4)]
    inputs: list[torch.Tensor] = []
    model.layers[1].register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    model(torch.randn(256, 20))
    assert inputs[0].mean(dim=0).abs().max() < 1e-4
    assert (inputs[0] < 0).any()


def test_a_single_size_is_refused() -> None:
    with pytest.raises(ValueError, match="sizes must name"):
        MLP([20])
