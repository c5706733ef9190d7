"""Reference implementations of the packed linear operators: the referee for every kernel.

Written to be read. Integer dot products are formed in float64, where they are exact (they stay far
below 2^53), and the epilogue follows ``impl.h`` operation by operation in float32, so that a kernel
must reproduce integer-activation results to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import check_activations
from impl.packing import PackedWeight
from impl.quantizers import quantize_activations
from impl.quantizers.activations import check_activation_bits

ROWS_AT_A_TIME = 1024
"""Output features decoded to float64 together: bounds the memory of large layers."""


def binary_linear_python(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation_bits: int | None = None
) -> Tensor:
    """y = x W^T + bias for a ``binary`` weight; ``activation_bits`` None (float), 1 (signs), 2
    (ternary values), 8 or 16.

    ``x`` is float32, bfloat16 or float16 [..., cols] with any strides, ``bias`` [rows] or None; the
    result [..., rows] has the dtype of ``x``.
    """
    check_operands(x, weight, bias, activation_bits, ("binary",))
    return _linear(x, weight, bias, activation_bits)


def ternary_linear_python(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation_bits: int | None = None
) -> Tensor:
    """y = x W^T + bias for a ternary or k-ternary weight (``two_bit`` or ``base3``); otherwise as
    :func:`binary_linear_python`."""
    check_operands(x, weight, bias, activation_bits, ("two_bit", "base3"))
    return _linear(x, weight, bias, activation_bits)


def check_operands(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation_bits: int | None,
    formats: tuple[str, ...],
) -> None:
    """Refuse operands that the operator for ``formats`` does not take."""
    check_format(weight, activation_bits, formats)
    check_activations(x, weight.cols)
    check_bias(bias, weight)


def check_format(
    weight: PackedWeight,
    activation_bits: int | None,
    formats: tuple[str, ...],
    operation: str = "linear",
) -> None:
    """Refuse a weight of another format than ``formats`` and an activation width that there is not."""
    if weight.format not in formats:
        other = "ternary" if "binary" in formats else "binary"
        raise ValueError(
            f"this operator takes weights of format {' or '.join(map(repr, formats))}, "
            f"got {weight.format!r}: call {other}_{operation}"
        )
    if activation_bits is not None:
        check_activation_bits(activation_bits)


def check_bias(bias: Tensor | None, weight: PackedWeight) -> None:
    """Refuse a bias that ``weight`` does not go with."""
    if bias is None:
        return
    if not bias.is_floating_point():
        raise TypeError(f"bias must be floating point, got {bias.dtype}")
    if tuple(bias.shape) != (weight.rows,):
        raise ValueError(f"bias must have shape [{weight.rows}] (out_features), got {tuple(bias.shape)}")


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> Tensor:
    rows = x.reshape(-1, weight.cols)
    if activation_bits is None:
        product = _float_product(rows, weight)
    else:
        q, activation_scale = quantize_activations(rows, activation_bits)
        product = _integer_product(q, weight) * activation_scale
    if bias is not None:
        product = product + bias.to(product.dtype)
    return product.to(x.dtype).reshape(*x.shape[:-1], weight.rows)


def _integer_product(q: Tensor, weight: PackedWeight) -> Tensor:
    """t of ``impl.h``, float32 [M, rows]: over components, then groups, t = t + scale * dot."""
    q64 = q.to(torch.float64)
    tiles = []
    for codes, scales in _row_tiles(weight):
        total = torch.zeros(q.shape[0], codes.shape[1], dtype=torch.float32, device=q.device)
        for component_codes, component_scales in zip(codes, scales, strict=True):
            for columns, scale in zip(_groups(weight), component_scales.unbind(-1), strict=True):
                dot = q64[:, columns] @ component_codes[:, columns].to(torch.float64).T
                total = total + scale.to(torch.float32) * dot.to(torch.float32)
        tiles.append(total)
    return torch.cat(tiles, dim=-1)


def _float_product(x: Tensor, weight: PackedWeight) -> Tensor:
    """Product with the decoded weight, float64 [M, rows]; differentiable with respect to ``x``."""
    x64 = x.to(torch.float64)
    tiles = []
    for codes, scales in _row_tiles(weight):
        decoded = torch.zeros(codes.shape[1:], dtype=torch.float64, device=codes.device)
        for component_codes, component_scales in zip(codes, scales, strict=True):
            for columns, scale in zip(_groups(weight), component_scales.unbind(-1), strict=True):
                decoded[:, columns] += component_codes[:, columns] * scale.to(torch.float64).unsqueeze(-1)
        tiles.append(x64 @ decoded.T)
    return torch.cat(tiles, dim=-1)


def _row_tiles(weight: PackedWeight) -> list[tuple[Tensor, Tensor]]:
    """Codes [k, n, cols] and scales [k, n or 1, G] of successive tiles of n rows."""
    codes = weight.unpack().split(ROWS_AT_A_TIME, dim=1)
    if weight.scales.shape[1] == 1:
        return [(tile, weight.scales) for tile in codes]
    return list(zip(codes, weight.scales.split(ROWS_AT_A_TIME, dim=1), strict=True))


def _groups(weight: PackedWeight) -> list[slice]:
    """The columns of each scale group."""
    size = weight.group_size or weight.cols
    return [slice(begin, min(begin + size, weight.cols)) for begin in range(0, weight.cols, size)]
