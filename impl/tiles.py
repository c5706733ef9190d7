"""Where a packed weight can be cut: row blocks whose bytes lie together, and tiles of them."""

from __future__ import annotations

from collections.abc import Iterator

from impl.packing import PackedWeight

#: Rows whose bytes lie together, by format (``impl.h``): one row, four groups of 4, four of 5.
BLOCK_ROWS = {"binary": 1, "two_bit": 16, "base3": 20}

#: Elements of one decoded tile (float32): 2 MiB stays in the second-level cache.
TILE_ELEMENTS = 1 << 19

#: The same on a CUDA device, whose matrix product needs more to be busy: 64 MiB in bfloat16. Not measured.
CUDA_TILE_ELEMENTS = 1 << 25

#: Fewest rows of a tile: below, the matrix product starves.
_MIN_ROWS = 16


def row_tiles(weight: PackedWeight) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about :data:`TILE_ELEMENTS` weights (:data:`CUDA_TILE_ELEMENTS` on a CUDA device), on
    block borders, the first largest."""
    unit = max(BLOCK_ROWS[weight.format], _MIN_ROWS)
    elements = CUDA_TILE_ELEMENTS if weight.codes.is_cuda else TILE_ELEMENTS
    step = max(unit, elements // weight.cols // unit * unit)
    for begin in range(0, weight.rows, step):
        yield begin, min(begin + step, weight.rows)
