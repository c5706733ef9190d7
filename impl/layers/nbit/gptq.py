"""GPTQ's way to write group-wise codes as 32-bit words, and zeros beside them.

``qweight`` int32 [in / 32 * bits, out]: codes packed along the input features
(:mod:`impl.parameters.bitstream`). ``qzeros`` int32 [groups, out / 32 * bits]: the zero of each
group and output feature, *less one*, packed along the output features in the same way. ``scales``
[groups, out]; ``g_idx`` int32 [in], the group of each input feature. w = scale * (code - zero).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from impl.checks import check_weight
from impl.parameters.bitstream import CODES, pack_words, unpack_words


def pack_zeros(zeros: Tensor, bits: int, *, offset: int = 1) -> Tensor:
    """int32 [groups, ceil(out / 32) * bits] of the zeros [groups, out], whole numbers, less ``offset``.

    ``offset`` 1 is GPTQ's layout, 0 that of its second version. ValueError for zeros that are not
    whole, or outside offset .. offset + 2^bits - 1.
    """
    if zeros.dim() != 2:
        raise ValueError(f"zeros must be [groups, out_features], got shape {list(zeros.shape)}")
    whole = zeros.round()
    if not torch.equal(whole, zeros):
        raise ValueError("qzeros hold whole zeros only: quantise with whole_zeros=True to write them")
    low, high = (int(value) for value in torch.aminmax(whole))
    if low < offset or high > offset + (1 << bits) - 1:
        raise ValueError(
            f"zeros of {bits} bits with offset {offset} lie in {offset} .. {offset + (1 << bits) - 1}, "
            f"got {low} .. {high}"
        )
    stored = F.pad(whole.to(torch.int64) - offset, (0, -zeros.shape[1] % CODES))
    return pack_words(stored.t(), bits).t().contiguous()


def unpack_zeros(qzeros: Tensor, bits: int, out_features: int, *, offset: int = 1) -> Tensor:
    """Zeros as int64 [groups, out_features], ``offset`` .. offset + 2^bits - 1, from :func:`pack_zeros`'s
    words; a file may leave out the words of output features beyond the last."""
    whole = -(-out_features // CODES) * bits
    needed = -(-out_features * bits // 32) if 32 % bits == 0 else whole
    if qzeros.dtype != torch.int32 or qzeros.dim() != 2 or qzeros.shape[1] < needed:
        raise ValueError(
            f"qzeros of {out_features} output features and {bits} bits are int32 [groups, {needed}], got "
            f"{qzeros.dtype} {list(qzeros.shape)}"
        )
    words = F.pad(qzeros, (0, -qzeros.shape[1] % bits))
    return unpack_words(words.t().contiguous(), bits).t()[:, :out_features].to(torch.int64) + offset


def fit_whole(values: Tensor, groups: Tensor, count: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [rows, out], scales and whole zeros in 1 .. L [groups, out] of float32 ``values``."""
    check_weight(values, check_finite=True)
    top = (1 << bits) - 1
    index = groups.unsqueeze(1).expand_as(values)
    blank = values.new_zeros(count, values.shape[1])
    low = blank.scatter_reduce(0, index, values, "amin")  # 0 included: its code is the zero
    high = blank.scatter_reduce(0, index, values, "amax")
    # The second term leaves room below 0 for the least zero, 1, where there is nothing below 0.
    scales = torch.maximum((high - low) / top, high / (top - 1))
    scales = torch.where(scales > 0, scales, 1e-8)
    zeros = (-low / scales).round().clamp(1, top)
    codes = ((values / scales[groups]).round() + zeros[groups]).clamp(0, top)
    return codes.to(torch.uint8), scales, zeros
