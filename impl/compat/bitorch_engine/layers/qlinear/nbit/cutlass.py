"""``bitorch_engine.layers.qlinear.nbit.cutlass``."""

from impl.compat.bitorch_engine.nbit import Q4LinearCutlass, Q4MatMul, Q8LinearCutlass

__all__ = ["Q4LinearCutlass", "Q4MatMul", "Q8LinearCutlass"]
