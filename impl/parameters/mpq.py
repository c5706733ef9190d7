"""Group-wise quantised parameters, of one width or of several widths in one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from impl.checks import check_weight
from impl.parameters.bitstream import CODES, pack_words, unpack_words
from impl.parameters.checks import check_data
from impl.parameters.rules import Update, adamw_change, dithered
from impl.parameters.tensor import LowBitParameter

MPQ, MBWQ = 1, 2
"""``layer_type``: one width for the whole matrix, or regions of several widths."""

WIDTHS = (8, 6, 5, 4, 3, 2)
"""Widths of the regions of a matrix of several widths, in the order of ``rows``."""


class MPQWeightParameter(LowBitParameter):
    """Weight [in_features, out_features] of unsigned codes with a scale and a zero per group of rows.

    A value is ``scale * code - zero``, with ``asym`` ``scale * (code - zero)``. Codes are packed along
    the input features (:mod:`impl.parameters.bitstream`).

    data: int32 words of the codes, or a floating-point matrix [in_features, out_features] to be
        quantised between the extremes of each group (``w_bit`` and ``group_size`` say how).
    privileged_grad: a gradient that ``update`` uses in place of ``.grad``, or None.
    scales, zeros: [groups, out_features] floats; integers [groups, out_features] where they are
        quantised themselves, see below. For int32 data only.
    g_idx: group of each input feature, integers [in_features]; None takes runs of ``group_size``.
    w_bit: width of a code, 1 to 8; -1 where ``rows`` gives several.
    group_size: input features that share a scale; -1 for all of them.
    layer_type: 1 (MPQ) or 2 (MBWQ); -1 means 2 where ``rows`` is given, else 1.
    q_perm: input feature of each packed row, a permutation of 0 .. in_features - 1; None keeps the order.
    qscales_zeros, qscales_scales: for integer ``scales``: scale = (integer - zero) * scale, each
        element of the two serving equally many successive elements of ``scales``.
    qzeros_zeros, qzeros_scales: the same for integer ``zeros``.
    q_group_map: group of each *packed* row, integers [in_features], or [2 in_features] with the rows
        left in the group after each (exllamav2). Instead of ``g_idx``.
    rows: six cumulative numbers of packed rows, at whose ends the regions of 8, 6, 5, 4, 3 and 2 bits
        end; the last one is in_features. A group must not cross the end of a region.

    Attributes: ``codes`` (int32 [words, out_features]), ``scales`` and ``zeros`` (float32 [groups,
    out_features]), ``groups`` and ``order`` (int64 [in_features]: group and input feature of each
    packed row), ``regions`` ((packed rows, bits), ...), ``asym``.

    **The update** is AdamW on the decoded values, rounded as in :class:`impl.parameters.NBitParameter`.
    A group that leaves the range of its codes gets a wider one; the others keep scale and zero.

    Raises TypeError or ValueError for operands that do not belong together.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    groups: Tensor
    order: Tensor
    regions: tuple[tuple[int, int], ...]
    asym: bool
    privileged_grad: Tensor | None = None

    _tensors = ("codes", "scales", "zeros", "groups", "order")
    _attributes = ("regions", "asym")
    _transient = ("privileged_grad",)

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = True,
        privileged_grad: Tensor | None = None,
        scales: Tensor | None = None,
        zeros: Tensor | None = None,
        g_idx: Tensor | None = None,
        w_bit: int = -1,
        asym: bool = False,
        group_size: int = -1,
        layer_type: int = -1,
        q_perm: Tensor | None = None,
        qscales_zeros: Tensor | None = None,
        qscales_scales: Tensor | None = None,
        qzeros_zeros: Tensor | None = None,
        qzeros_scales: Tensor | None = None,
        q_group_map: Tensor | None = None,
        rows: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Self:
        data = check_data(data, (2,))
        if isinstance(data, MPQWeightParameter):
            tensors, attributes = data._state(torch.clone)
            self = cls._wrap(data.shape, dtype or data.dtype, tensors, attributes, requires_grad, True)
            self.privileged_grad = privileged_grad
            return self
        if data.dim() != 2 or 0 in data.shape:
            raise ValueError(f"data must be a non-empty matrix, got shape {tuple(data.shape)}")
        from_float = data.is_floating_point()
        if not from_float and data.dtype != torch.int32:
            raise TypeError(f"data must be floating point or int32 words, got {data.dtype}")
        regions = _regions(data, w_bit, layer_type, rows)
        features = sum(count for count, _ in regions)
        device = data.device
        # Which row belongs where is worked out on the host: on the meta device nothing could be read.
        order = _order(q_perm, features)
        groups = _groups(g_idx, q_group_map, group_size, order)
        count = int(groups.max()) + 1
        bits = _bits_of_groups(groups, regions, count).to(device)
        order, groups = order.to(device), groups.to(device)
        shape = (count, data.shape[1])
        if from_float:
            if scales is not None or zeros is not None:
                raise ValueError(
                    "scales and zeros belong to int32 data, floating-point data bring their own: drop them"
                )
            check_weight(data, check_finite=True)
            values = data.to(torch.float32)[order]
            low, high = _extremes(values, groups, count)
            kept_scales, shifts = _fit(low, high, bits)
            codes = _nearest(values, kept_scales, shifts, groups, bits)
            words = _pack(codes, regions)
            kept_zeros = _zeros_of(shifts, kept_scales, asym)
        else:
            words = data.clone()
            kept_scales = _statistics("scales", scales, qscales_zeros, qscales_scales, shape, device)
            kept_zeros = _statistics("zeros", zeros, qzeros_zeros, qzeros_scales, shape, device)
        if dtype is None:
            dtype = data.dtype if from_float else torch.float32
        tensors = {
            "codes": words,
            "scales": kept_scales,
            "zeros": kept_zeros,
            "groups": groups,
            "order": order,
        }
        attributes = {"regions": regions, "asym": bool(asym)}
        self = cls._wrap((features, data.shape[1]), dtype, tensors, attributes, requires_grad, True)
        self.privileged_grad = privileged_grad
        return self

    def dequantize(self) -> Tensor:
        """The decoded values [in_features, out_features] as an ordinary tensor, without gradient."""
        return self._in_order(self._decoded(torch.float32)[1]).to(self.dtype)

    def integers(self) -> Tensor:
        """The codes, uint8 [in_features, out_features], in the order of the packed rows."""
        parts, begin = [], 0
        for rows, bits in self.regions:
            end = begin + rows // CODES * bits
            parts.append(unpack_words(self.codes[begin:end], bits))
            begin = end
        return torch.cat(parts)

    def _decoded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Codes and values [in_features, out_features] in the order of the packed rows, scales and shifts."""
        codes, scales = self.integers().to(dtype), self.scales.to(dtype)
        shifts = _shifts_of(self.zeros.to(dtype), scales, self.asym)
        return codes, codes * scales[self.groups] - shifts[self.groups], scales, shifts

    def _in_order(self, packed_rows: Tensor) -> Tensor:
        values = torch.empty_like(packed_rows)
        values[self.order] = packed_rows
        return values

    def nearest_words(self, values: Tensor) -> Tensor:
        """int32 words of the codes nearest to the finite ``values`` [in_features, out_features], with the
        scales, zeros, groups, order and widths that the parameter has. It is not changed."""
        bits = _bits_of_groups(self.groups, self.regions, len(self.scales))
        shifts = _shifts_of(self.zeros, self.scales, self.asym)
        scales = torch.where(self.scales == 0, 1, self.scales)  # there every code has the same value
        codes = _nearest(values.to(torch.float32)[self.order], scales, shifts, self.groups, bits)
        return _pack(codes, self.regions)

    def update_gradient(self) -> Tensor | None:
        """``privileged_grad`` where there is one, else ``.grad``."""
        return self.grad if self.privileged_grad is None else self.privileged_grad

    def _descend(self, update: Update) -> None:
        codes, values, scales, shifts = self._decoded(update.grad.dtype)
        change = adamw_change(self._in_order(values), update)[self.order]
        values = values + change
        bits = _bits_of_groups(self.groups, self.regions, len(scales))
        low, high = _extremes(values, self.groups, len(scales))
        bottom, top = -shifts, scales * _largest(bits) - shifts
        left = (low < bottom) | (high > top)
        wide_scales, wide_shifts = _fit(torch.minimum(low, bottom), torch.maximum(high, top), bits)
        scaled = (values + wide_shifts[self.groups]) / wide_scales[self.groups]
        below = scaled.floor()
        # Where a group keeps its range, from the code itself: without a change it comes out unchanged.
        moves = left[self.groups]
        whole = torch.where(moves, below, codes)
        steps = change / torch.where(scales > 0, scales, 1)[self.groups]
        fraction = torch.where(moves, scaled - below, steps)
        rounded = dithered(whole, fraction, update.step).clamp_(min=0)
        rounded = torch.minimum(rounded, _largest(bits)[self.groups].to(rounded.dtype))
        wide_zeros = _zeros_of(wide_shifts, wide_scales, self.asym)
        self.codes.copy_(_pack(rounded, self.regions))
        self.zeros.copy_(torch.where(left, wide_zeros, self.zeros))
        self.scales.copy_(torch.where(left, wide_scales, scales))

    def _store(self, value: Tensor) -> None:
        check_weight(value, check_finite=True)
        values = value.to(torch.float32)[self.order]
        bits = _bits_of_groups(self.groups, self.regions, len(self.scales))
        scales, shifts = _fit(*_extremes(values, self.groups, len(self.scales)), bits)
        self.codes.copy_(_pack(_nearest(values, scales, shifts, self.groups, bits), self.regions))
        self.scales.copy_(scales)
        self.zeros.copy_(_zeros_of(shifts, scales, self.asym))


# ---- operands -------------------------------------------------------------------------------


def _regions(
    data: Tensor, w_bit: int, layer_type: int, rows: Sequence[int] | None
) -> tuple[tuple[int, int], ...]:
    """(packed rows, bits) of each region that ``data`` holds, after checking that it fits."""
    kind = layer_type if layer_type != -1 else (MPQ if rows is None else MBWQ)
    if kind not in (MPQ, MBWQ):
        raise ValueError(f"layer_type must be {MPQ} (MPQ), {MBWQ} (MBWQ) or -1, got {layer_type}")
    if rows is not None and kind == MPQ:
        raise ValueError(f"rows describes regions of several widths: use layer_type={MBWQ}, or leave it out")
    words = data.shape[0]
    if rows is None:
        if not 1 <= w_bit <= 8:
            raise ValueError(f"w_bit must lie in 1 .. 8, got {w_bit}: it says how wide a code is")
        if not data.is_floating_point() and words % w_bit:
            raise ValueError(f"int32 words of {w_bit}-bit codes come in multiples of {w_bit}, got {words}")
        features = words if data.is_floating_point() else words // w_bit * CODES
        regions: tuple[tuple[int, int], ...] = ((features, w_bit),)
    else:
        ends = [int(end) for end in rows]
        if len(ends) != len(WIDTHS) or ends != sorted(ends) or ends[0] < 0 or ends[-1] == 0:
            raise ValueError(
                f"rows must be six ascending numbers, the ends of the regions of {WIDTHS} bits, got {ends}"
            )
        sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        regions = tuple((size, bits) for size, bits in zip(sizes, WIDTHS, strict=True) if size)
    if any(size % CODES for size, _ in regions):
        raise ValueError(
            f"every region must hold a multiple of {CODES} input features, "
            f"got {[size for size, _ in regions]}"
        )
    needed = sum(size if data.is_floating_point() else size // CODES * bits for size, bits in regions)
    if needed != words:
        raise ValueError(f"data of these widths have {needed} rows, got {words}")
    return regions


def _order(q_perm: Tensor | None, features: int) -> Tensor:
    """int64 [in_features] on the host: the input feature of each packed row."""
    identity = torch.arange(features, dtype=torch.int64, device="cpu")
    if q_perm is None:
        return identity
    order = q_perm.detach().to("cpu", torch.int64, copy=True).flatten()
    if order.shape != identity.shape or not torch.equal(order.sort().values, identity):
        raise ValueError(
            f"q_perm must be a permutation of 0 .. {features - 1}, got shape {tuple(q_perm.shape)}"
        )
    return order


def _groups(g_idx: Tensor | None, q_group_map: Tensor | None, group_size: int, order: Tensor) -> Tensor:
    """int64 [in_features] on the host: the group of each packed row."""
    features = order.numel()
    if g_idx is not None and q_group_map is not None:
        raise ValueError("g_idx and q_group_map both give the groups: pass one of them")
    if q_group_map is not None:
        flat = q_group_map.detach().flatten()
        groups = flat[::2] if flat.numel() == 2 * features else flat
    elif g_idx is not None:
        groups = g_idx.detach().flatten()
        if groups.numel() == features:
            groups = groups.to("cpu")[order]
    else:
        if group_size == 0 or group_size < -1:
            raise ValueError(f"group_size must be positive, or -1 for one group, got {group_size}")
        size = features if group_size == -1 else group_size
        # Runs of input features, as for g_idx; with a permutation they need not be runs of rows.
        groups = torch.div(order, size, rounding_mode="floor")
    if groups.numel() != features:
        raise ValueError(f"the groups must be given for {features} input features, got {groups.numel()}")
    groups = groups.to("cpu", torch.int64, copy=True)
    if int(groups.min()) < 0:
        raise ValueError(f"groups count from 0, got {int(groups.min())}")
    return groups


def _statistics(
    name: str,
    given: Tensor | None,
    zeros: Tensor | None,
    scales: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """float32 ``shape`` of scales or zeros that may themselves be quantised to integers."""
    if given is None:
        raise ValueError(f"int32 data need {name} of shape {shape}")
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} (groups, out_features), got {tuple(given.shape)}")
    values = given.detach().to(device, torch.float32, copy=True)
    if zeros is None and scales is None:
        return values
    if zeros is None or scales is None or zeros.numel() != scales.numel() or values.numel() % zeros.numel():
        raise ValueError(
            f"quantised {name} need q{name}_zeros and q{name}_scales, of one size that divides "
            f"{values.numel()}"
        )
    blocks = values.view(zeros.numel(), -1)
    own_zeros = zeros.detach().to(device, torch.float32).reshape(-1, 1)
    return ((blocks - own_zeros) * scales.detach().to(device, torch.float32).reshape(-1, 1)).view(shape)


# ---- arithmetic -----------------------------------------------------------------------------


def _largest(bits: Tensor) -> Tensor:
    return (1 << bits) - 1


def _bits_of_groups(groups: Tensor, regions: Sequence[tuple[int, int]], count: int) -> Tensor:
    """Width of each group, int32 [groups, 1]; ValueError where a group has rows of two widths."""
    widths = torch.cat(
        [torch.full((rows,), bits, dtype=torch.int32, device=groups.device) for rows, bits in regions]
    )
    bits = torch.ones(count, dtype=torch.int32, device=groups.device)
    bits[groups] = widths
    if not torch.equal(bits[groups], widths):
        raise ValueError("a group has rows of two widths: let groups end where a region of rows ends")
    return bits.unsqueeze(1)


def _extremes(values: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value [groups, out_features]; 0 and 0 for a group without rows."""
    index = groups.unsqueeze(1).expand_as(values)
    zeros = values.new_zeros(count, values.shape[1])
    low = zeros.scatter_reduce(0, index, values, "amin", include_self=False)
    return low, zeros.scatter_reduce(0, index, values, "amax", include_self=False)


