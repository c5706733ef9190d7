"""``bitorch_engine.functions.cuda``: bits and nibbles in bytes, here of tensors on any device.

Against the original: any number of dimensions and any strides; widths that do not fill their words
are padded or refused, never cut; nothing ends the process.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import ACTIVATION_DTYPES
from impl.compat.bitorch_engine.signs import pack_signs, unpack_signs

_LEVELS = 15
_CODES_PER_WORD = 8
_WORDS = 2


def fp32toint4(input: Tensor) -> Tensor:
    """Codes 0 .. 15 of ``input``, in the order of its elements, sixteen to an element of the result:
    int64 [ceil(numel / 16)].

    The code of x is (x - min) * 15 / (max - min), rounded half to even, with the extremes of all of
    ``input``; 0 where they are the same. An int64 holds two little-endian words of 32 bits, each with
    the first of its eight codes in the topmost four bits. Codes beyond the last element are 0.

    Raises TypeError for other dtypes than float32, ValueError for NaN and infinity.
    """
    if not isinstance(input, Tensor) or input.dtype != torch.float32:
        raise TypeError(f"fp32toint4 takes a float32 tensor, got {_kind(input)}: convert it with .float()")
    values = input.detach().flatten()
    if values.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=values.device)
    low, high = torch.aminmax(values.to(torch.float64))  # in float32 the span may overflow
    if not bool(torch.isfinite(high - low)):
        raise ValueError("fp32toint4 takes finite numbers only, the tensor holds NaN or infinity")
    span = torch.where(high > low, high - low, 1.0)
    codes = ((values.to(torch.float64) - low) * (_LEVELS / span)).round().to(torch.int64)
    short = -codes.numel() % (_CODES_PER_WORD * _WORDS)
    codes = torch.nn.functional.pad(codes, (0, short)).view(-1, _WORDS, _CODES_PER_WORD)
    places = torch.arange(28, -1, -4, device=codes.device)
    words = (codes << places).sum(-1)
    # The upper word may reach the sign bit: it is shifted there, not multiplied.
    return words[:, 0] | (words[:, 1] << 32)


def tensor_to_packed_uint8(input: Tensor) -> Tensor:
    """Signs of ``input`` [..., columns] as bits: uint8 [..., ceil(columns / 8)].

    float32, bfloat16, float16 or int8; bit 1 where the value is at least 0, least significant bit first,
    rows filled up with 0. Raises TypeError for other dtypes, ValueError for NaN and infinity.
    """
    if not isinstance(input, Tensor) or input.dtype not in (*ACTIVATION_DTYPES, torch.int8):
        raise TypeError(
            f"tensor_to_packed_uint8 takes float32, bfloat16, float16 or int8, got {_kind(input)}"
        )
    if input.dim() == 0:
        raise ValueError("tensor_to_packed_uint8 packs the last dimension, the tensor has none")
    *lead, columns = input.shape
    if input.numel() == 0:
        return torch.zeros(*lead, -(-columns // 8), dtype=torch.uint8, device=input.device)
    return pack_signs(input.detach().reshape(-1, columns)).view(*lead, -1)


def unpack_uint8_tensor(input: Tensor, scale: Tensor) -> Tensor:
    """Signs -1 and +1 of bits ``input``, uint8 [..., bytes], times ``scale`` [..., 1]: float32
    [..., 8 * bytes].

    TypeError where ``input`` is not uint8 or ``scale`` not floating point, ValueError where their
    shapes do not belong together.
    """
    if not isinstance(input, Tensor) or input.dtype != torch.uint8 or input.dim() == 0:
        raise TypeError(f"unpack_uint8_tensor takes a uint8 tensor [..., bytes], got {_kind(input)}")
    if not isinstance(scale, Tensor) or not scale.is_floating_point():
        raise TypeError(f"scale must be a floating-point tensor, got {_kind(scale)}")
    if tuple(scale.shape) != (*input.shape[:-1], 1):
        raise ValueError(f"scale must have shape {[*input.shape[:-1], 1]}, got {list(scale.shape)}")
    return unpack_signs(input, 8 * input.shape[-1]) * scale.to(torch.float32)


def q4_pack_tensor(input: Tensor, is_transpose: bool = False) -> Tensor:
    """Numbers of 4 bits, two to a byte: int8 [..., columns / 2] of int32 [..., columns].

    The first of two lies in the upper four bits. The numbers are -8 .. 7, or 0 .. 15, of which the
    lower four bits are kept as they are. ``is_transpose`` exchanges the last two dimensions of the
    result. TypeError for other dtypes, ValueError for other numbers, an odd number of columns, and
    fewer than two dimensions.
    """
    if not isinstance(input, Tensor) or input.dtype != torch.int32:
        raise TypeError(f"q4_pack_tensor takes an int32 tensor, got {_kind(input)}: convert it with .int()")
    _check_matrices(input)
    if input.shape[-1] % 2:
        raise ValueError(
            f"two numbers share a byte: the last dimension must be even, got {input.shape[-1]}; pad it with 0"
        )
    if input.numel() and not input.is_meta:
        low, high = (int(value) for value in torch.aminmax(input))
        if low < -8 or high > (15 if low >= 0 else 7):
            raise ValueError(f"4 bits hold -8 .. 7, or 0 .. 15, got {low} .. {high}")
    nibbles = input & 15
    packed = (nibbles[..., 0::2] << 4) | nibbles[..., 1::2]
    packed = packed.to(torch.uint8).view(torch.int8)
    return packed.mT.contiguous() if is_transpose else packed


def q4_unpack_tensor(input: Tensor, is_transpose: bool = False, *, signed: bool = True) -> Tensor:
    """The numbers in bytes of :func:`q4_pack_tensor`: int32 [..., 2 * columns] of int8 [..., columns].

    They are -8 .. 7; with ``signed=False`` 0 .. 15, as the original has them, whatever was packed.
    ``is_transpose`` exchanges the last two dimensions of the result, so that what was packed with it is
    ``q4_unpack_tensor(packed.mT)``. TypeError for other dtypes, ValueError for fewer than two dimensions.
    """
    if not isinstance(input, Tensor) or input.dtype != torch.int8:
        raise TypeError(f"4-bit numbers are unpacked from int8, got {_kind(input)}")
    _check_matrices(input)
    bytes_ = input.to(torch.int32)
    numbers = torch.stack((bytes_ >> 4 & 15, bytes_ & 15), dim=-1).flatten(-2)
    if signed:
        numbers = (numbers ^ 8) - 8
    return numbers.mT.contiguous() if is_transpose else numbers


def q4_unpack_and_scaling_tensor(input: Tensor, scale: float | Tensor, is_transpose: bool = False) -> Tensor:
    """:func:`q4_unpack_tensor`, as -8 .. 7, times ``scale`` (a number or a tensor that broadcasts):
    float32."""
    numbers = q4_unpack_tensor(input, is_transpose)
    return numbers * (scale.to(torch.float32) if isinstance(scale, Tensor) else float(scale))


def _check_matrices(input: Tensor) -> None:
    if input.dim() < 2:
        raise ValueError(f"the tensor must have at least two dimensions, got shape {list(input.shape)}")


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
