"""Layers with binary, ternary and k-ternary weights, and what stands between them."""

from impl.layers.activations import RPReLU, RSign
from impl.layers.attention import BinaryMultiheadAttention, LearnableBias
from impl.layers.base import QuantizedLinear
from impl.layers.binary import BinaryLinear
from impl.layers.embedding import BinaryEmbedding, TernaryEmbedding
from impl.layers.embedding_bag import BinaryEmbeddingBag, TernaryEmbeddingBag
from impl.layers.k_ternary import MultiTernaryLinear
from impl.layers.norm import NormedLinear, RMSNorm, add_input_norms
from impl.layers.ternary import BitLinear

__all__ = [
    "BinaryEmbedding",
    "BinaryEmbeddingBag",
    "BinaryLinear",
    "BinaryMultiheadAttention",
    "BitLinear",
    "LearnableBias",
    "MultiTernaryLinear",
    "NormedLinear",
    "QuantizedLinear",
    "RMSNorm",
    "RPReLU",
    "RSign",
    "TernaryEmbedding",
    "TernaryEmbeddingBag",
    "add_input_norms",
]
