"""A packed weight with its scales, and the small header that travels beside the bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from impl.checks import check_choice, check_components, check_group_size, check_positive, group_count
from impl.packing.layout import FORMATS, LAYOUT_V1, codes_bytes, pack, unpack

HEADER_VERSION = 1
HEADER_LENGTH = 8
"""Entries of a matrix's header; that of a convolution goes on with the sizes of its kernel."""
MOST_KERNEL_SIZES = 3

_FORMAT_NAMES = {number: name for name, number in FORMATS.items()}
SCALE_DTYPES = (torch.float32, torch.float16)
"""Dtypes that scales are kept in."""


@dataclass(frozen=True)
class Header:
    """What is needed to read packed codes; the int64 tensor [8] of :func:`pack_header`, decoded."""

    format: str
    components: int
    rows: int
    cols: int
    group_size: int | None
    scale_rows: int
    version: int = HEADER_VERSION
    layout: int = LAYOUT_V1
    kernel: tuple[int, ...] = ()
    """Sizes of a convolution's kernel, whose columns are taps times channels; () of a plain matrix."""

    def __post_init__(self) -> None:
        if self.version != HEADER_VERSION:
            raise ValueError(
                f"packed weight of header version {self.version}, this build reads version "
                f"{HEADER_VERSION}: update the package, or save the weights again with this one"
            )
        if self.layout != LAYOUT_V1:
            raise ValueError(
                f"packed weight of layout {self.layout}, this build reads layout {LAYOUT_V1}: "
                "update the package, or save the weights again with this one"
            )
        check_choice("format", self.format, FORMATS)
        check_components(self.components)
        check_positive("rows", self.rows)
        check_positive("cols", self.cols)
        check_group_size(self.group_size)
        if self.scale_rows not in (1, self.rows):
            raise ValueError(f"scale rows must be 1 or rows = {self.rows}, got {self.scale_rows}")
        for size in self.kernel:
            check_positive("kernel", size)
        if self.cols % math.prod(self.kernel):
            raise ValueError(f"a kernel of sizes {self.kernel} does not divide {self.cols} columns")

    @property
    def codes_bytes(self) -> int:
        """Bytes of packed codes."""
        return codes_bytes(self.format, self.components, self.rows, self.cols)

    @property
    def scales_shape(self) -> tuple[int, int, int]:
        """Shape [components, scale rows, groups] of the scales."""
        return self.components, self.scale_rows, group_count(self.cols, self.group_size)

    def to_tensor(self) -> Tensor:
        """int64 [8]: version, format, layout, components, rows, cols, group size or 0, scale rows;
        then, of a convolution, its 1 to 3 kernel sizes."""
        return torch.tensor(
            [
                self.version,
                FORMATS[self.format],
                self.layout,
                self.components,
                self.rows,
                self.cols,
                self.group_size or 0,
                self.scale_rows,
                *self.kernel,
            ],
            dtype=torch.int64,
        )


def pack_header(
    format: str, components: int, rows: int, cols: int, group_size: int | None = None, scale_rows: int = 1
) -> Tensor:
    """The header of a packed weight as int64 tensor [8] (on the CPU), checked."""
    return Header(format, components, rows, cols, group_size, scale_rows).to_tensor()


def read_header(header: Tensor) -> Header:
    """Decode and check a header tensor. ValueError for unknown versions, layouts and formats."""
    if (
        not isinstance(header, Tensor)
        or header.dtype != torch.int64
        or header.dim() != 1
        or not HEADER_LENGTH <= len(header) <= HEADER_LENGTH + MOST_KERNEL_SIZES
    ):
        got = f"{header.dtype} {tuple(header.shape)}" if isinstance(header, Tensor) else type(header).__name__
        raise ValueError(
            f"a packing header is an int64 tensor of shape [{HEADER_LENGTH}], or up to "
            f"[{HEADER_LENGTH + MOST_KERNEL_SIZES}] of a convolution, got {got}"
        )
    version, format_number, layout, components, rows, cols, group_size, scale_rows, *kernel = header.tolist()
    # An unknown version or layout may number its formats otherwise: name that cause first.
    if version == HEADER_VERSION and layout == LAYOUT_V1 and format_number not in _FORMAT_NAMES:
        known = ", ".join(f"{number} = {name}" for number, name in _FORMAT_NAMES.items())
        raise ValueError(f"packed weight of unknown format number {format_number}, known are {known}")
    return Header(
        format=_FORMAT_NAMES.get(format_number, "unknown"),
        components=components,
        rows=rows,
        cols=cols,
        group_size=group_size or None,
        scale_rows=scale_rows,
        version=version,
        layout=layout,
        kernel=tuple(kernel),
    )


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """Packed codes and scales of one weight matrix [rows, cols].

    ``codes`` is uint8 [codes_bytes(...)] in the layout of ``impl.h``. ``scales`` is float32 or
    float16 [components, R, G] with R = rows, or 1 for one scale per tensor, and G scale groups of
    ``group_size`` columns (1 without groups).
    """

    format: str
    components: int
    rows: int
    cols: int
    group_size: int | None
    codes: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.scales.dim() != 3:
            raise ValueError(
                f"scales must have shape [components, rows or 1, groups], got {tuple(self.scales.shape)}"
            )
        header = self.header
        if tuple(self.scales.shape) != header.scales_shape:
            raise ValueError(
                f"scales of {self.components} x {self.rows} x {self.cols} with group_size "
                f"{self.group_size} have shape {header.scales_shape}, got {tuple(self.scales.shape)}"
            )
        if self.scales.dtype not in SCALE_DTYPES:
            raise TypeError(f"scales must be float32 or float16, got {self.scales.dtype}")
        if self.scales.device != self.codes.device:
            raise ValueError(
                f"the codes are on {self.codes.device}, their scales on {self.scales.device}: "
                "move one with .to()"
            )
        if self.codes.dtype != torch.uint8:
            raise TypeError(f"packed codes must be uint8, got {self.codes.dtype}")
        if tuple(self.codes.shape) != (header.codes_bytes,):
            raise ValueError(
                f"{self.format} codes of {self.components} x {self.rows} x {self.cols} take "
                f"{header.codes_bytes} bytes in one dimension, got shape {tuple(self.codes.shape)}"
            )

    @classmethod
    def from_codes(
        cls, codes: Tensor, scales: Tensor, format: str, group_size: int | None = None
    ) -> PackedWeight:
        """Pack int8 ``codes`` [components, rows, cols] with ``scales`` [components, R, G]."""
        packed = pack(codes, format, group_size)
        components, rows, cols = codes.shape
        return cls(format, components, rows, cols, group_size, packed, scales)

    @property
    def header(self) -> Header:
        """The header of these bytes as those of a plain matrix; a convolution's also holds the sizes of its
        kernel, which a layer adds."""
        return Header(
            self.format, self.components, self.rows, self.cols, self.group_size, self.scales.shape[1]
        )

    def unpack(self) -> Tensor:
        """int8 codes [components, rows, cols]."""
        return unpack(self.codes, self.format, self.components, self.rows, self.cols, self.group_size)
