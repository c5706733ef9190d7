"""A BERT encoder (Devlin et al., arXiv 1810.04805) for sentence embeddings: the whole network in one read.

Post-norm blocks; a sentence's embedding is the mean of its token states, scaled to unit length
(Reimers and Gurevych, arXiv 1908.10084). Every projection of a block comes from a factory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LinearFactory = Callable[[int, int], nn.Module]
"""``factory(in_features, out_features)``: a layer with bias that maps the last dimension."""


@dataclass(frozen=True)
class BertConfig:
    """Shape of the network."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    context: int
    token_types: int = 2
    norm_eps: float = 1e-12


class Block(nn.Module):
    def __init__(self, config: BertConfig, linear: LinearFactory) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.query = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.output = linear(width, width)
        self.attention_norm = nn.LayerNorm(width, config.norm_eps)
        self.up = linear(width, config.intermediate_size)
        self.down = linear(config.intermediate_size, width)
        self.feed_forward_norm = nn.LayerNorm(width, config.norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = self.attention_norm(x + self.output(mixed.transpose(1, 2).flatten(2)))
        return self.feed_forward_norm(x + self.down(F.gelu(self.up(x))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class BertEncoder(nn.Module):
    """The encoder.

    Args:
        config: shape of the network.
        linear: makes each projection of the blocks, with bias.
    """

    def __init__(self, config: BertConfig, linear: LinearFactory = nn.Linear) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.context, config.hidden_size)
        self.types = nn.Embedding(config.token_types, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config, linear) for _ in range(config.num_layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, T, hidden]`` of ``ids [B, T]`` (int64); ``mask [B, T]`` (bool) is False at padding."""
        tokens = ids.shape[1]
        if tokens > self.config.context:
            raise ValueError(f"{tokens} tokens do not fit into the context of {self.config.context}")
        x = self.norm(self.words(ids) + self.positions.weight[:tokens] + self.types.weight[0])
        for block in self.blocks:
            x = block(x, mask)
        return x

    def embeddings(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Sentence embeddings ``[B, hidden]`` of unit length: the mean state of what ``mask`` keeps."""
        keep = mask[..., None].to(self.words.weight.dtype)
        mean = (self(ids, mask) * keep).sum(1) / keep.sum(1)
        return F.normalize(mean, dim=-1)


def embed_texts(
    encoder: BertEncoder, encode: Callable[[str], list[int]], texts: list[str], *, batch: int = 32
) -> Tensor:
    """Embeddings ``[len(texts), hidden]``; texts of like length share a batch, to pad little."""
    ids = [encode(text)[: encoder.config.context] for text in texts]
    order = sorted(range(len(texts)), key=lambda index: len(ids[index]))
    result = torch.empty(len(texts), encoder.config.hidden_size)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            padded = torch.zeros(len(chosen), max(len(ids[i]) for i in chosen), dtype=torch.long)
            mask = torch.zeros(padded.shape, dtype=torch.bool)
            for row, index in enumerate(chosen):
                padded[row, : len(ids[index])] = torch.tensor(ids[index])
                mask[row, : len(ids[index])] = True
            result[chosen] = encoder.embeddings(padded, mask)
    return result
