"""``bitorch_engine.layers.qconv.binary``."""

from impl.compat.bitorch_engine.conv import BinaryConv2dBase
from impl.parameters import BinaryConvParameter

__all__ = ["BinaryConv2dBase", "BinaryConvParameter"]
