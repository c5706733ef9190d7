"""Exact outputs in float64, by other code than any kernel. Worker side: imports torch when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitbench.layers.cost import ROWS_PER_BYTE, ceil_div

if TYPE_CHECKING:
    import torch

    from impl.packing import PackedWeight

GROUPS_PER_BLOCK = 4
"""Row groups of a block, the unit that lies contiguously in the ternary layouts (impl.h)."""


def decode_rows(weight: PackedWeight, rows: slice) -> torch.Tensor:
    """Float64 weights ``[rows, cols]`` of some output features.

    Only the bytes of the row blocks that hold these rows are unpacked, by the torch code of
    :mod:`impl.packing`: decoding whole matrices would cost more than timing them.
    """
    import torch

    from impl.packing import unpack

    start, stop, _ = rows.indices(weight.rows)
    if weight.format == "binary":
        stride = ceil_div(weight.cols, 8)
        part = weight.codes.view(weight.components, weight.rows, stride)[:, start:stop]
        first, count = start, stop - start
        codes = unpack(part.reshape(-1), "binary", weight.components, count, weight.cols)
    else:
        per_byte = ROWS_PER_BYTE[weight.format]
        block = per_byte * GROUPS_PER_BLOCK
        first = start // block * block
        count = min(ceil_div(stop, block) * block, weight.rows) - first
        bytes_per_group = weight.components * weight.cols
        begin = first // per_byte * bytes_per_group
        end = begin + ceil_div(count, per_byte) * bytes_per_group
        codes = unpack(
            weight.codes[begin:end], weight.format, weight.components, count, weight.cols, weight.group_size
        )
    codes = codes[:, start - first : stop - first].to(torch.float64)
    scales = weight.scales if weight.scales.shape[1] == 1 else weight.scales[:, start:stop]
    columns = scales.to(torch.float64).repeat_interleave(weight.group_size or weight.cols, dim=2)
    return (codes * columns[:, :, : weight.cols]).sum(dim=0)


def product(
    x: torch.Tensor, decoded: torch.Tensor, bias: torch.Tensor | None, activation_bits: int | None
) -> torch.Tensor:
    """``x [M, in]`` times ``decoded [rows, in]`` transposed, plus ``bias [rows]``, in float64, after
    the activation quantisation that belongs to the layer's numerics."""
    import torch

    if activation_bits is None:
        y = x.to(torch.float64) @ decoded.T
    else:
        from impl.quantizers import quantize_activations

        q, scale = quantize_activations(x, activation_bits)
        y = (q.to(torch.float64) @ decoded.T) * scale.to(torch.float64)
    return y if bias is None else y + bias.to(torch.float64)
