"""What training workloads share: who updates which parameter, and at which rate."""

from __future__ import annotations

import pytest
import torch

from bitbench.layers import registry
from bitbench.workloads.base import Unsupported
from bitbench.workloads.training import optimiser_for, schedule, trainable, trainable_factory
from impl.models.mlp import MLP
from impl.optim import DiodeMix


def network(kind: str, **fields: object) -> MLP:
    found = registry.get(kind)
    return MLP((12, 8, 4), trainable_factory(found, found.spec.model_validate({"kind": kind, **fields})))


def test_floats_get_adamw_with_decay_on_matrices_only() -> None:
    optimiser = optimiser_for(network("ternary"), lr=1e-2, steps=100, weight_decay=0.1, betas=(0.8, 0.95))
    assert type(optimiser) is torch.optim.AdamW
    decays = {p.dim(): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert decays == {2: 0.1, 1: 0.0}
    assert {group["betas"] for group in optimiser.param_groups} == {(0.8, 0.95)}


def test_one_diodemix_trains_a_latent_free_network_whole() -> None:
    model = network("latent_free")
    optimiser = optimiser_for(model, lr=1e-2, steps=1000, weight_decay=0.1)
    assert isinstance(optimiser, DiodeMix)
    flips, matrices, others = optimiser.param_groups
    assert [tuple(p.shape) for p in flips["params"]] == [(8, 12), (4, 8)]
    assert matrices["params"] == []
    assert len(others["params"]) == 4
    assert flips["threshold"] < flips["lr"] == 1e-3 != others["lr"]
    assert flips["weight_decay"] == 0.0
    # The votes of a fifth of the training are remembered, and of two steps at least.
    assert flips["betas"][1] == pytest.approx(1 - 1 / 200)
    shortest = optimiser_for(model, lr=1e-2, steps=1)
    assert shortest.param_groups[0]["betas"][1] == 0.5


def test_every_trained_parameter_is_updated_once() -> None:
    for kind in ("linear", "latent_free", "k_ternary"):
        model = network(kind)
        next(model.norms[0].parameters()).requires_grad_(False)
        optimiser = optimiser_for(model, lr=1e-2, steps=10)
        updated = [id(p) for group in optimiser.param_groups for p in group["params"]]
        assert sorted(updated) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_what_has_nothing_to_train_says_so() -> None:
    kind = registry.get("torch_int8")
    with pytest.raises(Unsupported, match="inference"):
        trainable(kind, kind.spec.model_validate({"kind": "torch_int8"}), 8, 8)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == 1
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert schedule(0, 1) == 1
