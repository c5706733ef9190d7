"""Layers with binary, ternary, k-ternary and n-bit weights, and what stands between them."""

from impl.layers.activations import RPReLU, RSign
from impl.layers.attention import BinaryMultiheadAttention, LearnableBias
from impl.layers.base import QuantizedLinear
from impl.layers.binary import BinaryLinear
from impl.layers.binary_conv import BinaryConv, BinaryConv1d, BinaryConv2d, BinaryConv3d
from impl.layers.conv import QuantizedConv
from impl.layers.embedding import BinaryEmbedding, TernaryEmbedding
from impl.layers.embedding_bag import BinaryEmbeddingBag, TernaryEmbeddingBag
from impl.layers.k_ternary import MultiTernaryLinear
from impl.layers.k_ternary_conv import (
    MultiTernaryConv,
    MultiTernaryConv1d,
    MultiTernaryConv2d,
    MultiTernaryConv3d,
)
from impl.layers.nbit import (
    GroupwiseLinear,
    MixedGroupwiseLinear,
    NBitConv1d,
    NBitConv2d,
    NBitConv3d,
    NBitLinear,
)
from impl.layers.norm import NormedLinear, RMSNorm, add_input_norms
from impl.layers.quantized import QuantizedLayer
from impl.layers.ternary import BitLinear
from impl.layers.ternary_conv import TernaryConv, TernaryConv1d, TernaryConv2d, TernaryConv3d

__all__ = [
    "BinaryConv",
    "BinaryConv1d",
    "BinaryConv2d",
    "BinaryConv3d",
    "BinaryEmbedding",
    "BinaryEmbeddingBag",
    "BinaryLinear",
    "BinaryMultiheadAttention",
    "BitLinear",
    "GroupwiseLinear",
    "LearnableBias",
    "MixedGroupwiseLinear",
    "MultiTernaryConv",
    "MultiTernaryConv1d",
    "MultiTernaryConv2d",
    "MultiTernaryConv3d",
    "MultiTernaryLinear",
    "NBitConv1d",
    "NBitConv2d",
    "NBitConv3d",
    "NBitLinear",
    "NormedLinear",
    "QuantizedConv",
    "QuantizedLayer",
    "QuantizedLinear",
    "RMSNorm",
    "RPReLU",
    "RSign",
    "TernaryConv",
    "TernaryConv1d",
    "TernaryConv2d",
    "TernaryConv3d",
    "TernaryEmbedding",
    "TernaryEmbeddingBag",
    "add_input_norms",
]
