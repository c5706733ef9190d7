"""A small GPT (Radford et al. 2019) to train from scratch: the whole network in one read.

Pre-norm blocks of causal self-attention and a GELU feed-forward, rotary positions (which a network
trained for minutes puts to use sooner than learned ones), no bias, the output head tied to the
embedding. Every projection of a block comes from a factory, so that
quantisation-aware layers can be trained in place of ``nn.Linear``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.models.llama import LinearFactory, float_linear, rotary_table, rotate


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the network. ``context`` is the most tokens of a sequence."""

    vocab_size: int = 256
    context: int = 128
    num_layers: int = 4
    num_heads: int = 4
    hidden_size: int = 128

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be num_heads={self.num_heads} times an even head size"
            )


class Block(nn.Module):
    def __init__(self, config: GPTConfig, linear: LinearFactory) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = linear(width, 3 * width)
        self.attention_output = linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, bias=False)
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attention_output(self._attend(self.query_key_value(self.attention_norm(x)), rotation))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))

    def _attend(self, qkv: Tensor, rotation: Tensor) -> Tensor:
        batch, tokens, _ = qkv.shape
        q, k, v = qkv.view(batch, tokens, 3, self.num_heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, tokens, -1)


class GPT(nn.Module):
    """The network.

    Args:
        config: shape.
        linear: makes each projection of the blocks.
        seed: fixes every initial weight. Two networks of one seed start from the same numbers
            whatever their layers are, as far as a layer keeps a float ``weight`` of the usual shape.
    """

    rotation: Tensor

    def __init__(self, config: GPTConfig, linear: LinearFactory = float_linear, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, linear) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight
        table = rotary_table(config.context, config.hidden_size // config.num_heads, theta=10_000.0)
        self.register_buffer("rotation", table, persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Normal, deviation 0.02; layers that write into the residual stream are scaled down by
        the number of additions to it (Radford et al. 2019, section 2.3)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() != 2 or not name.endswith("weight"):
                continue  # norms start at one, biases and scales as their layer made them
            std = residual_std if ".attention_output." in name or ".down." in name else 0.02
            start = torch.empty(parameter.shape).normal_(0.0, std, generator=generator)
            parameter.copy_(start)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[B, T, vocab]`` of ``ids [B, T]`` (int64), T at most ``config.context``."""
        tokens = ids.shape[1]
        if tokens > self.config.context:
            raise ValueError(f"{tokens} tokens do not fit into the context of {self.config.context}")
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.rotation[:tokens, None])
        return self.head(self.norm(x))

    def loss(self, ids: Tensor) -> Tensor:
        """Mean negative log likelihood (nat) of ``ids[:, 1:]`` given what stands before."""
        logits = self(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
