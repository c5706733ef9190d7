"""Layers on CUTLASS, on a real GPU: what a run has to pass before ``proven.json`` may record the kernel.

    BITIMPL_UNPROVEN=1 python -m pytest tests/impl/cuda/test_on_gpu_cutlass.py

Skipped where there is no GPU, or where the kernel was not built or may not be used of itself.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import impl
from impl import native
from impl.compat.bitorch_engine import BinaryConv2dCutlass, BinaryLinearCutlass

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run on a GPU machine")


@pytest.fixture(autouse=True)
def usable() -> None:
    why_not = impl.capabilities().cuda.cutlass.why_not
    if why_not:
        pytest.skip(why_not)


def signs(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def served_by() -> str:
    return native.last_kernel().split("/")[-2]


@pytest.mark.parametrize("columns", [1, 33, 127, 128, 512, 640, 1000, 4096, 12288])
@pytest.mark.parametrize("rows", [1, 4, 7, 128, 130, 1000])
def test_linear(columns: int, rows: int) -> None:
    torch.manual_seed(rows * columns)
    layer = BinaryLinearCutlass(columns, rows, bias=True).eval()
    w = torch.randn(rows, columns)
    layer.set_weight_data(w)
    layer.generate_quantized_weight(qweight_only=True)
    with torch.no_grad():
        layer.scale_a.fill_(0.5)
        layer.bias.uniform_()
    layer = layer.cuda()
    for tokens in (1, 2, 7, 8, 127, 129, 1000):
        x = torch.randn(tokens, columns)
        with torch.no_grad():
            y = layer(x.cuda()).cpu()
        assert served_by() == "cutlass"
        product = (signs(x).double() @ signs(w - w.mean()).double().t()).float()
        expected = product * 0.5 * layer.scale_w.cpu() + layer.bias.cpu()
        assert torch.equal(y, expected), (tokens, rows, columns)


CONVS = [
    # channels, rows, groups, size, kernel, stride, padding, dilation
    (1, 1, 1, (1, 1), 1, 1, 0, 1),
    (3, 64, 1, (33, 31), 7, 2, 3, 1),
    (64, 64, 1, (56, 56), 3, 1, 1, 1),
    (130, 30, 1, (14, 15), 3, 2, 1, 1),
    (512, 512, 1, (7, 7), 3, 1, 1, 1),
    (640, 132, 1, (9, 5), (3, 2), (1, 2), (2, 1), (1, 2)),
    (256, 128, 1, (28, 28), 1, 2, 0, 1),
    (256, 64, 1, (13, 9), 1, 1, 0, 1),
    (256, 48, 2, (12, 12), 3, 1, 2, 2),
    (12, 12, 12, (20, 21), 3, 1, 1, 1),
    (40, 16, 1, (4, 90), (1, 40), 1, (0, 20), 1),
]


@pytest.mark.parametrize("shape", CONVS, ids=lambda shape: "-".join(map(str, shape[:3])))
@pytest.mark.parametrize("padding_value", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions(shape: tuple, padding_value: float, layout: torch.memory_format) -> None:
    channels, rows, groups, size, kernel, stride, padding, dilation = shape
    torch.manual_seed(channels)
    layer = BinaryConv2dCutlass(
        channels, rows, kernel, stride, padding, dilation, groups=groups, padding_value=padding_value
    ).eval()
    w = torch.randn(layer.weight_shape)
    layer.set_weight_data(w)
    layer.generate_quantized_weight(qweight_only=True)
    with torch.no_grad():
        layer.scale_a.fill_(0.5)
    layer = layer.cuda()
    high, wide = padding if isinstance(padding, tuple) else (padding, padding)
    for samples in (1, 3, 40):
        x = torch.randn(samples, channels, *size)
        with torch.no_grad():
            y = layer(x.cuda().to(memory_format=layout)).cpu()
        assert served_by() == "cutlass"
        padded = F.pad(signs(x).double(), (wide, wide, high, high), value=padding_value)
        product = F.conv2d(padded, signs(w - w.mean()).double(), None, stride, 0, dilation, groups)
        assert torch.equal(y, product.round().float() * 0.5 * layer.scale_w.cpu()), (samples, shape)
