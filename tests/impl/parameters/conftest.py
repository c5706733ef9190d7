"""``parameter``: a test that asks for it runs for one of every kind."""

from __future__ import annotations

import pytest
import torch

from impl.parameters import (
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    BinaryLinearParameter,
    MPQWeightParameter,
    nBitConvParameter,
    nBitLinearParameter,
)

MAKERS = {
    "binary-byte": lambda: BinaryLinearParameter(torch.randn(6, 11)),
    "binary-bit": lambda: BinaryLinearParameter(torch.randn(6, 11), packed=True),
    "binary-tensor-scale": lambda: BinaryLinearParameter(torch.randn(6, 11), scale="tensor"),
    "binary-conv": lambda: BinaryConvParameter(torch.randn(4, 3, 2, 3), packed=True),
    "binary-embedding": lambda: BinaryEmbeddingParameter(torch.randn(7, 10)),
    "nbit": lambda: nBitLinearParameter(torch.randn(6, 11)),
    "nbit-conv": lambda: nBitConvParameter(torch.randn(4, 3, 2, 3), bits=4),
    "mpq": lambda: MPQWeightParameter(torch.randn(64, 5), w_bit=4, group_size=32),
    "mbwq": lambda: MPQWeightParameter(
        torch.randn(96, 5), rows=[32, 32, 32, 64, 64, 96], group_size=32, q_perm=torch.arange(96)
    ),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS.keys())
def parameter(request):
    torch.manual_seed(0)
    return request.param()
