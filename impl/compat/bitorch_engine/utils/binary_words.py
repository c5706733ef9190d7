"""Signs as bits of words, by the names that bitorch_engine gives to its Python reference.

Bit j of a word is 1 where the j-th value is at least 0: least significant bit first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_WORDS = (8, 16, 32, 64)


def bit_set(var: int, pos: int, val: int) -> int:
    """``var`` with ``val`` (0 or 1) shifted to bit ``pos`` and or'ed in: a set bit is never cleared."""
    return var | val << pos


def get_binary_row(nd_row: Any, binary_row: Any, nd_size: int, bits_per_binary_word: int) -> Any:
    """Signs of the first ``nd_size`` values of ``nd_row``, a word for each ``bits_per_binary_word`` of
    them, written to the beginning of ``binary_row``, which is returned.

    ``nd_row`` is a flat tensor, array or list of numbers; ``binary_row`` one that items can be assigned
    to. Words too large for its dtype wrap around, as two's complement does. ValueError where
    ``nd_size`` is no multiple of the word or more than there is.
    """
    size = _check(nd_row, nd_size, bits_per_binary_word, "nd_size", 1)
    values = torch.as_tensor(nd_row).detach().reshape(-1)[:size]
    words = _words(values.view(-1, bits_per_binary_word))
    return _write(words, binary_row, bits_per_binary_word)


def get_binary_col(nd_col: Any, binary_col: Any, dim_n: int, dim_k: int, bits_per_binary_word: int) -> Any:
    """Signs of a matrix [``dim_n``, ``dim_k``], given flat, packed down its columns: word y * dim_k + x
    holds rows y * ``bits_per_binary_word`` and following of column x. Written to ``binary_col``, which
    is returned; otherwise as :func:`get_binary_row`."""
    rows = _check(nd_col, dim_n, bits_per_binary_word, "dim_n", dim_k)
    values = torch.as_tensor(nd_col).detach().reshape(-1)[: rows * dim_k]
    words = _words(values.view(-1, bits_per_binary_word, dim_k).transpose(1, 2))
    return _write(words, binary_col, bits_per_binary_word)


def _check(values: Any, size: int, bits: int, name: str, width: int) -> int:
    if bits not in _WORDS:
        raise ValueError(f"a packing word has {', '.join(map(str, _WORDS))} bits, got {bits!r}")
    count = int(size)
    held = torch.as_tensor(values).numel()
    if count != size or count % bits or count * width > held:
        raise ValueError(
            f"{name} must be a multiple of {bits} within the {held} values given, got {size}: pad them first"
        )
    return count


def _words(values: Tensor) -> Tensor:
    """int64 words, flat, of values [..., bits]."""
    places = torch.arange(values.shape[-1], device=values.device)
    return ((values >= 0).to(torch.int64) << places).sum(-1).flatten()


def _write(words: Tensor, target: Any, bits: int) -> Any:
    if len(target) < words.numel():
        raise ValueError(f"{words.numel()} words do not fit into the {len(target)} items to write to")
    if isinstance(target, Tensor):
        target[: words.numel()] = words.to(target.device).to(target.dtype)
        return target
    for place, word in enumerate(words.tolist()):
        target[place] = word & (1 << bits) - 1
    return target
