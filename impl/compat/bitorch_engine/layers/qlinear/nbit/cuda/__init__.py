"""``bitorch_engine.layers.qlinear.nbit.cuda``."""

from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearCuda
from impl.compat.bitorch_engine.nbit_mixed import MBWQLinearCuda

__all__ = ["MBWQLinearCuda", "MPQLinearCuda"]
