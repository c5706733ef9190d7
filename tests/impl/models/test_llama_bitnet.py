"""The decoder as BitNet b1.58 2B4T, against the implementation of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from impl.layers.norm import RMSNorm
from impl.models.llama import KVCache, Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    context=24,
    rope_theta=500_000.0,
    activation="relu2",
    sub_norms=True,
)

# Our name -> that of transformers, within a block.
NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.sub_norm": "self_attn.attn_sub_norm",
    "attention.output": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward.gate": "mlp.gate_proj",
    "feed_forward.up": "mlp.up_proj",
    "feed_forward.sub_norm": "mlp.ffn_sub_norm",
    "feed_forward.down": "mlp.down_proj",
}


@pytest.fixture
def model() -> Llama:
    """Norms get weights of their own: ones would hide a norm that is missing its weight."""
    torch.manual_seed(0)
    model = Llama(CONFIG).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.weight.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(1))


def interleaved_to_halves(weight: torch.Tensor) -> torch.Tensor:
    """Rows of a query or key from neighbouring rotary pairs to pairs half a head apart."""
    head = CONFIG.head_dim
    rows = weight.view(-1, head // 2, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


@torch.no_grad()
def test_it_is_the_bitnet_of_transformers(model: Llama, ids: torch.Tensor) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference implementation of BitNet")
    other = transformers.BitNetForCausalLM(
        transformers.BitNetConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.hidden_size,
            intermediate_size=CONFIG.intermediate_size,
            num_hidden_layers=CONFIG.num_layers,
            num_attention_heads=CONFIG.num_heads,
            num_key_value_heads=CONFIG.num_kv_heads,
            hidden_act="relu2",
            max_position_embeddings=CONFIG.context,
            rms_norm_eps=CONFIG.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    ).eval()
    ours = model.state_dict()
    state = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "lm_head.weight": ours["embedding.weight"],
        "model.norm.weight": ours["norm.weight"],
    }
    for index in range(CONFIG.num_layers):
        for name, theirs in NAMES.items():
            weight = ours[f"blocks.{index}.{name}.weight"]
            turned = name in ("attention.query", "attention.key")
            state[f"model.layers.{index}.{theirs}.weight"] = (
                interleaved_to_halves(weight) if turned else weight
            )
    other.load_state_dict(state)
    torch.testing.assert_close(model(ids), other(ids).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_gate_is_the_square_of_relu_and_the_down_projection_normalises(model: Llama) -> None:
    layer = model.blocks[0].feed_forward
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    mixed = layer.gate(x).clamp_min(0) ** 2 * layer.up(x)
    mean = mixed.pow(2).mean(-1, keepdim=True)
    expected = F.linear(mixed * (mean + CONFIG.norm_eps).rsqrt() * layer.sub_norm.weight, layer.down.weight)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cached_steps_equal_the_full_forward(model: Llama, ids: torch.Tensor) -> None:
    whole = model(ids)
    cache = KVCache(CONFIG, capacity=12, batch=2)
    steps = [model.decode(ids[:, :5], cache)]
    steps += [model.decode(ids[:, t : t + 1], cache) for t in range(5, 12)]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 4:], rtol=1e-4, atol=1e-5)


def test_without_sub_norms_a_block_has_the_two_of_llama() -> None:
    plain = Llama(replace(CONFIG, sub_norms=False))
    norms = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, RMSNorm) and name.startswith("blocks.0.")
    }
    assert norms == {"blocks.0.attention_norm", "blocks.0.feed_forward_norm"}


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'gelu': use one of 'silu', 'relu2'; did"):
        replace(CONFIG, activation="gelu")
