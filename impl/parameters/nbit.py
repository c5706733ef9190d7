"""Parameters of a few bits each: integers with a scale a row."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from impl.checks import SCALES, check_choice, check_weight
from impl.parameters.checks import check_data, check_dimensions, check_scales, outside_dtype
from impl.parameters.rules import Update, adamw_change, dithered
from impl.parameters.tensor import LowBitParameter


class NBitParameter(LowBitParameter):
    """A parameter whose values are code * scale with signed codes of ``bits`` bits, one int8 each.

    data: floating point (the codes are the nearest ones to the values, the scale is the largest
        *magnitude* over the largest code), or int8 codes in -(2^(bits-1) - 1) .. 2^(bits-1) - 1.
    scales: float [rows] or [1]; for int8 codes only, whose scale is 1 without it.
    scale: "row" or "tensor", what shares a scale where ``scales`` is None.
    bits: 2 to 8. dtype: floating dtype outside; None takes that of the data, else float32.

    **The update** is AdamW on the decoded values. The scale stays unless a row outgrows its codes or
    shrinks below half their range. The result is rounded up or down so that its mean over the steps
    is exact (:func:`impl.parameters.rules.dithered`): to the nearest code, steps below half a code would
    be lost altogether, and ``lr`` with them. A row without gradient and decay stays what it is to the
    bit.

    Raises TypeError or ValueError for other data, NaN and infinity included.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    _tensors = ("codes", "scales")
    _attributes = ("bits",)
    _dimensions: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = True,
        *,
        scales: Tensor | None = None,
        scale: str = "row",
        bits: int = 8,
        dtype: torch.dtype | None = None,
    ) -> Self:
        check_choice("scale", scale, SCALES)
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {bits!r}")
        data = check_data(data, cls._dimensions)
        check_dimensions(cls.__name__, data.shape, cls._dimensions)
        dtype = outside_dtype(dtype, data)
        if isinstance(data, NBitParameter) and data.bits == bits and scales is None:
            tensors, attributes = data._state(torch.clone)
            return cls._wrap(data.shape, dtype, tensors, attributes, requires_grad, is_param=True)
        matrix = (data.dequantize() if isinstance(data, LowBitParameter) else data).flatten(1)
        limit = _largest_code(bits)
        if matrix.is_floating_point():
            if scales is not None:
                raise ValueError("scales belong to int8 codes, floating-point data bring their own: drop one")
            codes, kept = _quantize(matrix, limit, scale)
        elif matrix.dtype == torch.int8:
            codes, kept = matrix.clone(), check_scales(scales, matrix, scale)
            _check_codes(codes, limit, bits)
        else:
            raise TypeError(f"data must be floating point or int8 codes, got {data.dtype}")
        tensors = {"codes": codes.reshape(data.shape), "scales": kept}
        return cls._wrap(data.shape, dtype, tensors, {"bits": bits}, requires_grad, is_param=True)

    def dequantize(self) -> Tensor:
        """code * scale as an ordinary tensor of this shape and dtype, without gradient."""
        values = self.codes.flatten(1) * self.scales.unsqueeze(1)
        return values.to(self.dtype).reshape(self.shape)

    def _descend(self, update: Update) -> None:
        limit = _largest_code(self.bits)
        codes = self.codes.flatten(1).to(update.grad.dtype)
        scales = self.scales.to(codes.dtype).unsqueeze(1)
        value = codes * scales
        change = adamw_change(value, update)
        value = value + change
        largest = _largest_magnitude(value, self._scope).unsqueeze(1)
        rescaled = (largest > limit * scales) | (largest < limit * scales / 2)
        kept = torch.where(rescaled, largest / limit, scales)
        divisor = torch.where(kept > 0, kept, 1)
        scaled = value / divisor
        below = scaled.floor()
        # Where the scale stays, from the code itself: without a change it comes out unchanged.
        whole = torch.where(rescaled, below, codes)
        fraction = torch.where(rescaled, scaled - below, change / divisor)
        rounded = dithered(whole, fraction, update.step).clamp_(-limit, limit)
        self.codes.copy_(rounded.reshape(self.shape))
        self.scales.copy_(kept.squeeze(1))

    def _store(self, value: Tensor) -> None:
        codes, scales = _quantize(value.flatten(1), _largest_code(self.bits), self._scope)
        self.codes.copy_(codes.reshape(self.shape))
        self.scales.copy_(scales)

    @property
    def _scope(self) -> str:
        return "tensor" if self.scales.numel() == 1 else "row"


class nBitLinearParameter(NBitParameter):
    """n-bit weight [out_features, in_features] of a linear layer; see :class:`NBitParameter`."""

    _dimensions = (2,)


class nBitConvParameter(NBitParameter):
    """n-bit weight [out_channels, in_channels / groups, *kernel] of a convolution; see
    :class:`NBitParameter`."""

    _dimensions = (4, 3, 5)


def _largest_code(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _largest_magnitude(matrix: Tensor, scope: str) -> Tensor:
    """Of each row, or of all: [rows] or [1]."""
    if matrix.numel() == 0:
        return matrix.new_zeros(matrix.shape[0] if scope == "row" else 1)
    magnitude = matrix.abs()
    return magnitude.amax(dim=1) if scope == "row" else magnitude.amax().view(1)


def _quantize(matrix: Tensor, limit: int, scope: str) -> tuple[Tensor, Tensor]:
    """Nearest codes (int8 matrix) and scales (float32 [rows] or [1]) of floating-point ``matrix``."""
    if matrix.numel():
        check_weight(matrix, check_finite=True)
    matrix = matrix.to(torch.float32)
    scales = _largest_magnitude(matrix, scope) / limit
    divisor = torch.where(scales > 0, scales, 1).unsqueeze(1)
    return (matrix / divisor).round_().clamp_(-limit, limit).to(torch.int8), scales


def _check_codes(codes: Tensor, limit: int, bits: int) -> None:
    if codes.numel() == 0 or codes.is_meta:
        return
    low, high = (int(v) for v in torch.aminmax(codes))
    if low < -limit or high > limit:
        raise ValueError(f"codes of {bits} bits lie in -{limit} .. {limit}, got {low} .. {high}")
