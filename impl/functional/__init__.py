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
from impl.functional.dispatch import binary_linear, ternary_linear
from impl.functional.reference import binary_linear_python, ternary_linear_python

__all__ = [
    "absmax_scale",
    "activation_quant",
    "binary_linear",
    "binary_linear_python",
    "bitlinear_python",
    "dequantize_scale",
    "greedy_ternary_decomposition",
    "multi_ternary_linear_python",
    "quantize_activations_absmax",
    "ternary_linear",
    "ternary_linear_python",
    "ternary_quantize",
    "weight_to_ternary",
]
