"""Symmetric integer codes of 2 to 8 bits: scales, bytes, and products without rounding.

A value is code * scale. With L = 2^(bits-1) - 1, absmax codes lie in -L .. L; codes of a scale that is
learned or taken from a mean also reach -L - 1. Codes of up to 4 bits are packed two a byte, wider ones
take a byte each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from impl.checks import check_weight
from impl.ops.library import without_autocast

WIDTHS = range(2, 9)
"""Bits that codes may have."""

_EXACT = {torch.float32: 1 << 24, torch.float64: 1 << 53}
"""Below these magnitudes, sums of integers are exact."""


def check_bits(name: str, bits: int) -> int:
    """``bits`` if it is an integer from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{name} must be an integer from 2 to 8, got {bits!r} ({type(bits).__name__})")
    if bits not in WIDTHS:
        raise ValueError(f"{name} must be an integer from 2 to 8, got {bits}")
    return bits


def largest_code(bits: int) -> int:
    """L: the largest code of so many bits."""
    return (1 << (bits - 1)) - 1


def absmax_scales(weight: Tensor, bits: int, scale: str) -> Tensor:
    """max|w| / L of each row of the float32 matrix ``weight``, or of all with ``scale="tensor"``:
    float32 [rows] or [1]."""
    magnitude = weight.abs()
    largest = magnitude.amax().view(1) if scale == "tensor" else magnitude.amax(dim=1)
    return largest / largest_code(bits)


def mean_scales(weight: Tensor, divisor: float, scale: str) -> Tensor:
    """max(2 mean|w| / ``divisor``, 1e-5), of each row or of all: float32 [rows] or [1]."""
    magnitude = weight.abs()
    mean = magnitude.mean().view(1) if scale == "tensor" else magnitude.mean(dim=1)
    return (2 * mean / divisor).clamp_min(1e-5)


def nearest_codes(weight: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    """int8 codes of the float32 matrix ``weight``: w / scale rounded half to even, within low .. high."""
    divisor = torch.where(scales > 0, scales, 1).unsqueeze(1)
    return (weight / divisor).round().clamp(low, high).to(torch.int8)


def weight_matrix(weight: Tensor, *, final: bool) -> Tensor:
    """``weight`` detached, as a float32 matrix [out, rest]; ``final`` refuses NaN and infinity."""
    return check_weight(weight.detach().flatten(1), check_finite=final).to(torch.float32)


def packed_bits(bits: int) -> int:
    """Bits that a code of so many takes once packed."""
    return 4 if bits <= 4 else 8


def bytes_per_row(cols: int, bits: int) -> int:
    """Bytes that a row of ``cols`` codes takes."""
    return -(-cols * packed_bits(bits) // 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, bytes_per_row] of int8 ``codes`` [rows, cols] in two's complement.

    Up to 4 bits: code 2 j in the low nibble of byte j and code 2 j + 1 in the high one; the nibble
    after the last code of an odd row is 0. More: a byte each.
    """
    if bits > 4:
        return codes.view(torch.uint8).clone()
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    nibbles = codes.view(torch.uint8) & 15
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def unpack_codes(packed: Tensor, cols: int, bits: int) -> Tensor:
    """int8 codes [rows, cols] from the bytes of :func:`pack_codes`."""
    if bits > 4:
        return packed.view(torch.int8)
    nibbles = torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :cols].to(torch.int8)
    return torch.where(nibbles > 7, nibbles - 16, nibbles)


def exact_dtype(terms: int, bits: int, other_bits: int) -> torch.dtype:
    """The dtype in which sums of ``terms`` products of codes of so many bits are exact."""
    largest = terms << (bits + other_bits - 2)
    return next(dtype for dtype, limit in _EXACT.items() if largest < limit)


def exact_matmul(left: Tensor, right: Tensor, bits: int, other_bits: int) -> Tensor:
    """left [..., M, K] times right [..., N, K] transposed, of integer codes: float32 [..., M, N],
    rounded once, where a sum does not fit."""
    dtype = exact_dtype(left.shape[-1], bits, other_bits)
    with without_autocast(left.device):
        product = left.to(dtype) @ right.to(dtype).transpose(-1, -2)
    return product.to(torch.float32)


class ExactValue(torch.autograd.Function):
    """``value``, with the gradient of ``carrier``: a float product of the same numbers."""

    @staticmethod
    def forward(_ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value) if value.dtype == carrier.dtype else value.to(carrier.dtype)

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
