"""Rows of a packed weight by index, in plain torch: what an embedding reads.

Only the bytes of the rows asked for are touched. The layouts are those at the head of
``csrc/include/impl.h``, here for weights of one component.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl.packing.layout import GROUPS_PER_BLOCK, RADIX, ROWS_PER_BYTE, STEP


def gather_codes(
    codes: Tensor, format: str, rows: int, cols: int, group_size: int | None, index: Tensor
) -> Tensor:
    """int8 codes [n, cols] of the rows ``index`` [n] (int32 or int64) of a packed [rows, cols].

    ``codes`` is uint8 [codes_bytes]. The indices must lie in 0 .. rows - 1: :func:`gather_scales`
    raises where they do not, a byte's address alone cannot always tell.
    """
    if format == "binary":
        return _gather_bits(codes.view(rows, -(-cols // 8)), cols, index)
    return _gather_digits(codes, format, rows, cols, group_size, index.to(torch.int64))


def gather_scales(scales: Tensor, rows: int, index: Tensor) -> Tensor:
    """Scales [n, groups] of the rows ``index`` [n], from [1, rows or 1, groups].

    Indices outside 0 .. rows - 1 are torch's error, also where all rows share a scale.
    """
    return scales[0].expand(rows, -1).index_select(0, index)


def _gather_bits(bytes_: Tensor, cols: int, index: Tensor) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=bytes_.device)
    bits = bytes_.index_select(0, index).unsqueeze(-1) >> places & 1
    return bits.flatten(1)[:, :cols].to(torch.int8) * 2 - 1


def _gather_digits(
    codes: Tensor, format: str, rows: int, cols: int, group_size: int | None, index: Tensor
) -> Tensor:
    per_byte, radix = ROWS_PER_BYTE[format], RADIX[format]
    row_group = index // per_byte
    block = row_group // GROUPS_PER_BLOCK
    groups_of_block = (-(-rows // per_byte) - block * GROUPS_PER_BLOCK).clamp(max=GROUPS_PER_BLOCK)
    # A block is a stream of steps of up to 64 columns that do not cross scale groups; a step holds
    # its columns once for each row group of the block.
    column = torch.arange(cols, device=codes.device)
    segment_size = group_size or cols
    segment = column // segment_size * segment_size
    step = segment + (column - segment) // STEP * STEP
    width = torch.minimum(step + STEP, (segment + segment_size).clamp(max=cols)) - step
    address = (
        (block * (GROUPS_PER_BLOCK * cols)).unsqueeze(1)
        + groups_of_block.unsqueeze(1) * step
        + (row_group % GROUPS_PER_BLOCK).unsqueeze(1) * width
        + (column - step)
    )
    bytes_ = codes.index_select(0, address.flatten()).view(address.shape)
    place_value = torch.pow(radix, index % per_byte).to(torch.uint8).unsqueeze(1)
    return (bytes_ // place_value % radix).to(torch.int8) - 1
