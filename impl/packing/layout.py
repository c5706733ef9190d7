"""The packed layouts of ``impl.h`` (layout tag 1) in plain torch.

``binary`` keeps one bit per weight, row by row. ``two_bit`` and ``base3`` put P = 4 or 5 rows
into one byte per column and store blocks of four such row groups as one stream, so that a kernel
reads consecutive bytes. The comment at the head of ``csrc/include/impl.h`` is the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from impl.checks import check_choice, check_components, check_group_size, check_positive

FORMATS = {"binary": 1, "two_bit": 2, "base3": 3}
"""Format names and their numbers in ``impl.h`` and in headers."""

LAYOUT_V1 = 1
"""Layout tag of the one layout in use."""

ROWS_PER_BYTE = {"two_bit": 4, "base3": 5}
RADIX = {"two_bit": 4, "base3": 3}
GROUPS_PER_BLOCK = 4
STEP = 64  # columns: one 64-byte load

FORMAT_BITS = {name: 8 / weights for name, weights in {"binary": 8, **ROWS_PER_BYTE}.items()}
"""Bits of one code in each format, where bytes are full."""


DAMAGED: dict[str, Callable[[Tensor], Tensor]] = {
    "base3": lambda part: part > 242,
    "two_bit": lambda part: part & part >> 1 & 0x55,
}
"""Not 0 where a byte holds a digit that is not 0, 1 or 2: five of them reach 242, and 3 has both its bits
set."""


class Codec(Protocol):
    """Kernels that pack and unpack in the memory of some device; they are given what
    :func:`pack` and :func:`unpack` have checked, and answer None where they do not serve."""

    def pack(self, codes: Tensor, format: str, group_size: int | None) -> Tensor | None:
        """As :func:`pack`."""

    def unpack(
        self, packed: Tensor, format: str, components: int, rows: int, cols: int, group_size: int | None
    ) -> Tensor | None:
        """As :func:`unpack`."""


CODECS: dict[str, Codec] = {}
"""Those there are, by the type of the device; :mod:`impl.native` enters its own."""


def codes_bytes(format: str, components: int, rows: int, cols: int) -> int:
    """Bytes of packed codes (scales not included) for ``components`` matrices [rows, cols]."""
    check_choice("format", format, FORMATS)
    check_components(components)
    check_positive("rows", rows)
    check_positive("cols", cols)
    if format == "binary":
        return components * rows * -(-cols // 8)
    return components * -(-rows // ROWS_PER_BYTE[format]) * cols


def pack(codes: Tensor, format: str, group_size: int | None = None) -> Tensor:
    """Pack int8 ``codes`` [components, rows, cols] into uint8 [codes_bytes(...)].

    Codes are -1/+1 for ``binary`` and -1/0/+1 for ``two_bit`` and ``base3``; anything else is a
    ValueError. ``group_size`` (columns per scale group) fixes the order of bytes of the ternary
    formats and has none for ``binary``.
    """
    _check_dtype("codes", codes, torch.int8)
    if codes.dim() != 3:
        raise ValueError(f"codes must have shape [components, rows, cols], got {tuple(codes.shape)}")
    components, rows, cols = codes.shape
    size = codes_bytes(format, components, rows, cols)
    check_group_size(group_size)
    _check_codes(codes, format)
    codec = CODECS.get(codes.device.type)
    if codec is not None:
        packed = codec.pack(codes, format, group_size)
        if packed is not None:
            return packed
    if format == "binary":
        return pack_bits(codes).flatten()
    bytes_ = _pack_digits(codes, format)
    stream = torch.empty(size, dtype=torch.uint8, device=codes.device)
    for natural, streamed in _stream_views(bytes_, stream, group_size):
        streamed.copy_(natural)
    return stream


def unpack(
    packed: Tensor, format: str, components: int, rows: int, cols: int, group_size: int | None = None
) -> Tensor:
    """The inverse of :func:`pack`: int8 codes [components, rows, cols] from uint8 bytes.

    ValueError where the number of bytes does not fit the shape, or where a ternary byte holds a
    digit that no code produces.
    """
    size = codes_bytes(format, components, rows, cols)
    check_group_size(group_size)
    _check_dtype("packed codes", packed, torch.uint8)
    if packed.dim() != 1 or packed.numel() != size:
        raise ValueError(
            f"{format} codes of {components} x {rows} x {cols} take {size} bytes in one dimension, "
            f"got shape {tuple(packed.shape)}: check the shape and the format in the header"
        )
    codec = CODECS.get(packed.device.type)
    if codec is not None:
        codes = codec.unpack(packed, format, components, rows, cols, group_size)
        if codes is not None:
            return codes
    if format == "binary":
        return unpack_sign_rows(packed.view(components, rows, -1), cols)
    row_groups = -(-rows // ROWS_PER_BYTE[format])
    bytes_ = torch.empty(components, row_groups, cols, dtype=torch.uint8, device=packed.device)
    for natural, streamed in _stream_views(bytes_, packed.contiguous(), group_size):
        natural.copy_(streamed)
    return _unpack_digits(bytes_, format, rows)


def pack_sign_rows(signs: Tensor) -> Tensor:
    """uint8 [..., ceil(cols / 8)] of int8 ``signs`` [..., cols]: each row as ``binary`` packs it.

    Unlike :func:`pack` it takes any number of dimensions, and none of rows or columns. TypeError for
    another dtype, ValueError for other numbers than -1 and +1.
    """
    _check_dtype("signs", signs, torch.int8)
    if signs.numel():
        _check_codes(signs, "binary")
    return pack_bits(signs)


def unpack_sign_rows(bits: Tensor, cols: int) -> Tensor:
    """The inverse of :func:`pack_sign_rows`: int8 signs [..., cols] of uint8 ``bits`` [..., ceil(cols / 8)].

    TypeError for another dtype, ValueError for another size of the last dimension.
    """
    _check_dtype("bits", bits, torch.uint8)
    if bits.shape[-1] != -(-cols // 8):
        raise ValueError(
            f"the bits of {cols} signs take {-(-cols // 8)} bytes, got shape {tuple(bits.shape)}"
        )
    signs = torch.empty(*bits.shape[:-1], cols, dtype=torch.int8, device=bits.device)
    for bit in range(min(8, cols)):
        plane = signs[..., bit::8]
        plane.copy_(((bits[..., : plane.shape[-1]] >> bit) & 1).to(torch.int8) * 2 - 1)
    return signs


def _check_dtype(name: str, given: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(given, Tensor) or given.dtype != dtype:
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        wanted = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name} must be {'an' if wanted == 'int8' else 'a'} {wanted} tensor, got {got}")


def _check_codes(codes: Tensor, format: str) -> None:
    if codes.device.type == "meta":
        return
    low, high = (int(v) for v in torch.aminmax(codes))
    if low < -1 or high > 1:
        value = low if low < -1 else high
        raise ValueError(f"codes must lie in -1 .. 1, got {value}: quantise the weights first")
    if format == "binary" and bool((codes == 0).any()):
        raise ValueError("binary codes must be -1 or +1, got 0: use format 'two_bit' or 'base3' for zeros")


def pack_bits(codes: Tensor) -> Tensor:
    """uint8 [..., ceil(cols / 8)] of ``codes`` [..., cols], least significant bit first: 1 where above 0."""
    cols = codes.shape[-1]
    out = torch.zeros(*codes.shape[:-1], -(-cols // 8), dtype=torch.uint8, device=codes.device)
    for bit in range(min(8, cols)):
        plane = (codes[..., bit::8] > 0).to(torch.uint8)
        out[..., : plane.shape[-1]] |= plane << bit
    return out


def _pack_digits(codes: Tensor, format: str) -> Tensor:
    """One byte per row group and column: uint8 [components, row groups, cols]."""
    components, rows, cols = codes.shape
    per_byte, radix = ROWS_PER_BYTE[format], RADIX[format]
    row_groups = -(-rows // per_byte)
    out = torch.zeros(components, row_groups, cols, dtype=torch.uint8, device=codes.device)
    for j in range(per_byte):
        digits = (codes[:, j::per_byte] + 1).to(torch.uint8)
        out[:, : digits.shape[1]] += digits * radix**j
        # A missing row carries the digit 1: weight zero.
        out[:, digits.shape[1] :] += radix**j
    return out


def _unpack_digits(bytes_: Tensor, format: str, rows: int) -> Tensor:
    components, _, cols = bytes_.shape
    per_byte, radix = ROWS_PER_BYTE[format], RADIX[format]
    codes = torch.empty(components, rows, cols, dtype=torch.int8, device=bytes_.device)
    rest = bytes_
    for j in range(per_byte):
        last = j == per_byte - 1
        digits = rest if last else rest % radix
        if bytes_.device.type != "meta" and int(digits.max()) > 2:
            raise ValueError(_damaged(format))
        plane = codes[:, j::per_byte]
        plane.copy_(digits[:, : plane.shape[1]].to(torch.int8) - 1)
        rest = rest // radix
    return codes


def check_digits(packed: Tensor, format: str) -> None:
    """ValueError where a byte of ``packed`` is none that ``format`` has."""
    if format in DAMAGED and bool(DAMAGED[format](packed).any()):
        raise ValueError(_damaged(format))


def _damaged(format: str) -> str:
    return (
        f"the packed codes hold a byte that {format} never produces: they are damaged, or of another format"
    )


def _stream_views(bytes_: Tensor, stream: Tensor, group_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of equal-shaped views (natural order, stream order) that cover every byte once.

    ``bytes_`` is [components, row groups, cols], ``stream`` its bytes in the order of ``impl.h``.
    A block of g row groups is [component][segment][step][group][column], so within a component
    the step at column c starts at g * c. Equal blocks, equal segments and one step of each make
    one strided view; what is left over (last block, last segment) is a case of its own.
    """
    components, row_groups, cols = bytes_.shape
    # Steps do not cross segments. Where the group size is a multiple of the step, or there are
    # no groups, segments make no difference and a step is the unit.
    unit = group_size if group_size is not None and group_size % STEP else STEP
    whole_blocks, rest_groups = divmod(row_groups, GROUPS_PER_BLOCK)
    whole_segments, rest_cols = divmod(cols, unit)
    first_group = first_byte = 0
    for blocks, groups in ((whole_blocks, GROUPS_PER_BLOCK), (1, rest_groups)):
        if blocks * groups == 0:
            continue
        end_group, end_byte = first_group + blocks * groups, first_byte + blocks * groups * components * cols
        block_bytes = bytes_[:, first_group:end_group].unflatten(1, (blocks, groups))
        block_stream = stream[first_byte:end_byte].view(blocks, components, groups * cols)
        first_col = 0
        for segments, width in ((whole_segments, unit), (1, rest_cols)):
            if segments * width == 0:
                continue
            end_col = first_col + segments * width
            natural = block_bytes[..., first_col:end_col].unflatten(-1, (segments, width))
            streamed = block_stream[..., groups * first_col : groups * end_col]
            streamed = streamed.unflatten(-1, (segments, groups * width))
            for begin in range(0, width, STEP):
                end = min(begin + STEP, width)
                yield (
                    natural[..., begin:end].permute(1, 0, 3, 2, 4),
                    streamed[..., groups * begin : groups * end].unflatten(-1, (groups, end - begin)),
                )
            first_col = end_col
        first_group, first_byte = end_group, end_byte
