"""GreenBitAI/bitorch-engine: its layers, parameters and helpers, on stock torch and any device.

Against the original: one packed layout for every class and device, held by ``state_dict``; any shape,
stride and number of leading dimensions; packed bits are never older than the weight; sign(0) is +1 in
the forward and the backward pass; quantisation scales by the largest magnitude, not the largest value;
what cannot be served raises an error and leaves the process alone. New are ``bias``, a scale per row
or channel, ``from_linear`` and ``from_conv``.

The names are here together, and below at their paths in the original: ``layers``, ``functions``,
``optim`` and ``utils``, so that ``bitorch_engine.`` in an import becomes
``impl.compat.bitorch_engine.``.
"""

from impl.compat.bitorch_engine.attention import BMHA, LearnableBias
from impl.compat.bitorch_engine.binary_matmul import BinaryMatMul
from impl.compat.bitorch_engine.conv import BinaryConv2dBase, BinaryConv2dCPP, BinaryConv2dCutlass
from impl.compat.bitorch_engine.embedding import BinaryEmbeddingBag, BinaryEmbeddingCuda
from impl.compat.bitorch_engine.inference import QLinearInf
from impl.compat.bitorch_engine.linear import (
    BMM,
    BinaryLinear,
    BinaryLinearBase,
    BinaryLinearCPP,
    BinaryLinearCuda,
    BinaryLinearCutlass,
    get_best_binary_implementation,
)
from impl.compat.bitorch_engine.nbit import Q4LinearCutlass, Q4MatMul, Q8LinearCutlass, nBitLinearBase
from impl.compat.bitorch_engine.nbit_conv import Q4Conv2dCutlass, nBitConv2dBase
from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearBase, MPQLinearCuda, MPQLinearMlx
from impl.compat.bitorch_engine.nbit_mixed import MBWQLinearCuda
from impl.compat.bitorch_engine.quant_operators import init_weight, nv_tensor_quant
from impl.convert_tools import load_checkpoint, pack_bie_layers, prepare_bie_layers, save_checkpoint
from impl.parameters import (
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    BinaryLinearParameter,
    MPQWeightParameter,
    nBitConvParameter,
    nBitLinearParameter,
)

__all__ = [
    "BMHA",
    "BMM",
    "BinaryConv2dBase",
    "BinaryConv2dCPP",
    "BinaryConv2dCutlass",
    "BinaryConvParameter",
    "BinaryEmbeddingBag",
    "BinaryEmbeddingCuda",
    "BinaryEmbeddingParameter",
    "BinaryLinear",
    "BinaryLinearBase",
    "BinaryLinearCPP",
    "BinaryLinearCuda",
    "BinaryLinearCutlass",
    "BinaryLinearParameter",
    "BinaryMatMul",
    "LearnableBias",
    "MBWQLinearCuda",
    "MPQLinearBase",
    "MPQLinearCuda",
    "MPQLinearMlx",
    "MPQWeightParameter",
    "Q4Conv2dCutlass",
    "Q4LinearCutlass",
    "Q4MatMul",
    "Q8LinearCutlass",
    "QLinearInf",
    "get_best_binary_implementation",
    "init_weight",
    "load_checkpoint",
    "nBitConv2dBase",
    "nBitConvParameter",
    "nBitLinearBase",
    "nBitLinearParameter",
    "nv_tensor_quant",
    "pack_bie_layers",
    "prepare_bie_layers",
    "save_checkpoint",
]
