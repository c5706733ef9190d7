"""``bitorch_engine.layers.qlinear.nbit.mps``."""

from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearMlx

__all__ = ["MPQLinearMlx"]
