"""``bitorch_engine.layers.qlinear.binary.cuda``."""

from impl.compat.bitorch_engine.linear import BMM, BinaryLinearCuda

__all__ = ["BMM", "BinaryLinearCuda"]
