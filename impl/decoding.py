"""Codes and float weights of a packed matrix, all rows or some.

Row blocks of a packed weight are contiguous, so a range of whole blocks is itself a packed
weight. That is what keeps decoding free of weight-sized temporaries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl import native, packing
from impl.packing import PackedWeight
from impl.quantizers import Quantized
from impl.tiles import BLOCK_ROWS


def block_slice(weight: PackedWeight, begin: int, end: int) -> PackedWeight:
    """Rows [begin, end) of ``weight`` as views of its tensors.

    ``begin`` is a multiple of the format's block; so is ``end``, unless it is the last row.
    """
    block = BLOCK_ROWS[weight.format]
    if begin % block or (end % block and end != weight.rows):
        raise ValueError(f"rows {begin}:{end} do not fall on blocks of {block} rows of {weight.format}")
    if weight.format == "binary" and weight.components != 1:
        raise ValueError(f"binary weights have one component, not {weight.components}")
    k, cols = weight.components, weight.cols
    first = packing.codes_bytes(weight.format, k, begin, cols) if begin else 0
    size = packing.codes_bytes(weight.format, k, end - begin, cols)
    scales = weight.scales if weight.scales.shape[1] == 1 else weight.scales[:, begin:end]
    part = weight.codes[first : first + size]
    return PackedWeight(weight.format, k, end - begin, cols, weight.group_size, part, scales)


def unpack_rows(weight: PackedWeight, begin: int, end: int) -> Tensor:
    """Codes int8 [components, end - begin, cols] of rows [begin, end)."""
    block = BLOCK_ROWS[weight.format]
    first = begin // block * block
    last = min(-(-end // block) * block, weight.rows)
    part = block_slice(weight, first, last)
    codes = part.unpack()
    return codes[:, begin - first : end - first]


def dequantize_rows(weight: PackedWeight, begin: int, end: int) -> Tensor:
    """Float32 weights [end - begin, cols] of rows [begin, end), on the weight's device."""
    if end <= begin:
        return weight.scales.new_empty((0, weight.cols), dtype=torch.float32)
    if native.uses_native(weight.codes.device, "decode", weight.format):
        return native.dequantize(weight, begin, end)
    scales = weight.scales if weight.scales.shape[1] == 1 else weight.scales[:, begin:end]
    return Quantized(unpack_rows(weight, begin, end), scales, weight.group_size).dequantize()
