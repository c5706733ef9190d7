"""Annealing from float to quantised layers, its schedules, and clipping of latent weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import impl
from impl import BitLinear
from impl.training import FULL, Annealing, Ramp, Switch, WeightClip, set_strength, strength_of


def build(**options):
    torch.manual_seed(3)
    return BitLinear(24, 10, **({"activation_bits": 8} | options))


def test_ramps_and_switches():
    ramp = Ramp(10, 20)
    assert [ramp(step) for step in (0, 10, 12, 15, 20, 99)] == [0, 0, 0.2, 0.5, 1, 1]
    cosine = Ramp(0, 4, "cosine")
    assert [cosine(step) for step in range(5)] == pytest.approx(
        [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1]
    )
    assert [Switch(3)(step) for step in (0, 2, 3, 4)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="for a jump use Switch"):
        Ramp(5, 5)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Ramp(0, 5, "cosin")


@given(begin=st.integers(0, 50), length=st.integers(1, 50), shape=st.sampled_from(["linear", "cosine"]))
def test_ramps_rise_from_exactly_zero_to_exactly_one(begin, length, shape):
    ramp = Ramp(begin, begin + length, shape)
    values = [ramp(step) for step in range(begin + length + 3)]
    assert values[begin] == 0
    assert values[begin + length :] == [1, 1, 1]
    assert values == sorted(values)


def test_annealing_follows_its_schedules():
    model = nn.Sequential(build(), nn.ReLU(), nn.Linear(10, 2))
    annealing = Annealing(model, weights=Ramp(0, 4), activations=Switch(3))
    seen = [strength_of(model[0])]
    for _ in range(5):
        annealing.step()
        seen.append(strength_of(model[0]))
    assert seen == [(0, 0), (0.25, 0), (0.5, 0), (0.75, 1), (1, 1), (1, 1)]
    assert type(model[0]) is BitLinear


def test_a_schedule_left_out_leaves_its_strength():
    layer = build()
    annealing = Annealing(layer, activations=Ramp(0, 2))
    assert strength_of(layer) == (1, 0)
    set_strength(layer, weights=0.5)
    annealing.step()
    assert strength_of(layer) == (0.5, 0.5)


def test_annealing_resumes_from_its_state():
    first, second = build(), build()
    annealing = Annealing(first, weights=Ramp(0, 8))
    annealing(3)
    resumed = Annealing(second, weights=Ramp(0, 8))
    resumed.load_state_dict(annealing.state_dict())
    assert strength_of(second).weights == 3 / 8
    resumed.step()
    assert strength_of(second).weights == 0.5
    with pytest.raises(ValueError, match="holds 'step' only"):
        resumed.load_state_dict({"epoch": 1})


def test_leaving_the_block_quantises_fully_unless_an_exception_leaves():
    layer = build()
    with Annealing(layer, weights=Ramp(0, 100)):
        assert strength_of(layer).weights == 0
    assert strength_of(layer) == FULL
    with pytest.raises(KeyboardInterrupt), Annealing(layer, weights=Ramp(0, 100)):
        raise KeyboardInterrupt
    assert strength_of(layer).weights == 0


def test_layers_packed_meanwhile_drop_out():
    model = nn.Sequential(build(), BitLinear(10, 4))
    annealing = Annealing(model, weights=Switch(1))
    annealing.step()
    model[0].pack()
    annealing(0)
    assert strength_of(model[0]) == FULL
    assert strength_of(model[1]).weights == 0


@pytest.mark.usefixtures("one_thread")
def test_annealed_training_ends_in_a_ternary_network_that_works():
    """kyegomez: training does not converge (#57)."""
    generator = torch.Generator().manual_seed(0)
    centres = 1.5 * torch.randn(4, 16, generator=generator)
    labels = torch.arange(400) % 4
    x = centres[labels] + torch.randn(400, 16, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

    def train(steps, annealing=None):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            optimizer.step()
            if annealing is not None:
                annealing.step()

    def accuracy():
        with torch.no_grad():
            return (model(x).argmax(-1) == labels).float().mean().item()

    train(60)
    trained = accuracy()
    assert trained > 0.95
    impl.prepare(model, activation_bits=8)
    annealing = Annealing(model, weights=Ramp(0, 60), activations=Switch(30))
    assert accuracy() == trained  # nothing is lost at the start
    with annealing:
        train(120, annealing)
    impl.pack(model)
    assert [type(model[0]), type(model[2])] == [BitLinear, BitLinear]
    assert set(model[0].W_ternary.unique().tolist()) <= {-1, 0, 1}
    assert accuracy() > 0.95


def test_refusals():
    layer = build()
    for bad in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"strength of weights must lie in 0 \.\. 1"):
            set_strength(layer, weights=bad)
    with pytest.raises(ValueError, match="strength of activations"):
        Annealing(layer, activations=lambda step: 2.0)
    assert strength_of(layer) == FULL
    with pytest.raises(ValueError, match="nothing to anneal"):
        Annealing(layer)
    with pytest.raises(ValueError, match="no layer quantises them"):
        Annealing(build(activation_bits=None), activations=Switch(3))
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        Annealing(layer, weights=Switch(1))(-1)
    for model in (nn.Linear(3, 3), build().pack()):
        with pytest.raises(ValueError, match="in training form"):
            Annealing(model, weights=Switch(1))
        with pytest.raises(ValueError, match="in training form"):
            set_strength(model, weights=0)


def test_weight_clip_holds_latent_weights_and_nothing_else():
    model = nn.Sequential(build(), nn.Linear(10, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100)
    linear, bias = model[1].weight.clone(), model[0].bias.clone()
    latent = model[0].weight.detach().clone()
    WeightClip(model, 0.5)()
    assert torch.equal(model[0].weight, latent.clamp(-0.5, 0.5))
    assert torch.equal(model[1].weight, linear)
    assert torch.equal(model[0].bias, bias)


def test_weight_clip_reaches_embeddings_and_bags():
    model = nn.ModuleList([impl.BinaryEmbedding(5, 8), impl.TernaryEmbeddingBag(5, 8)])
    with torch.no_grad():
        for layer in model:
            layer.weight.mul_(100)
    WeightClip(model, 0.25)()
    assert all(layer.weight.abs().max().item() == 0.25 for layer in model)


def test_weight_clip_as_a_hook_of_the_optimizer():
    """A weight that left the window of the estimator would get no gradient to come back by."""
    weight = nn.Parameter(torch.tensor([0.9, -0.9]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.register_step_post_hook(WeightClip([weight]))
    weight.grad = torch.tensor([-5.0, 5.0])
    optimizer.step()
    assert weight.tolist() == [1, -1]


def test_weight_clip_refusals():
    with pytest.raises(ValueError, match="clip_value must be a positive number"):
        WeightClip(build(), 0.0)
    with pytest.raises(ValueError, match="no tensors to clip"):
        WeightClip([])
    with pytest.raises(ValueError, match="in training form"):
        WeightClip(nn.Linear(2, 2))
