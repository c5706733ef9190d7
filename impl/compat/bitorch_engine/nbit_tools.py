"""``bitorch_engine``'s helpers around 4 and 8 bits, and around group-wise quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor

from impl.compat.bitorch_engine.nbit import MEAN_DIVISORS
from impl.layers.nbit.gptq import pack_zeros
from impl.parameters import MPQWeightParameter
from impl.parameters.mpq import WIDTHS

_EPS = 1e-5


def q8_quantization(
    input: Tensor, scale_a: Tensor | None = None, eps: Tensor | float | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Whole numbers round(input / s) in -128 .. 127, float32, with s = max(``scale_a``, ``eps``).

    Without ``scale_a``: s = max(2 mean|input| / 11.269, ``eps``), and (numbers, s) is returned. ``eps`` None
    is 1e-5. ``scale_a`` broadcasts against the input. TypeError for integer inputs.
    """
    return _quantize(input, scale_a, eps, 8)


def q4_quantization(
    input: Tensor, scale_a: Tensor | None = None, eps: Tensor | float | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """As :func:`q8_quantization` with numbers in -8 .. 7, and 2 mean|input| / 5.6345."""
    return _quantize(input, scale_a, eps, 4)


def unpack_qweight(qweight: MPQWeightParameter) -> Tensor:
    """The decoded weight [in_features, out_features] in the dtype of ``qweight``, of any of its kinds."""
    return _checked(qweight).dequantize()


def gptq_style_unpacking(qweight: MPQWeightParameter) -> Tensor:
    """:func:`unpack_qweight` by the name that ``utils.quant_operators`` has for it."""
    return unpack_qweight(qweight)


def pack_fp_weight(weight: Tensor, qweight: MPQWeightParameter) -> Tensor:
    """int32 words of the codes nearest to ``weight`` [in_features, out_features] with the scales, zeros,
    groups, order and widths of ``qweight``, one or several. ``qweight`` is not changed.

    ValueError for another shape, NaN and infinity.
    """
    own = _checked(qweight)
    if weight.shape != own.shape:
        raise ValueError(f"the weight must have shape {list(own.shape)}, got {list(weight.shape)}")
    values = weight.detach().to(own.codes.device, torch.float32)
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the weight holds NaN or infinite values: repair it before packing")
    return own.nearest_words(values)


def gptq_style_zeros_packing(zeros: Tensor, w_bit: int) -> Tensor:
    """int32 [groups, ceil(out_features / 32) * w_bit] of whole ``zeros`` [groups, out_features], less one,
    as :class:`MPQLinearCuda`'s checkpoints and GPTQ hold them.

    ValueError for zeros that are not whole or outside 1 .. 2^w_bit.
    """
    return pack_zeros(zeros, w_bit)


def make_group_map(q_groups: Tensor, num_qrows: int) -> Tensor:
    """int16 [2 in_features]: group of each packed row, and the rows left in it, this one included.

    q_groups: bits and first word row of each group, int16 [2 groups], as exllamav2 writes it.
    num_qrows: word rows of the weight. ValueError for groups that do not follow one another.
    """
    pairs = q_groups.detach().to("cpu", torch.int64).flatten()
    if pairs.numel() == 0 or pairs.numel() % 2:
        raise ValueError(f"q_groups must be pairs of bits and first row, got {pairs.numel()} numbers")
    bits, starts = pairs[::2].tolist(), pairs[1::2].tolist()
    parts = []
    for group, (width, begin, end) in enumerate(zip(bits, starts, [*starts[1:], num_qrows], strict=True)):
        if width not in WIDTHS or end <= begin or (end - begin) * 32 % width:
            raise ValueError(
                f"group {group} has {width} bits in word rows {begin} .. {end}: expected whole groups of "
                f"{WIDTHS} bits, one after another"
            )
        left = torch.arange((end - begin) * 32 // width, 0, -1)
        parts.append(torch.stack([torch.full_like(left, group), left], dim=1).flatten())
    return torch.cat(parts).to(q_groups.device, torch.int16)


def rows_of_groups(q_groups: Tensor, num_qrows: int) -> list[int]:
    """Cumulative packed rows at the ends of the regions of 8, 6, 5, 4, 3 and 2 bits.

    ValueError where a narrower group comes before a wider one.
    """
    group_map = make_group_map(q_groups, num_qrows)
    bits = q_groups.detach().to("cpu", torch.int64).flatten()[::2]
    if not torch.equal(bits, bits.sort(descending=True).values):
        raise ValueError(f"the widths of the groups must not grow, got {bits.tolist()}")
    widths = bits[group_map[::2].to("cpu", torch.int64)]
    return [int((widths >= width).sum()) for width in WIDTHS]


def _quantize(
    values: Tensor, scale_a: Tensor | None, eps: Tensor | float | None, bits: int
) -> Tensor | tuple[Tensor, Tensor]:
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"input must be a floating-point tensor, got {got}: convert it with .float()")
    numbers = values.to(torch.float32)
    scale = 2 * numbers.abs().mean() / MEAN_DIVISORS[bits] if scale_a is None else scale_a.to(torch.float32)
    least = torch.as_tensor(_EPS if eps is None else eps, dtype=torch.float32, device=numbers.device)
    scale = torch.maximum(scale, least)
    high = (1 << (bits - 1)) - 1
    codes = (numbers / scale).round().clamp(-high - 1, high)
    return (codes, scale) if scale_a is None else codes


def _checked(qweight: MPQWeightParameter) -> MPQWeightParameter:
    if not isinstance(qweight, MPQWeightParameter):
        raise TypeError(f"qweight must be an MPQWeightParameter, got {type(qweight).__name__}")
    return qweight
