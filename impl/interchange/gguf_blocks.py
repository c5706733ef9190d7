"""GGUF's ternary block layouts ``TQ1_0`` and ``TQ2_0`` in plain torch.

Both cut a row into blocks of 256 weights and end each block with one float16 scale d; a weight is
d * (digit - 1) with digits 0, 1, 2 (llama.cpp, pull request 8151).

``TQ2_0``, 66 bytes a block, 2.0625 bits a weight: two halves of 128 weights take 32 bytes each;
weight 32 j + i of a half sits in bits 2 j and 2 j + 1 of byte i.

``TQ1_0``, 54 bytes a block, 1.6875 bits a weight: three runs of 32, 16 and 4 bytes. With n bytes in
a run, byte i holds its weights i, n + i, 2 n + i, ... as base-3 digits, the most significant first:
five in the first two runs, four (and a last digit 0) in the third. The number q in 0 .. 242 is
stored as ceil(256 q / 243), so that each digit is what a product with 3 carries out of the byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import check_choice

BLOCK_WEIGHTS = 256
"""Weights in a block: rows must be a multiple of it long."""

BLOCK_BYTES = {"TQ1_0": 54, "TQ2_0": 66}
"""Bytes of a block, its scale included, by type."""

_SCALE_BYTES = 2
_RUNS = ((32, 5), (16, 5), (4, 4))  # bytes and digits a byte
_HALF_BYTES = 32


def encode_blocks(codes: Tensor, scales: Tensor, type: str) -> Tensor:
    """Blocks uint8 [rows, cols / 256 * bytes] of int8 ``codes`` [rows, cols] (-1, 0, +1) and
    floating-point ``scales`` [rows, cols / 256].

    A block without a weight other than 0 gets the scale 0, as gguf's own quantiser gives it.
    Raises ValueError for a row length that is no multiple of 256, for other codes, and for scales
    that float16 cannot hold; TypeError for other dtypes.
    """
    check_choice("GGUF type", type, BLOCK_BYTES)
    if codes.dtype != torch.int8 or not scales.is_floating_point():
        raise TypeError(f"codes are int8 and scales floating point, got {codes.dtype} and {scales.dtype}")
    if codes.dim() != 2 or 0 in codes.shape or codes.shape[1] % BLOCK_WEIGHTS:
        raise ValueError(
            f"{type} takes a matrix whose rows are a multiple of {BLOCK_WEIGHTS} long, "
            f"got shape {list(codes.shape)}: keep such a weight in another type"
        )
    rows, cols = codes.shape
    if tuple(scales.shape) != (rows, cols // BLOCK_WEIGHTS):
        raise ValueError(f"scales must be [{rows}, {cols // BLOCK_WEIGHTS}], got {list(scales.shape)}")
    low, high = (int(value) for value in torch.aminmax(codes))
    if low < -1 or high > 1:
        raise ValueError(f"codes must lie in -1 .. 1, got {low if low < -1 else high}: quantise first")
    half = scales.to(torch.float16)
    lost = ~torch.isfinite(half) | ((half == 0) & (scales != 0))
    if bool(lost.any()):
        raise ValueError(
            f"the scale {scales[lost][0].item():g} does not fit float16, which {type} stores: "
            "rescale the weight"
        )
    digits = (codes + 1).to(torch.uint8).reshape(rows, -1, BLOCK_WEIGHTS)
    half = torch.where((digits != 1).any(dim=-1), half, torch.zeros_like(half))
    body = _encode_base3(digits) if type == "TQ1_0" else _encode_two_bit(digits)
    tail = half.contiguous().unsqueeze(-1).view(torch.uint8)
    return torch.cat([body, tail], dim=-1).flatten(1)


def decode_blocks(blocks: Tensor, type: str) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, cols] and float16 scales [rows, cols / 256] of uint8 ``blocks`` [rows, bytes].

    Raises ValueError where the bytes are no whole blocks, hold values that no ternary weights give,
    or a scale that is not finite.
    """
    size = BLOCK_BYTES[check_choice("GGUF type", type, BLOCK_BYTES)]
    if blocks.dtype != torch.uint8 or blocks.dim() != 2 or 0 in blocks.shape or blocks.shape[1] % size:
        raise ValueError(
            f"{type} rows are uint8 [rows, blocks of {size} bytes], got {blocks.dtype} {list(blocks.shape)}"
        )
    rows = blocks.shape[0]
    split = blocks.reshape(rows, -1, size)
    body = split[..., :-_SCALE_BYTES]
    # A copy of its own: a view as float16 needs an even address.
    tail = split[..., -_SCALE_BYTES:].clone(memory_format=torch.contiguous_format)
    scales = tail.view(torch.float16).squeeze(-1)
    if not bool(torch.isfinite(scales).all()):
        raise ValueError(f"{type} blocks hold a scale that is not finite: damaged, or another type")
    if type == "TQ1_0":
        digits = _decode_base3(body)
        wrong = _encode_base3(digits) != body  # 13 of the 256 bytes stand for no five digits
    else:
        digits = _decode_two_bit(body)
        wrong = digits > 2
    if bool(wrong.any()):
        raise ValueError(
            f"{type} blocks hold {int(wrong.sum())} values that no ternary weights give: damaged, or "
            "another type"
        )
    return (digits.to(torch.int8) - 1).reshape(rows, -1), scales


