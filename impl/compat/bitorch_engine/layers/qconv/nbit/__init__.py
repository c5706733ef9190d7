"""``bitorch_engine.layers.qconv.nbit``."""

from impl.compat.bitorch_engine.nbit_conv import nBitConv2dBase
from impl.parameters import nBitConvParameter

__all__ = ["nBitConv2dBase", "nBitConvParameter"]
