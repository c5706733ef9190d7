"""Embeddings of every kind, for the tests of their values and forms, and what the tests of bags share."""

from __future__ import annotations

import pytest
import torch

from impl.layers.embedding import BinaryEmbedding, TernaryEmbedding

ROWS, DIM = 43, 37

EMBEDDINGS = [
    pytest.param(BinaryEmbedding, {}, id="binary"),
    pytest.param(BinaryEmbedding, {"scale": "tensor"}, id="binary-tensor"),
    pytest.param(BinaryEmbedding, {"group_size": 16, "scale_dtype": torch.float16}, id="binary-groups-f16"),
    pytest.param(TernaryEmbedding, {}, id="ternary-absmean"),
    pytest.param(TernaryEmbedding, {"rule": "twn", "format": "two_bit"}, id="ternary-two-bit"),
    pytest.param(TernaryEmbedding, {"rule": "optimal", "group_size": 24}, id="ternary-groups"),
    pytest.param(TernaryEmbedding, {"scale": "tensor"}, id="ternary-tensor"),
]
FORMS = [pytest.param(True, id="packed"), pytest.param(False, id="latent")]


def build(cls, options, packed=False, **more):
    torch.manual_seed(7)
    layer = cls(ROWS, DIM, **options, **more)
    return layer.pack() if packed else layer


def indices(*shape, dtype=torch.int64):
    return torch.randint(ROWS, shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
