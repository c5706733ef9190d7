"""``bitorch_engine.layers.qlinear.binary.cpp``."""

from impl.compat.bitorch_engine.linear import BinaryLinearCPP

__all__ = ["BinaryLinearCPP"]
