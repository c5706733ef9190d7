"""GreenBitAI/bitorch-engine: its binary linear layers, on stock torch and any device.

Against the original: one packed layout for every class and device, held by ``state_dict``; any shape,
stride and number of leading dimensions; packed bits are never older than the weight; sign(0) is +1 in
the forward and the backward pass; quantisation scales by the largest magnitude, not the largest value;
what cannot be served raises an error and leaves the process alone. New are ``bias``, a scale per row
and ``from_linear``.

Parameters that train without a float copy come from :mod:`impl.parameters`, on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from impl.compat.bitorch_engine.binary_matmul import BinaryMatMul
from impl.compat.bitorch_engine.linear import (
    BMM,
    BinaryLinear,
    BinaryLinearBase,
    BinaryLinearCPP,
    BinaryLinearCuda,
    BinaryLinearCutlass,
    get_best_binary_implementation,
)
from impl.compat.bitorch_engine.quant_operators import init_weight, nv_tensor_quant

_PARAMETERS = (
    "BinaryConvParameter",
    "BinaryEmbeddingParameter",
    "BinaryLinearParameter",
    "MPQWeightParameter",
    "nBitConvParameter",
    "nBitLinearParameter",
)

__all__ = [
    "BMM",
    "BinaryConvParameter",
    "BinaryEmbeddingParameter",
    "BinaryLinear",
    "BinaryLinearBase",
    "BinaryLinearCPP",
    "BinaryLinearCuda",
    "BinaryLinearCutlass",
    "BinaryLinearParameter",
    "BinaryMatMul",
    "MPQWeightParameter",
    "get_best_binary_implementation",
    "init_weight",
    "nBitConvParameter",
    "nBitLinearParameter",
    "nv_tensor_quant",
]


def __getattr__(name: str) -> Any:
    if name in _PARAMETERS:
        return getattr(importlib.import_module("impl.parameters"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
