"""Parameters that keep one bit, one byte or a few bits a weight and train without a float copy.

    weight = BinaryLinearParameter(torch.randn(256, 784))      # a leaf that takes part in autograd
    layer.weight = weight                                       # a parameter of any module
    optimizer = impl.optim.DiodeMix(model.parameters())

They are wrapper tensors: floating point outside, integers inside (:mod:`impl.parameters.tensor`).
"""

import torch as _torch

from impl.parameters.binary import (
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    BinaryLinearParameter,
    BinaryParameter,
)
from impl.parameters.mpq import MPQWeightParameter
from impl.parameters.nbit import NBitParameter, nBitConvParameter, nBitLinearParameter
from impl.parameters.rules import DIODE_MARGIN, Projector
from impl.parameters.tensor import LowBitParameter, rebuild
from impl.parameters.wrapper import LowBitTensor

# torch.load(weights_only=True) makes only what it has been told of.
_torch.serialization.add_safe_globals(
    [
        BinaryConvParameter,
        BinaryEmbeddingParameter,
        BinaryLinearParameter,
        BinaryParameter,
        MPQWeightParameter,
        NBitParameter,
        nBitConvParameter,
        nBitLinearParameter,
        rebuild,
    ]
)

__all__ = [
    "DIODE_MARGIN",
    "BinaryConvParameter",
    "BinaryEmbeddingParameter",
    "BinaryLinearParameter",
    "BinaryParameter",
    "LowBitParameter",
    "LowBitTensor",
    "MPQWeightParameter",
    "NBitParameter",
    "Projector",
    "nBitConvParameter",
    "nBitLinearParameter",
]
