"""Binary, ternary and k-ternary layers for PyTorch, with packed weights and native kernels.

    import torch, impl

    layer = impl.BitLinear.from_linear(torch.nn.Linear(4096, 4096))   # packed: 1.6 bits a weight
    model = impl.convert_linear_to_bitlinear(model, skip=["lm_head"])  # a whole network
    model = impl.prepare(model)                                        # or: latent weights, to train

Importing this package registers ``torch.ops.bitimpl``; the native library is loaded by the first
call that can use it (see :mod:`impl.native`).
"""

from impl import checkpoint, optim, parameters, quantizers, training
from impl.capabilities import Capabilities, Kernel, capabilities
from impl.convert import (
    ConversionReport,
    convert_convolutions,
    convert_linear_to_bitlinear,
    pack,
    prepare,
    unpack,
)
from impl.functional import (
    absmax_scale,
    activation_quant,
    binary_conv,
    binary_linear,
    bitlinear_python,
    dequantize_scale,
    greedy_ternary_decomposition,
    multi_ternary_linear_python,
    quantize_activations_absmax,
    ternary_conv,
    ternary_linear,
    ternary_quantize,
    weight_to_ternary,
)
from impl.fusion import fuse_batch_norm, fuse_batch_norms
from impl.geometry import ConvGeometry
from impl.layers import (
    BinaryConv,
    BinaryConv1d,
    BinaryConv2d,
    BinaryConv3d,
    BinaryEmbedding,
    BinaryEmbeddingBag,
    BinaryLinear,
    BinaryMultiheadAttention,
    BitLinear,
    GroupwiseLinear,
    MixedGroupwiseLinear,
    MultiTernaryConv,
    MultiTernaryConv1d,
    MultiTernaryConv2d,
    MultiTernaryConv3d,
    MultiTernaryLinear,
    NBitConv1d,
    NBitConv2d,
    NBitConv3d,
    NBitLinear,
    QuantizedConv,
    QuantizedLinear,
    RPReLU,
    RSign,
    TernaryConv,
    TernaryConv1d,
    TernaryConv2d,
    TernaryConv3d,
    TernaryEmbedding,
    TernaryEmbeddingBag,
)
from impl.model_summary import summary
from impl.native import backend
from impl.packing import (
    PackedWeight,
    compression_ratio,
    estimate_memory_savings,
    pack_ternary_base3,
    unpack_ternary_base3,
)
from impl.quantizers import quantize_binary, quantize_k_ternary, quantize_ternary
from impl.thresholds import fuse_thresholds

__version__ = "0.1.0"

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
    "Capabilities",
    "ConvGeometry",
    "ConversionReport",
    "GroupwiseLinear",
    "Kernel",
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
    "PackedWeight",
    "QuantizedConv",
    "QuantizedLinear",
    "RPReLU",
    "RSign",
    "TernaryConv",
    "TernaryConv1d",
    "TernaryConv2d",
    "TernaryConv3d",
    "TernaryEmbedding",
    "TernaryEmbeddingBag",
    "absmax_scale",
    "activation_quant",
    "backend",
    "binary_conv",
    "binary_linear",
    "bitlinear_python",
    "capabilities",
    "checkpoint",
    "compression_ratio",
    "convert_convolutions",
    "convert_linear_to_bitlinear",
    "dequantize_scale",
    "estimate_memory_savings",
    "fuse_batch_norm",
    "fuse_batch_norms",
    "fuse_thresholds",
    "greedy_ternary_decomposition",
    "multi_ternary_linear_python",
    "optim",
    "pack",
    "pack_ternary_base3",
    "parameters",
    "prepare",
    "quantize_activations_absmax",
    "quantize_binary",
    "quantize_k_ternary",
    "quantize_ternary",
    "quantizers",
    "summary",
    "ternary_conv",
    "ternary_linear",
    "ternary_quantize",
    "training",
    "unpack",
    "unpack_ternary_base3",
    "weight_to_ternary",
]
