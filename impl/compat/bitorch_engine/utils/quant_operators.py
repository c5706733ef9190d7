"""``bitorch_engine.utils.quant_operators``: quantisation and packing of single tensors."""

from impl.compat.bitorch_engine.nbit_tools import (
    gptq_style_unpacking,
    gptq_style_zeros_packing,
    q4_quantization,
    q8_quantization,
)
from impl.compat.bitorch_engine.quant_operators import nv_tensor_quant
from impl.compat.bitorch_engine.utils.binary_words import bit_set, get_binary_col, get_binary_row

#: The name in versions of the original that spell it so.
gptq_stype_unpacking = gptq_style_unpacking

__all__ = [
    "bit_set",
    "get_binary_col",
    "get_binary_row",
    "gptq_style_unpacking",
    "gptq_style_zeros_packing",
    "gptq_stype_unpacking",
    "nv_tensor_quant",
    "q4_quantization",
    "q8_quantization",
]
