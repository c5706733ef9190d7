"""Layers with binary, ternary and k-ternary weights."""

from impl.layers.base import QuantizedLinear
from impl.layers.binary import BinaryLinear
from impl.layers.k_ternary import MultiTernaryLinear
from impl.layers.ternary import BitLinear

__all__ = ["BinaryLinear", "BitLinear", "MultiTernaryLinear", "QuantizedLinear"]
