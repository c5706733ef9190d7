"""The packed state of :class:`impl.layers.nbit.base.IntegerLayer`: its header, and its checks on loading."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from impl.layers.nbit.integers import bytes_per_row, unpack_codes

VERSION = 1
PACKED = ("qweight", "scales", "layout")
"""Buffers of the packed form."""

_FIELDS = ("version", "weight_bits", "rows", "columns")


def header(bits: int, rows: int, cols: int) -> Tensor:
    """int64 [4]: version, width of the codes, output channels, and weights of each."""
    return torch.tensor([VERSION, bits, rows, cols], dtype=torch.int64, device="cpu")


def check_packed(
    held: Mapping[str, Tensor], own: Tensor, *, scale_count: int, code_range: tuple[int, int]
) -> None:
    """ValueError where the tensors ``held`` are not the packed state of a layer with the header ``own``."""
    _check_header(held["layout"], own)
    _, bits, rows, cols = own.tolist()
    packed, scales = held["qweight"], held["scales"]
    shape = (rows, bytes_per_row(cols, bits))
    if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
        raise ValueError(
            f"qweight is {packed.dtype} {list(packed.shape)}, the layout says uint8 {list(shape)}"
        )
    if scales.dtype != torch.float32 or tuple(scales.shape) != (scale_count,):
        raise ValueError(
            f"scales are {scales.dtype} {list(scales.shape)}, this layer has float32 [{scale_count}]: "
            "build it with the scale that the state was built with"
        )
    if scales.is_meta or packed.is_meta:
        return
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise ValueError("scales hold NaN, infinite or negative values: the file is damaged")
    codes = unpack_codes(packed, 2 * shape[1] if bits <= 4 else cols, bits)
    low, high = code_range
    least, largest = (int(value) for value in torch.aminmax(codes))
    if least < low or largest > high or bool(codes[:, cols:].any()):
        raise ValueError(
            f"qweight holds codes {least} .. {largest}; {bits} bits give {low} .. {high}, and 0 behind the "
            "last column: the file is damaged"
        )


def _check_header(layout: Tensor, own: Tensor) -> None:
    if layout.is_meta:
        raise ValueError("layout is on the meta device: a header without values cannot be checked")
    if layout.dtype != own.dtype or layout.shape != own.shape:
        raise ValueError(f"layout must be int64 [{len(_FIELDS)}], got {layout.dtype} {list(layout.shape)}")
    for field, found, expected in zip(_FIELDS, layout.tolist(), own.tolist(), strict=True):
        if found != expected:
            remedy = (
                "use the release that wrote it" if field == "version" else "build the layer as the state was"
            )
            raise ValueError(f"the packed state has {field} {found}, this layer {expected}: {remedy}")
