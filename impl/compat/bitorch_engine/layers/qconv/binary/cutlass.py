"""``bitorch_engine.layers.qconv.binary.cutlass``."""

from impl.compat.bitorch_engine.conv import BinaryConv2dCutlass

__all__ = ["BinaryConv2dCutlass"]
