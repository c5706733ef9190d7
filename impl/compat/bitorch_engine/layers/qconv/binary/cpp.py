"""``bitorch_engine.layers.qconv.binary.cpp``."""

from impl.compat.bitorch_engine.conv import BinaryConv2dCPP

__all__ = ["BinaryConv2dCPP"]
