"""Layouts of other libraries, and their memory estimates.

The five-trits-a-byte functions keep the names and meaning of krisaujla/BitLinear; the 2-bit
layout is that of Hugging Face transformers' BitNet integration. Neither is what the kernels read:
convert with :func:`impl.packing.pack`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from impl.checks import check_choice, check_positive

_HF_CLASSES = ("bitlinear", "autobitlinear")


def pack_ternary_base3(weight: Tensor) -> tuple[Tensor, torch.Size]:
    """Five trits a byte over the flattened tensor: (uint8 [ceil(numel / 5)], original shape).

    Digits are value + 1, least significant first; the tail is padded with the digit 0, which
    only the shape tells from a weight of -1.
    """
    digits = _ternary_digits(weight).flatten()
    digits = torch.nn.functional.pad(digits, (0, -digits.numel() % 5)).view(-1, 5)
    packed = torch.zeros(digits.shape[0], dtype=torch.uint8, device=weight.device)
    for j in range(5):
        packed += digits[:, j] * 3**j
    return packed, weight.shape


def unpack_ternary_base3(packed: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of :func:`pack_ternary_base3`: values -1, 0, +1 of ``dtype`` in ``shape``."""
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != -(-count // 5):
        raise ValueError(
            f"base-3 bytes of shape {tuple(shape)} are uint8 [{-(-count // 5)}], "
            f"got {packed.dtype} {tuple(packed.shape)}"
        )
    if packed.numel() and int(packed.max()) > 242:
        raise ValueError(f"base-3 bytes lie in 0 .. 242, got {int(packed.max())}: damaged, or another format")
    digits = torch.stack([packed // 3**j % 3 for j in range(5)], dim=-1).flatten()[:count]
    return (digits.to(torch.int8) - 1).to(dtype).view(tuple(shape))


def estimate_memory_savings(
    in_features: int, out_features: int, num_layers: int = 1, *, bias: bool = True
) -> dict[str, float]:
    """Bytes of ``num_layers`` float32 linear layers against base-3 codes with a float32 row scale.

    Returns ``original_bytes``, ``packed_bytes``, ``saved_bytes`` and ``compression_ratio`` (fp32
    bytes over packed bytes, scales and bias included on both sides). An estimate from shapes; the
    bytes that a layer really holds are those of its buffers.
    """
    check_positive("in_features", in_features)
    check_positive("out_features", out_features)
    check_positive("num_layers", num_layers)
    bias_bytes = 4 * out_features if bias else 0
    original = num_layers * (4 * in_features * out_features + bias_bytes)
    packed = num_layers * (-(-in_features * out_features // 5) + 4 * out_features + bias_bytes)
    return {
        "original_bytes": original,
        "packed_bytes": packed,
        "saved_bytes": original - packed,
        "compression_ratio": original / packed,
    }


def compression_ratio(original: Tensor, packed: Tensor) -> float:
    """Bytes of ``original`` over bytes of ``packed`` (elements only, no scales)."""
    if packed.numel() == 0:
        raise ValueError("the packed tensor is empty: there is no ratio to give")
    return original.numel() * original.element_size() / (packed.numel() * packed.element_size())


def pack_hf_two_bit(codes: Tensor) -> Tensor:
    """Ternary ``codes`` [rows, cols] in the 2-bit layout of transformers: uint8 [ceil(rows/4), cols].

    With R = ceil(rows / 4), row i + j*R is stored as value + 1 in bits 2j and 2j + 1 of byte row
    i. Rows beyond the last are 0 bits, as transformers leaves them. ``codes`` is not changed.
    """
    digits = _ternary_digits(codes)
    if digits.dim() != 2 or 0 in digits.shape:
        raise ValueError(f"codes must be a non-empty matrix [rows, cols], got shape {tuple(codes.shape)}")
    byte_rows = -(-digits.shape[0] // 4)
    packed = torch.zeros(byte_rows, digits.shape[1], dtype=torch.uint8, device=codes.device)
    for j, plane in enumerate(digits.split(byte_rows)):
        packed[: plane.shape[0]] |= plane << 2 * j
    return packed


def unpack_hf_two_bit(packed: Tensor, rows: int) -> Tensor:
    """int8 codes [rows, cols] from the 2-bit layout of transformers; ``rows`` strips the tail."""
    check_positive("rows", rows)
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[0] != -(-rows // 4):
        raise ValueError(
            f"2-bit codes of {rows} rows are uint8 [{-(-rows // 4)}, cols], "
            f"got {packed.dtype} {tuple(packed.shape)}"
        )
    digits = torch.cat([packed >> 2 * j & 3 for j in range(4)])[:rows]
    if digits.numel() and int(digits.max()) > 2:
        raise ValueError(
            "2-bit codes hold the digit 3, which no ternary weight has: damaged, or another format"
        )
    return digits.to(torch.int8) - 1


def hf_weight_scale(scale: Tensor, linear_class: str) -> Tensor:
    """Convert between our scale (weight = code * scale) and transformers' ``weight_scale``.

    ``autobitlinear`` stores the scale itself, ``bitlinear`` its reciprocal, so the same call
    converts both ways.
    """
    check_choice("linear_class", linear_class, _HF_CLASSES)
    return scale.clone() if linear_class == "autobitlinear" else scale.reciprocal()


def _ternary_digits(values: Tensor) -> Tensor:
    """uint8 digits 0, 1, 2 of values -1, 0, +1 of any dtype."""
    wrong = (values != -1) & (values != 0) & (values != 1)
    if bool(wrong.any()):
        value = values[wrong].flatten()[0].item()
        raise ValueError(f"ternary values are -1, 0 and +1, got {value}: quantise the weights first")
    return (values.to(torch.int8) + 1).to(torch.uint8)
