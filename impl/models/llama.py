"""A Llama-family decoder (Touvron et al., arXiv 2302.13971): the whole network in one read.

Pre-norm blocks of grouped-query attention with rotary positions and a gated feed-forward. Every
projection of a block comes from a factory, so that any layer can stand in for ``nn.Linear``.
Decoding writes keys and values into a cache allocated once. With ``activation="relu2"`` and
``sub_norms`` it is the network of BitNet b1.58 2B4T (Ma et al., arXiv 2504.12285).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import check_choice
from impl.layers.norm import RMSNorm

Activation = Literal["silu", "relu2"]
"""Of the feed-forward's gate. ``relu2``: the square of ReLU (So et al., arXiv 2109.08668)."""

LinearFactory = Callable[[int, int], nn.Module]
"""``factory(in_features, out_features)``: a layer without bias that maps the last dimension."""

PROJECTIONS = (
    "attention.query", "attention.key", "attention.value", "attention.output",
    "feed_forward.gate", "feed_forward.up", "feed_forward.down",
)  # fmt: skip
"""Names of a block's linear layers, relative to the block."""


def float_linear(in_features: int, out_features: int) -> nn.Module:
    """The ordinary projection: ``nn.Linear`` without bias."""
    return nn.Linear(in_features, out_features, bias=False)


@dataclass(frozen=True)
class LlamaConfig:
    """Shape of the network."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    context: int
    """Most tokens a sequence may have; fixes the length of the rotary table."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    """Whether the output head is the embedding matrix."""
    activation: Activation = "silu"
    sub_norms: bool = False
    """Whether the output projection of the attention and the down projection normalise their input."""

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, get_args(Activation))
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be num_heads={self.num_heads} times an even head size"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


class KVCache:
    """Keys and values of every block for one growing sequence (or a batch of equal length).

    ``keys`` and ``values`` are ``[layers, batch, kv_heads, capacity, head_dim]``, allocated once;
    ``length`` positions are filled.
    """

    def __init__(
        self,
        config: LlamaConfig,
        capacity: int,
        *,
        batch: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not 1 <= capacity <= config.context:
            raise ValueError(
                f"capacity={capacity} must lie between 1 and the model's context {config.context}"
            )
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget everything after the first ``length`` positions."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate to {length}: the cache holds {self.length} positions")
        self.length = length

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``key``, ``value`` ``[batch, kv_heads, T, head_dim]`` of one block at the end and
        return that block's whole past, as views. ``length`` moves once per step, in the model."""
        end = self.length + key.shape[2]
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        keys[:, :, self.length :].copy_(key)
        values[:, :, self.length :].copy_(value)
        return keys, values


def rotary_table(context: int, head_dim: int, theta: float) -> Tensor:
    """Unit complex numbers ``[context, head_dim / 2]``: pair i at position t turns by
    ``t * theta ** (-2 i / head_dim)`` (Su et al., arXiv 2104.09864, eq. 15)."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions on ``x [B, T, heads, head_dim]``, pairs being neighbours (2i, 2i + 1).

    This is the interleaved layout of the original Llama and of GGUF files; weights in the split
    layout (i, i + head_dim / 2) need their query and key rows permuted first. A pair is read as
    one complex number: one multiplication instead of six small operations a call.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; ``num_heads / num_kv_heads`` query heads share a key and value head
    (Ainslie et al., arXiv 2305.13245)."""

    def __init__(self, config: LlamaConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.config = config
        kv_size = config.num_kv_heads * config.head_dim
        self.query = linear(config.hidden_size, config.hidden_size)
        self.key = linear(config.hidden_size, kv_size)
        self.value = linear(config.hidden_size, kv_size)
        self.sub_norm = RMSNorm(config.hidden_size, config.norm_eps) if config.sub_norms else None
        self.output = linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotation: Tensor, layer: int, cache: KVCache | None) -> Tensor:
        batch, tokens, _ = x.shape
        config = self.config
        q = rotate(self.query(x).view(batch, tokens, -1, config.head_dim), rotation).transpose(1, 2)
        k = rotate(self.key(x).view(batch, tokens, -1, config.head_dim), rotation).transpose(1, 2)
        v = self.value(x).view(batch, tokens, -1, config.head_dim).transpose(1, 2)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.write(layer, k, v)

        if tokens == 1:
            # One query position sees everything: the query heads of a group are then just several
            # queries to one key head, and no key or value needs repeating.
            grouped = q.reshape(batch, config.num_kv_heads, -1, config.head_dim)
            mixed = F.scaled_dot_product_attention(grouped, k, v).reshape(batch, 1, -1)
        else:
            mask = None
            if past:  # query t, at position past + t, sees keys 0 ... past + t
                mask = torch.ones(tokens, past + tokens, dtype=torch.bool, device=x.device).tril(past)
            mixed = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=config.num_heads != config.num_kv_heads,
            )
            mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        return self.output(mixed if self.sub_norm is None else self.sub_norm(mixed))


class FeedForward(nn.Module):
    """A gated feed-forward: SwiGLU (Shazeer, arXiv 2002.05202), or with the square of ReLU at the gate."""

    def __init__(self, config: LlamaConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.sub_norm = RMSNorm(config.intermediate_size, config.norm_eps) if config.sub_norms else None
        self.down = linear(config.intermediate_size, config.hidden_size)
        self.squared = config.activation == "relu2"

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        mixed = (F.relu(gate).square() if self.squared else F.silu(gate)) * self.up(x)
        return self.down(mixed if self.sub_norm is None else self.sub_norm(mixed))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig, linear: LinearFactory) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, linear)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config, linear)

    def forward(self, x: Tensor, rotation: Tensor, layer: int, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, layer, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """The decoder.

    Args:
        config: shape of the network.
        linear: makes each projection of the blocks. Embedding and output head stay ``nn.Embedding``
            and ``nn.Linear``.
    """

    rotation: Tensor

    def __init__(self, config: LlamaConfig, linear: LinearFactory = float_linear) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, linear) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        table = rotary_table(config.context, config.head_dim, config.rope_theta)
        self.register_buffer("rotation", table, persistent=False)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits ``[B, T, vocab]`` of every position of ``ids [B, T]`` (int64).

        With a cache, ``ids`` continue the sequence it holds and are appended to it.

        Raises:
            ValueError: the sequence leaves the context or the cache.
        """
        return self.head(self._hidden(ids, cache))

    def decode(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits ``[B, vocab]`` after the last of ``ids [B, T]``, appended to ``cache``: the head,
        which costs as much as many blocks, runs for one position only."""
        return self.head(self._hidden(ids, cache)[:, -1])

    def _hidden(self, ids: Tensor, cache: KVCache | None) -> Tensor:
        past = 0 if cache is None else cache.length
        end, limit = past + ids.shape[1], self.config.context if cache is None else cache.capacity
        if end > limit:
            raise ValueError(
                f"{end} positions do not fit into {limit}: shorten the input or enlarge the cache"
            )
        rotation = self.rotation[past:end, None]
        x = self.embedding(ids)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, layer, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)
