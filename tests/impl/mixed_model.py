"""A model of many kinds of layers, for the tests of the tools that work on whole models."""

from __future__ import annotations

import torch
from torch import nn

from impl import BitLinear
from impl.compat.bitorch_engine import BinaryLinearCPP, BinaryLinearCuda
from impl.convert_tools import pack_bie_layers
from impl.layers.embedding import BinaryEmbedding

INDEX = torch.arange(10)


def mixed(packed=False):
    """A float layer, layers of this package, an embedding, and layers of bitorch_engine."""
    torch.manual_seed(0)
    model = nn.Sequential(
        BinaryEmbedding(10, 8),
        nn.Linear(8, 16),
        BitLinear(16, 16),
        BinaryLinearCPP(16, 8),
        BinaryLinearCuda(8, 4),
    )
    model.eval()
    if packed:
        pack_bie_layers(model)
    return model


def outputs(model):
    with torch.no_grad():
        return model(INDEX)
