"""``bitorch_engine.layers.qlinear.binary.cutlass``."""

from impl.compat.bitorch_engine.binary_matmul import BinaryMatMul
from impl.compat.bitorch_engine.linear import BinaryLinearCutlass

__all__ = ["BinaryLinearCutlass", "BinaryMatMul"]
