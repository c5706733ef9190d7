"""From float weights and activations to codes and scales, and gradients back through them."""

from impl.quantizers.activations import (
    ACTIVATION_BITS,
    fake_quantize_activations,
    quantize_activations,
)
from impl.quantizers.k_ternary import quantize_k_ternary
from impl.quantizers.rules import RULES
from impl.quantizers.samples import fake_quantize_samples, quantize_samples
from impl.quantizers.straight_through import STE, straight_through
from impl.quantizers.weights import Quantized, quantize_binary, quantize_ternary

__all__ = [
    "ACTIVATION_BITS",
    "RULES",
    "STE",
    "Quantized",
    "fake_quantize_activations",
    "fake_quantize_samples",
    "quantize_activations",
    "quantize_binary",
    "quantize_k_ternary",
    "quantize_samples",
    "quantize_ternary",
    "straight_through",
]
