"""Int8 weights and activations multiplied by ``torch._int_mm``."""

from __future__ import annotations

import torch
from torch import Tensor

from bitbench.layers.peers.modules.base import PeerLinear, check_tensor

LEVELS = 127.0
FLOOR = 1e-5
"""Least amax of a row: a row of zeros has a scale too."""
GPU_TOKENS = 32
"""On a GPU, ``torch._int_mm`` takes no fewer than 17 rows, and as fast as a warp's tile from here on."""


class IntMM(PeerLinear):
    """``codes`` int8 ``[out, in]`` and ``scales`` float32 ``[out]``.

    Each call quantises the activations per token: q = round half to even of x * (127 / amax), scale
    amax / 127, with amax = max(max|x|, 1e-5). Sums are int32.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__(codes.shape[1], codes.shape[0], bias)
        check_tensor("codes", codes, torch.int8, (codes.shape[0], codes.shape[1]))
        check_tensor("scales", scales, torch.float32, (codes.shape[0],))
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def kernel(self) -> str:
        return f"torch/int_mm/int8/{self.codes.device.type}"

    def rows(self, x: Tensor) -> Tensor:
        amax = x.abs().amax(dim=1, keepdim=True).clamp_(min=FLOOR)
        q = (x * (LEVELS / amax)).round_().to(torch.int8)
        if q.is_cuda:
            q = enough(q)
        y = torch._int_mm(q, self.codes.t())[: len(x)].float()
        y.mul_(amax / LEVELS).mul_(self.scales)
        return y if self.bias is None else y.add_(self.bias)


def enough(q: Tensor) -> Tensor:
    """``q [M, in]`` with rows of zeros behind it up to :data:`GPU_TOKENS`, where it has fewer."""
    return torch.nn.functional.pad(q, (0, 0, 0, max(0, GPU_TOKENS - len(q))))
