"""Layers with ``int8_training``, one backward pass of theirs, and the gradient it is to give."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear
from impl.layers.int8_training import Int8Training

OPTIONS: dict[str, Callable[..., Int8Training]] = {
    "tensor": functools.partial(BitLinear, int8_training=True, activation_bits=8),
    "row": functools.partial(
        BitLinear, int8_training=True, activation_bits=8, scale="row", format="two_bit", bias=False
    ),
    "groups": functools.partial(
        BitLinear, int8_training=True, activation_bits=8, rule="twn", group_size=24, ste="clip"
    ),
    "half scales": functools.partial(
        BitLinear, int8_training=True, activation_bits=8, rule="absmax", ste="clip", scale_dtype=torch.float16
    ),
    "binary": functools.partial(BinaryLinear, int8_training=True, activation_bits=8, ste="identity"),
    "binary groups": functools.partial(BinaryLinear, int8_training=True, activation_bits=8, group_size=24),
    "signs": functools.partial(
        BinaryLinear, int8_training=True, activation_bits=1, scale_dtype=torch.float16
    ),
    "signs, tensor": functools.partial(BinaryLinear, int8_training=True, activation_bits=1, scale="tensor"),
    "k": functools.partial(MultiTernaryLinear, k=1, int8_training=True, activation_bits=8, refit=False),
}
SIZES = [(1, 1), (67, 41), (128, 20), (5, 83)]
ROWS = [(3,), (2, 5), (0,), (2, 0, 3), (1,), (70,), ()]


def layer_of(kind: str, cols: int = 67, rows: int = 41, **options: Any) -> Int8Training:
    torch.manual_seed(cols)
    layer = OPTIONS[kind](cols, rows, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, cols))  # some beyond 1: there is something for "clip" to stop
    return layer


def backward(layer: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """y, the gradient given to it, and the gradients that came out."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    y.backward(grad)
    found = {name: p.grad for name, p in layer.named_parameters()}
    return y.detach(), grad, {**found, "x": x.grad}


def expected_grad_x(grad: Tensor, layer: Int8Training) -> np.ndarray:
    """float64 [M, cols]: integers of grad times scale, rounded as impl_cuda.h says, times codes."""
    codes, scales = (t[0].double().numpy() for t in layer._codes_and_scales())
    dy = grad.reshape(-1, layer.out_features).float().numpy()
    width = layer.group_size or layer.in_features
    parts = []
    for group, begin in enumerate(range(0, layer.in_features, width)):
        v = dy * scales[:, group].astype(np.float32)
        amax = np.maximum(np.abs(v).max(axis=1, keepdims=True), np.float32(1e-36))
        q = np.rint(v * (np.float32(127) / amax)).astype(np.float64)
        step = (amax / np.float32(127)).astype(np.float64)
        parts.append(step * (q @ codes[:, begin : begin + width]))
    return np.concatenate(parts, axis=1)
