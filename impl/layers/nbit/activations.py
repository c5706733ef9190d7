"""Activations as integer codes of 2 to 8 bits, with a scale of the moment or a learned one.

*dynamic*: a scale a row (token) or sample, max|x| / L, as in ``csrc/include/impl.h``. *learned*: one
step size for the layer, trained by LSQ (Esser et al., ICLR 2020).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from impl.layers.nbit.integers import largest_code
from impl.quantizers.activations import FLOOR, absmax_codes

ACTIVATION_SCALES = ("dynamic", "learned")


def quantize_dynamic(x: Tensor, bits: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """int8 codes of ``x``, and the float32 scale over ``dims``, kept with size 1, by
    :func:`impl.quantizers.activations.absmax_codes`."""
    codes, scale = absmax_codes(x.detach().to(torch.float32), largest_code(bits), dims)
    return codes.to(torch.int8), scale


def quantize_learned(x: Tensor, scale: Tensor, bits: int, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """int8 codes round_half_even(x / s) in -L - 1 .. L, and s = max(|scale|, 1e-5) as a float32 tensor
    over ``dims``, kept with size 1: NaN where x holds NaN or infinity."""
    values, step = x.detach().to(torch.float32), positive(scale.detach())
    finite = torch.isfinite(values).all(dim=dims, keepdim=True)
    codes = torch.where(finite, (values / step).round(), 0.0)
    high = largest_code(bits)
    return codes.clamp(-high - 1, high).to(torch.int8), torch.where(finite, step, torch.nan)


class LearnedStep(torch.autograd.Function):
    """LSQ: clamp(round(x / s), -L - 1, L) * s for s = max(|scale|, 1e-5), in the dtype of x.

    Backward, with g the gradient and n the number of elements of x (equations 3 and 5 of the paper):
        x      g where x / s lies in -L - 1 .. L, else 0
        scale  sum(g r) / sqrt(n L), r being round(x / s) - x / s inside, and the bound that x / s
               exceeds outside
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, high: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.high = high
        step = positive(scale)
        codes = (x.to(torch.float32) / step).round().clamp(-high - 1, high)
        return (codes * step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, scale = ctx.saved_tensors
        high, low = ctx.high, -ctx.high - 1
        ratio = x.to(torch.float32) / positive(scale)
        inside = (ratio >= low) & (ratio <= high)
        towards = torch.where(inside, ratio.round() - ratio, ratio.clamp(low, high))
        total = (grad.to(torch.float32) * towards).sum() / math.sqrt(max(1, x.numel()) * high)
        total = torch.where(scale < 0, -total, total)
        return grad * inside, total.to(scale.dtype).reshape(scale.shape), None


def positive(scale: Tensor) -> Tensor:
    """The step size that a learned ``scale`` stands for: max(|scale|, 1e-5), float32."""
    return scale.to(torch.float32).abs().clamp_min(FLOOR)
