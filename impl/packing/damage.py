"""Whether packed tensors that come from outside are whole: what every road into a layer checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from impl.packing.container import SCALE_DTYPES, Header
from impl.packing.layout import DAMAGED

_BYTES_AT_A_TIME = 1 << 22  # bounds the temporaries

#: Weights that need no second look: their header, and the identities of their codes and scales.
_CHECKED: ContextVar[frozenset[tuple[Header, int, int]]] = ContextVar("_CHECKED", default=frozenset())


@contextmanager
def already_checked(weights: Iterable[tuple[Header, Tensor, Tensor]]) -> Iterator[None]:
    """Within, :func:`check_packed` lets these weights pass without reading their bytes again.

    For weights that it has let pass, whose tensors the caller holds and nobody changes until the end.
    """
    held = list(weights)  # alive, so that no other tensor gets the identity of one of them
    token = _CHECKED.set(_CHECKED.get() | {(header, id(codes), id(scales)) for header, codes, scales in held})
    try:
        yield
    finally:
        _CHECKED.reset(token)


def check_packed(header: Header, codes: Tensor, scales: Tensor) -> None:
    """ValueError where ``codes`` or ``scales`` are not what ``header`` says, or hold what packing
    never writes: other dtypes and shapes, scales of NaN or infinity, bytes outside the digits of the
    format. Values on the meta device are not looked at.

    The message begins with the tensor's name, "codes" or "scales": put the layer's before it.
    """
    if (header, id(codes), id(scales)) in _CHECKED.get():
        return
    if codes.dtype != torch.uint8 or tuple(codes.shape) != (header.codes_bytes,):
        raise ValueError(
            f"codes are {codes.dtype} {list(codes.shape)}, the header says uint8 [{header.codes_bytes}]"
        )
    if scales.dtype not in SCALE_DTYPES or tuple(scales.shape) != header.scales_shape:
        raise ValueError(
            f"scales are {scales.dtype} {list(scales.shape)}, the header says float32 or float16 "
            f"{list(header.scales_shape)}"
        )
    check_scales(scales)
    if codes.is_meta:
        return
    bad = _bytes_outside(header, codes)
    if bad:
        raise ValueError(
            f"codes hold bytes that no {header.format} code gives ({bad} of {codes.numel()}): "
            "they are damaged, or of another format"
        )


def check_scales(scales: Tensor) -> None:
    """ValueError where ``scales`` hold NaN or infinity. The meta device has no values to look at."""
    if scales.is_meta:
        return
    bad = scales.numel() - int(torch.isfinite(scales).sum())
    if bad:
        raise ValueError(
            f"scales hold {bad} NaN or infinite values of {scales.numel()}: they are damaged, or come from "
            "a weight that was not finite"
        )


def _bytes_outside(header: Header, codes: Tensor) -> int:
    """How many bytes hold a digit, or a bit past the last column, that packing leaves out."""
    if header.format == "binary":
        used = header.cols % 8
        if used == 0:
            return 0
        last = codes.reshape(header.components * header.rows, -1)[:, -1]
        return int((last >> used).count_nonzero())
    wrong = DAMAGED[header.format]
    return sum(int(wrong(part).count_nonzero()) for part in codes.split(_BYTES_AT_A_TIME))
