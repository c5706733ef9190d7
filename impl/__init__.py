"""Binary, ternary and k-ternary layers for PyTorch, with packed weights and native kernels.

    import torch, impl

    layer = impl.BitLinear.from_linear(torch.nn.Linear(4096, 4096))   # packed: 1.6 bits a weight
    model = impl.convert_linear_to_bitlinear(model, skip=["lm_head"])  # a whole network
    model = impl.prepare(model)                                        # or: latent weights, to train

Importing this package registers ``torch.ops.bitimpl``; the native library is loaded by the first
call that can use it (see :mod:`impl.native`).
"""

from impl.capabilities import Capabilities, Kernel, capabilities
from impl.convert import ConversionReport, convert_linear_to_bitlinear, pack, prepare, unpack
from impl.functional import (
    absmax_scale,
    activation_quant,
    binary_linear,
    bitlinear_python,
    dequantize_scale,
    greedy_ternary_decomposition,
    multi_ternary_linear_python,
    quantize_activations_absmax,
    ternary_linear,
    ternary_quantize,
    weight_to_ternary,
)
from impl.layers import (
    BinaryEmbedding,
    BinaryEmbeddingBag,
    BinaryLinear,
    BinaryMultiheadAttention,
    BitLinear,
    MultiTernaryLinear,
    QuantizedLinear,
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

__version__ = "0.1.0"

__all__ = [
    "BinaryEmbedding",
    "BinaryEmbeddingBag",
    "BinaryLinear",
    "BinaryMultiheadAttention",
    "BitLinear",
    "Capabilities",
    "ConversionReport",
    "Kernel",
    "MultiTernaryLinear",
    "PackedWeight",
    "QuantizedLinear",
    "TernaryEmbedding",
    "TernaryEmbeddingBag",
    "absmax_scale",
    "activation_quant",
    "backend",
    "binary_linear",
    "bitlinear_python",
    "capabilities",
    "compression_ratio",
    "convert_linear_to_bitlinear",
    "dequantize_scale",
    "estimate_memory_savings",
    "greedy_ternary_decomposition",
    "multi_ternary_linear_python",
    "pack",
    "pack_ternary_base3",
    "prepare",
    "quantize_activations_absmax",
    "quantize_binary",
    "quantize_k_ternary",
    "quantize_ternary",
    "summary",
    "ternary_linear",
    "ternary_quantize",
    "unpack",
    "unpack_ternary_base3",
    "weight_to_ternary",
]
