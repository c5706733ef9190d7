"""Activation quantisation: the rules of ``impl.h``, to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import check_activations

ACTIVATION_BITS = (1, 2, 8, 16)
"""Widths that activations can be quantised to. None, elsewhere, stands for float activations."""

_LEVELS = {8: 127, 16: 32512}  # 32512 = 127 * 256: two int8 digits, the high one within -127 .. 127
FLOOR = 1e-5
"""Least amax of a row's scale."""

_THRESHOLD = 0.75

WINDOWS = {1: 2.0, 2: 1.5}
"""Widths that pass their gradient only where |x| is at most so many times the row's scale."""


def check_activation_bits(bits: int) -> int:
    """Return ``bits`` if activations can be quantised to that width."""
    if isinstance(bits, bool) or bits not in ACTIVATION_BITS:
        listing = ", ".join(map(str, ACTIVATION_BITS))
        raise ValueError(
            f"activation_bits must be one of {listing}, got {bits!r}: None, where a layer or operator takes "
            "it, stands for float activations"
        )
    return bits


def quantize_activations(x: Tensor, bits: int, dim: int | tuple[int, ...] = -1) -> tuple[Tensor, Tensor]:
    """Integer activations and their scale, for each row of ``x`` [..., n] (float32, bf16 or fp16).

    8 and 16 bits: with amax = max(max|x|, 1e-5) and L = 127 or 32512, in float32,
    q = clamp(round_half_even(x * (L / amax)), -L, L) and scale = amax / L. 1 bit: q = +1 where
    x >= 0 (so also at -0.0), else -1, and scale = mean|x|, summed in float64. 2 bits, ternary values with
    the threshold that Li and Liu (Ternary weight networks, 2016) find best for normally distributed values
    (their rule of thumb for weights is 0.7): with delta = 0.75 mean|x|, formed in float64 and rounded to
    float32, q = +1 where x > delta, -1 where x < -delta, else 0; scale = mean|x| over the values whose q
    is not 0, summed in float64; 0 where there are none.

    ``dim``: the dimensions along which values share a scale, by default a row's.

    Returns q, int8 (int16 for 16 bits), in the shape of ``x``, and scale float32 with size 1 along
    ``dim``. A row with a NaN or an infinity has a scale of NaN and codes 0 (1 bit: codes by the same
    comparison).
    """
    check_activation_bits(bits)
    values = check_activations(x).detach().to(torch.float32)
    if bits == 1:
        finite = torch.isfinite(values).all(dim=dim, keepdim=True)
        scale = values.abs().mean(dim=dim, keepdim=True, dtype=torch.float64).to(torch.float32)
        return torch.where(values >= 0, 1, -1).to(torch.int8), torch.where(finite, scale, torch.nan)
    if bits == 2:
        return _ternary(values, dim)
    q, scale = absmax_codes(values, _LEVELS[bits], dim)
    return q.to(torch.int8 if bits == 8 else torch.int16), scale


def absmax_codes(
    values: Tensor, limit: int, dim: int | tuple[int, ...], floor: float = FLOOR
) -> tuple[Tensor, Tensor]:
    """Codes within -limit .. limit, whole numbers in float32, and the scale of the float32 ``values``.

    With amax = max(max|x|, floor) along ``dim``, kept with size 1: code = round_half_even(x * (limit /
    amax)), scale = amax / limit. Where x holds NaN or infinity, codes are 0 and the scale is NaN.
    """
    amax = values.abs().amax(dim=dim, keepdim=True).clamp_min(floor)
    finite = torch.isfinite(amax)
    # A tensor over a tensor: number / tensor would be a reciprocal and a product, rounded twice.
    levels = torch.full_like(amax, limit)
    codes = (values * (levels / amax)).round().clamp(-limit, limit)
    return torch.where(finite, codes, 0.0), torch.where(finite, amax / levels, torch.nan)


def _ternary(values: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ternary values (int8) and their scale; codes 0 and a scale of NaN where x holds NaN or infinity."""
    magnitudes = values.abs()
    finite = torch.isfinite(magnitudes).all(dim=dim, keepdim=True)
    mean = magnitudes.mean(dim=dim, keepdim=True, dtype=torch.float64)
    kept = (magnitudes > (_THRESHOLD * mean).to(torch.float32)) & finite
    count = kept.sum(dim=dim, keepdim=True)
    total = torch.where(kept, magnitudes, 0.0).sum(dim=dim, keepdim=True, dtype=torch.float64)
    scale = torch.where(finite, (total / count.clamp_min(1)).to(torch.float32), torch.nan)
    return (values.sign() * kept).nan_to_num().to(torch.int8), scale


def fake_quantize_activations(x: Tensor, bits: int, dim: int | tuple[int, ...] = -1) -> Tensor:
    """``x`` rounded to the values that ``bits`` can hold, in its own dtype, differentiable.

    The gradient passes unchanged for 8 and 16 bits. For 1 bit it passes where |x| <= 2 mean|x|: the
    window of bitorch_engine's initial scale, which unlike a fixed window (|x| <= 1) does not depend
    on the unit of x. For 2 bits it passes where |x| <= 1.5 scale: what a uniform quantiser of three
    levels with that step rounds without clipping. ``dim`` as in :func:`quantize_activations`.
    """
    q, scale = quantize_activations(x, bits, dim)
    return (q * scale).to(x.dtype) + carrier(x, scale, bits)


def carrier(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Zeros that carry the gradient of quantised activations to ``x``."""
    zeros = x - x.detach()
    return zeros * passes_gradient(x.detach(), scale, bits) if bits in WINDOWS else zeros


def passes_gradient(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Where activations quantised to a width of ``WINDOWS``, with ``scale``, pass their gradient: bool."""
    return x.abs() <= WINDOWS[bits] * scale
