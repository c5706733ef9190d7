"""The trainable network learns, and starts from the same numbers whatever its layers are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from impl.models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(vocab_size=32, context=16, num_layers=2, num_heads=2, hidden_size=32)


def test_learns_a_simple_sequence() -> None:
    """The next symbol is a fixed function of the last: a working network finds it in a few steps."""
    model = GPT(CONFIG, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        start = torch.randint(32, (8, 1), generator=generator)
        ids = (start + 5 * torch.arange(17)) % 32
        loss = model.loss(ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert 3.3 < losses[0] < 3.7  # ln 32 = 3.47: a fresh network knows nothing
    assert losses[-1] < 0.2


def test_equal_seeds_start_equal_and_unequal_ones_do_not() -> None:
    states = [GPT(CONFIG, seed=seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["embedding.weight"], states[2]["embedding.weight"])


def test_other_layers_start_from_the_same_weights() -> None:
    """A layer that draws random numbers of its own shifts nobody else's."""

    class Noisy(nn.Linear):
        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__(in_features, out_features, bias=False)
            torch.randn(7)
            self.scales = nn.Parameter(torch.full((2, out_features, 1), 5.0))

    torch.manual_seed(99)
    noisy = GPT(CONFIG, Noisy, seed=3).state_dict()
    plain = GPT(CONFIG, seed=3).state_dict()
    assert all(torch.equal(noisy[key], plain[key]) for key in plain)
    assert float(noisy["blocks.0.up.scales"].min()) == 5.0


@torch.no_grad()
def test_the_future_is_not_seen() -> None:
    model = GPT(CONFIG, seed=1).eval()
    ids = torch.randint(32, (1, 10), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 32
    difference = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert difference[:6].max() == 0
    assert difference[6:].min() > 0


def test_sequences_beyond_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit into the context of 16"):
        GPT(CONFIG)(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="num_heads=3 times an even"):
        GPTConfig(num_heads=3)
