"""The operators as functions: readable references (``*_python``) and the dispatching ones."""

from impl.functional.bitlinear import (
    absmax_scale,
    activation_quant,
    bitlinear_python,
    dequantize_scale,
    greedy_ternary_decomposition,
    multi_ternary_linear_python,
    quantize_activations_absmax,
    ternary_quantize,
    weight_to_ternary,
)
from impl.functional.conv_reference import binary_conv_python, ternary_conv_python
from impl.functional.dispatch import binary_conv, binary_linear, ternary_conv, ternary_linear
from impl.functional.reference import binary_linear_python, ternary_linear_python

__all__ = [
    "absmax_scale",
    "activation_quant",
    "binary_conv",
    "binary_conv_python",
    "binary_linear",
    "binary_linear_python",
    "bitlinear_python",
    "dequantize_scale",
    "greedy_ternary_decomposition",
    "multi_ternary_linear_python",
    "quantize_activations_absmax",
    "ternary_conv",
    "ternary_conv_python",
    "ternary_linear",
    "ternary_linear_python",
    "ternary_quantize",
    "weight_to_ternary",
]
