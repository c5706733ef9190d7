"""The decoder against itself: a cached step gives what the whole sequence gives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.models.llama import PROJECTIONS, KVCache, Llama, LlamaConfig, rotary_table, rotate

CONFIG = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, context=24
)


@pytest.fixture
def model() -> Llama:
    torch.manual_seed(0)
    return Llama(CONFIG).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_cached_steps_equal_the_full_forward(model: Llama, ids: torch.Tensor) -> None:
    whole = model(ids)
    cache = KVCache(CONFIG, capacity=12)
    steps = [model.decode(ids[:, :5], cache)]
    steps += [model.decode(ids[:, t : t + 1], cache) for t in range(5, 12)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 4:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_chunk_continues_the_cache(model: Llama, ids: torch.Tensor) -> None:
    whole = model(ids)
    cache = KVCache(CONFIG, capacity=12)
    parts = [model(ids[:, :3], cache), model(ids[:, 3:10], cache), model(ids[:, 10:], cache)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_truncating_forgets_what_came_after(model: Llama, ids: torch.Tensor) -> None:
    cache = KVCache(CONFIG, capacity=12)
    model.decode(ids[:, :4], cache)
    first = model.decode(ids[:, 4:5], cache)
    model.decode(ids[:, 5:8], cache)
    cache.truncate(4)
    torch.testing.assert_close(model.decode(ids[:, 4:5], cache), first, rtol=0, atol=0)


@torch.no_grad()
def test_decoding_allocates_no_new_cache(model: Llama, ids: torch.Tensor) -> None:
    cache = KVCache(CONFIG, capacity=12)
    before = cache.keys.data_ptr(), cache.values.data_ptr()
    for t in range(12):
        model.decode(ids[:, t : t + 1], cache)
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == before
    assert cache.length == 12


@torch.no_grad()
def test_the_future_is_not_seen(model: Llama, ids: torch.Tensor) -> None:
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 50
    difference = (model(ids) - model(changed)).abs().amax(-1)[0]
    assert difference[:7].max() == 0
    assert difference[7:].min() > 0


@torch.no_grad()
def test_a_batch_is_its_rows(model: Llama) -> None:
    batch = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(2))
    rows = torch.cat([model(row[None]) for row in batch])
    torch.testing.assert_close(model(batch), rows, rtol=1e-4, atol=1e-5)


def test_rotation_is_the_textbook_formula() -> None:
    x = torch.randn(1, 5, 2, 6, generator=torch.Generator().manual_seed(3))
    turned = rotate(x, rotary_table(5, 6, 100.0)[:, None])
    for t in range(5):
        for i in range(3):
            angle = t * 100.0 ** (-2 * i / 6)
            a, b = x[0, t, :, 2 * i], x[0, t, :, 2 * i + 1]
            expected = torch.stack(
                [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)], -1
            )
            torch.testing.assert_close(turned[0, t, :, 2 * i : 2 * i + 2], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_attention_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(4))
    table = rotary_table(20, 8, 10_000.0)

    def score(at: int, to: int) -> torch.Tensor:
        return (rotate(q, table[at : at + 1, None]) * rotate(k, table[to : to + 1, None])).sum()

    torch.testing.assert_close(score(7, 3), score(16, 12), rtol=1e-4, atol=1e-5)
    assert not torch.isclose(score(7, 3), score(7, 4))


@torch.no_grad()
def test_grouped_attention_equals_repeated_keys(model: Llama, ids: torch.Tensor) -> None:
    """A model with as many key heads as query heads, its key heads repeated, is the same model."""
    wide = Llama(replace(CONFIG, num_kv_heads=4))
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith(("attention.key.weight", "attention.value.weight")):
            state[name] = value.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32)
    wide.load_state_dict(state)
    torch.testing.assert_close(wide(ids), model(ids), rtol=1e-4, atol=1e-5)


def test_the_factory_makes_every_projection_and_nothing_else() -> None:
    made: list[tuple[int, int]] = []

    class Marked(nn.Linear):
        pass

    def factory(in_features: int, out_features: int) -> nn.Module:
        made.append((in_features, out_features))
        return Marked(in_features, out_features, bias=False)

    model = Llama(CONFIG, factory)
    marked = {name for name, module in model.named_modules() if isinstance(module, Marked)}
    assert marked == {f"blocks.{i}.{part}" for i in range(2) for part in PROJECTIONS}
    assert len(made) == 14
    assert type(model.head) is nn.Linear


def test_the_tied_head_is_the_embedding() -> None:
    model = Llama(CONFIG)
    assert model.head.weight is model.embedding.weight
    untied = Llama(replace(CONFIG, tie_embeddings=False))
    assert untied.head.weight is not untied.embedding.weight


def test_training_reaches_every_parameter(model: Llama, ids: torch.Tensor) -> None:
    F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "hidden_size=32"),
        ({"num_kv_heads": 3}, "num_kv_heads=3"),
        ({"num_heads": 32}, "even"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)


@torch.no_grad()
def test_positions_beyond_the_limits_are_refused(model: Llama, ids: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="25 positions do not fit into 24"):
        model(torch.zeros(1, 25, dtype=torch.long))
    cache = KVCache(CONFIG, capacity=4)
    with pytest.raises(ValueError, match="5 positions do not fit into 4"):
        model(ids[:, :5], cache)
    with pytest.raises(ValueError, match="capacity=25"):
        KVCache(CONFIG, capacity=25)
    with pytest.raises(ValueError, match="truncate to 3"):
        cache.truncate(3)
