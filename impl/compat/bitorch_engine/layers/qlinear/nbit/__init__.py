"""``bitorch_engine.layers.qlinear.nbit``."""

from impl.compat.bitorch_engine.nbit import nBitLinearBase
from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearBase
from impl.parameters import MPQWeightParameter, nBitLinearParameter

__all__ = ["MPQLinearBase", "MPQWeightParameter", "nBitLinearBase", "nBitLinearParameter"]
