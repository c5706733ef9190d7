"""litespark's ternary kernels, called as its own runtime calls them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitbench.layers.peers.modules.base import PeerLinear, check_tensor

MAX_TOKENS = 64
"""More tokens at once than its batch kernel takes: that one returns without writing a result."""
WEIGHTS_PER_BYTE = 4


@cache
def kernels() -> Any:
    """Its module of ctypes bindings, library loaded."""
    from litespark_inference.torchless import kernel

    kernel.ensure_built()
    return kernel


@cache
def tier() -> str:
    """Instruction set its library was compiled for, and its version: ``avx512/1.0.3``."""
    name = kernels().ensure_built().name
    return f"{name.removeprefix('_matmul_lut_').partition('.')[0]}/{version('litespark-inference')}"


class LitesparkLinear(PeerLinear):
    """``codes`` uint8 ``[out, ceil(in / 4)]`` (low bits first, code - 1) and ``scales`` float32 ``[1]``.

    Activations become int8 per token in each call. Its threads are OpenMP's: ``OMP_NUM_THREADS``.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, in_features: int, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__(in_features, codes.shape[0], bias)
        width = -(-in_features // WEIGHTS_PER_BYTE)
        check_tensor("codes", codes, torch.uint8, (codes.shape[0], width))
        check_tensor("scales", scales, torch.float32, (1,))
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def kernel(self) -> str:
        return f"litespark/ternary_linear/two_bit/int8/{tier()}"

    def rows(self, x: Tensor) -> Tensor:
        padding = -self.in_features % WEIGHTS_PER_BYTE
        values = torch.nn.functional.pad(x, (0, padding)) if padding else x
        y = torch.empty(x.shape[0], self.out_features)
        self._multiply(values.numpy(), y.numpy())
        return y if self.bias is None else y.add_(self.bias)

    def _multiply(self, x: np.ndarray, y: np.ndarray) -> None:
        library = kernels()
        codes, scale = self.codes.numpy(), self.scales.item()
        tokens, width = x.shape
        if tokens == 1:
            q = np.empty(width, np.int8)
            x_scale = library.quantize_activation(x[0], q)
            library.matmul_packed_m1(q, codes, scale, x_scale, y[0])
            return
        q, x_scales = np.empty((tokens, width), np.int8), np.empty(tokens, np.float32)
        if library.has_batched_helpers():
            library.quantize_activation_batched(x, q, x_scales)
        else:
            for token in range(tokens):
                x_scales[token] = library.quantize_activation(x[token], q[token])
        for begin in range(0, tokens, MAX_TOKENS):
            part = slice(begin, begin + MAX_TOKENS)
            library.matmul_packed_mT(q[part], x_scales[part], codes, scale, y[part])
