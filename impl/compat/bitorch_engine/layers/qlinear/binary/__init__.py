"""``bitorch_engine.layers.qlinear.binary``."""

from impl.compat.bitorch_engine.linear import BinaryLinear, BinaryLinearBase, get_best_binary_implementation
from impl.parameters import BinaryLinearParameter

__all__ = ["BinaryLinear", "BinaryLinearBase", "BinaryLinearParameter", "get_best_binary_implementation"]