def _fit(low: Tensor, high: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and shifts (value = scale * code - shift) that span ``low`` .. ``high``."""
    scales = (high - low) / _largest(bits)
    # Equal weights need a scale all the same, to tell them from their neighbours after a step.
    return torch.where(scales > 0, scales, low.abs().clamp_min(1e-8) / _largest(bits)), -low


def _nearest(values: Tensor, scales: Tensor, shifts: Tensor, groups: Tensor, bits: Tensor) -> Tensor:
    codes = ((values + shifts[groups]) / scales[groups]).round_().clamp_(min=0)
    return torch.minimum(codes, _largest(bits)[groups].to(codes.dtype))


def _shifts_of(zeros: Tensor, scales: Tensor, asym: bool) -> Tensor:
    return zeros * scales if asym else zeros


def _zeros_of(shifts: Tensor, scales: Tensor, asym: bool) -> Tensor:
    return shifts / torch.where(scales > 0, scales, 1) if asym else shifts


def _pack(codes: Tensor, regions: Sequence[tuple[int, int]]) -> Tensor:
    """int32 words of codes [in_features, out_features] in the order of the packed rows."""
    parts, begin = [], 0
    for rows, bits in regions:
        parts.append(pack_words(codes[begin : begin + rows], bits))
        begin += rows
    return torch.cat(parts)
