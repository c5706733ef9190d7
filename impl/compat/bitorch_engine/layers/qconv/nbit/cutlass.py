"""``bitorch_engine.layers.qconv.nbit.cutlass``."""

from impl.compat.bitorch_engine.nbit_conv import Q4Conv2dCutlass

__all__ = ["Q4Conv2dCutlass"]