def merge_scales(codes: Tensor, scales: Tensor) -> tuple[Tensor, int | None]:
    """The fewest scales that say the same as ``scales`` [rows, blocks] of ``codes`` [rows, cols].

    Returns ([1, 1, 1], None) where all blocks agree, ([1, rows, 1], None) where those of each row
    do, else ([1, rows, blocks], 256): scales and group size as :class:`impl.PackedWeight` has them.
    Blocks of zeros agree with any scale.
    """
    rows = codes.shape[0]
    used = (codes != 0).reshape(rows, -1, BLOCK_WEIGHTS).any(dim=-1)
    values = scales.to(torch.float32)
    highest = torch.where(used, values, -torch.inf).amax(dim=-1)
    lowest = torch.where(used, values, torch.inf).amin(dim=-1)
    zero_rows = ~used.any(dim=-1)
    if bool(zero_rows.all()):
        return scales.new_zeros(1, 1, 1), None
    if highest.max() == lowest.min():
        return highest.max().to(scales.dtype).view(1, 1, 1), None
    if bool(((highest == lowest) | zero_rows).all()):
        return highest.masked_fill(zero_rows, 0.0).to(scales.dtype).view(1, rows, 1), None
    return scales.unsqueeze(0).contiguous(), BLOCK_WEIGHTS


def _encode_base3(digits: Tensor) -> Tensor:
    """uint8 [rows, blocks, 52] of digits [rows, blocks, 256]."""
    numbers = []
    first = 0
    for width, count in _RUNS:
        planes = digits[..., first : first + width * count].unflatten(-1, (count, width))
        number = torch.zeros_like(planes[..., 0, :])
        for j in range(count):
            number += planes[..., j, :] * 3 ** (4 - j)
        numbers.append(number)
        first += width * count
    q = torch.cat(numbers, dim=-1).to(torch.int32)
    return ((q * 256 + 242) // 243).to(torch.uint8)


def _decode_base3(body: Tensor) -> Tensor:
    """uint8 digits [rows, blocks, 256] of bytes [rows, blocks, 52]."""
    digits = []
    first = 0
    for width, count in _RUNS:
        run = body[..., first : first + width].to(torch.int32)
        digits += [(((run * 3**j) & 255) * 3 >> 8).to(torch.uint8) for j in range(count)]
        first += width
    return torch.cat(digits, dim=-1)


def _encode_two_bit(digits: Tensor) -> Tensor:
    """uint8 [rows, blocks, 64] of digits [rows, blocks, 256]."""
    planes = digits.unflatten(-1, (2, 4, _HALF_BYTES))
    packed = planes[..., 0, :].clone()
    for j in range(1, 4):
        packed |= planes[..., j, :] << 2 * j
    return packed.flatten(-2)


def _decode_two_bit(body: Tensor) -> Tensor:
    """uint8 digits [rows, blocks, 256] of bytes [rows, blocks, 64]."""
    halves = body.unflatten(-1, (2, 1, _HALF_BYTES))
    return torch.cat([halves >> 2 * j & 3 for j in range(4)], dim=-2).flatten(-3)
