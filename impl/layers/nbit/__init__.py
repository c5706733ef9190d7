"""Layers with weights of 2 to 8 bits, beyond binary and ternary.

:class:`NBitLinear` and the convolutions multiply integer activations by integer weights (Q4, Q8);
:class:`GroupwiseLinear` and :class:`MixedGroupwiseLinear` hold group-wise quantised weights for float
activations (MPQ, GPTQ, MBWQ). None has a kernel: torch computes them.
"""

from impl.layers.nbit.base import IntegerLayer
from impl.layers.nbit.conv import NBitConv, NBitConv1d, NBitConv2d, NBitConv3d
from impl.layers.nbit.groupwise import GroupwiseLinear
from impl.layers.nbit.linear import NBitLinear
from impl.layers.nbit.mixed import MixedGroupwiseLinear

__all__ = [
    "GroupwiseLinear",
    "IntegerLayer",
    "MixedGroupwiseLinear",
    "NBitConv",
    "NBitConv1d",
    "NBitConv2d",
    "NBitConv3d",
    "NBitLinear",
]
