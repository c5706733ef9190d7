"""Bytes of weights from their description alone: the formulas of csrc/include/impl.h. Torch-free."""

from __future__ import annotations

FLOAT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

ROWS_PER_BYTE = {"two_bit": 4, "base3": 5}

FORMAT_BITS = {"binary": 1.0, "two_bit": 2.0, "base3": 8 / 5}
"""Bits per weight before scales, where rows fill their bytes."""


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def codes_bytes(format: str, components: int, rows: int, cols: int) -> int:
    """Size of the packed codes: ``binary`` fills rows up to a byte, the ternary formats put 4 or 5
    rows into each byte column by column."""
    if format == "binary":
        return components * rows * ceil_div(cols, 8)
    return components * ceil_div(rows, ROWS_PER_BYTE[format]) * cols


def scales_bytes(
    components: int, rows: int, cols: int, *, per: str, group_size: int | None, dtype: str
) -> int:
    """Size of scales ``[components, R, G]``; ``per`` is ``row`` or ``tensor``."""
    scale_rows = rows if per == "row" else 1
    groups = ceil_div(cols, group_size) if group_size else 1
    return components * scale_rows * groups * FLOAT_BYTES[dtype]
