"""Unsigned codes of 1 to 8 bits as a stream of 32-bit words along the input features.

Per output feature, 32 consecutive input features of b bits take b words: code j occupies bits
j b .. j b + b - 1 of them, the first bit being the lowest of the first word. For 2, 4 and 8 bits this
is the layout of GPTQ checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor

CODES = 32
"""Input features that are packed together."""

_WORD = 0xFFFFFFFF


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """int32 [rows / 32 * bits, cols] from integer ``codes`` [rows, cols] in 0 .. 2**bits - 1."""
    _check(codes.shape[0], bits)
    blocks = codes.to(torch.int64).unflatten(0, (-1, CODES))
    words = torch.zeros(blocks.shape[0], bits, blocks.shape[2], dtype=torch.int64, device=codes.device)
    for j in range(CODES):
        word, shift = divmod(j * bits, 32)
        words[:, word] |= blocks[:, j] << shift & _WORD
        if shift + bits > 32:
            words[:, word + 1] |= blocks[:, j] >> (32 - shift)
    signed = torch.where(words > 0x7FFFFFFF, words - (1 << 32), words)
    return signed.to(torch.int32).flatten(0, 1)


def unpack_words(packed: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, cols] from the int32 words [rows / 32 * bits, cols] of :func:`pack_words`."""
    _check(0, bits)
    if packed.shape[0] % bits:
        raise ValueError(f"words of {bits}-bit codes come in multiples of {bits}, got {packed.shape[0]}")
    words = (packed.to(torch.int64) & _WORD).unflatten(0, (-1, bits))
    codes = torch.empty(words.shape[0], CODES, words.shape[2], dtype=torch.uint8, device=packed.device)
    for j in range(CODES):
        word, shift = divmod(j * bits, 32)
        code = words[:, word] >> shift
        if shift + bits > 32:
            code = code | words[:, word + 1] << (32 - shift)
        codes[:, j] = (code & ((1 << bits) - 1)).to(torch.uint8)
    return codes.flatten(0, 1)


def _check(rows: int, bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie in 1 .. 8, got {bits}")
    if rows % CODES:
        raise ValueError(
            f"{rows} input features cannot be packed: they must be a multiple of {CODES}, pad the weight"
        )
