"""Binary and ternary codes of a weight matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from impl.checks import SCALES, check_choice, check_group_size, check_weight, group_count
from impl.quantizers.rules import RULES, ternarize_rows

# Weights handled at a time: bounds the temporaries (a few dozen bytes a weight) and keeps them
# near the caches.
BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, eq=False)
class Quantized:
    """Codes and scales of a weight matrix [rows, cols]: weight = sum over components of code * scale.

    ``codes`` is int8 [components, rows, cols] with -1/+1 (binary) or -1/0/+1. ``scales`` is float32
    [components, R, G]: R = rows, or 1 for one scale per tensor; G groups of ``group_size`` columns,
    the last one perhaps shorter, or 1.
    """

    codes: Tensor
    scales: Tensor
    group_size: int | None = None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The quantised weight [rows, cols]: summed in float32, component by component."""
        total: Tensor | None = None
        for codes, scales in zip(self.codes, self.scales, strict=True):
            if self.group_size is not None:
                scales = scales.repeat_interleave(self.group_size, dim=-1)[:, : codes.shape[-1]]
            term = codes * scales.to(torch.float32)
            total = term if total is None else total + term
        if total is None:
            raise ValueError("codes hold no component: their shape is [components, rows, cols]")
        return total.to(dtype)


def quantize_binary(
    weight: Tensor,
    *,
    scale: str = "row",
    group_size: int | None = None,
    check_finite: bool = True,
    sum_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Sign codes with the least-squares scale mean|w| (Rastegari et al., 2016).

    ``weight`` is any floating-point matrix [rows, cols]; a weight of 0 (or -0.0) counts as +1.
    ``scale`` is "row" or "tensor"; ``group_size`` gives every row a scale per so many columns.
    ``check_finite=False`` skips the search for NaN and infinity, which then reach the scales.
    ``sum_dtype``: what means are summed in, as of :func:`quantize_ternary`.
    """
    weight = check_weight(weight, check_finite=check_finite)
    scope = _check_scope(scale, group_size)
    codes = torch.where(weight >= 0, 1, -1).to(torch.int8)
    if scope == "tensor":
        scales = weight.abs().mean(dtype=sum_dtype).view(1, 1)
    elif group_size is None:
        scales = weight.abs().mean(dim=-1, keepdim=True, dtype=sum_dtype)
    else:
        scales = torch.cat(
            [part.abs().mean(-1, keepdim=True, dtype=sum_dtype) for part in weight.split(group_size, -1)],
            dim=-1,
        )
    return Quantized(codes.unsqueeze(0), scales.to(torch.float32).unsqueeze(0), group_size)


def quantize_ternary(
    weight: Tensor,
    *,
    rule: str = "optimal",
    scale: str | None = None,
    group_size: int | None = None,
    check_finite: bool = True,
    sum_dtype: torch.dtype = torch.float32,
) -> Quantized:
    """Ternary codes and scales of ``weight`` [rows, cols] by one of :data:`RULES`.

    ``scale`` is "row" or "tensor"; None takes "tensor" for ``absmean``, as b1.58 does, and "row" for
    the others and wherever ``group_size`` (a scale for each row and so many columns) is given.
    ``check_finite=False`` skips the search for NaN and infinity, which then reach the scales.
    ``sum_dtype``: what means are summed in; with float64 they hardly depend on the device
    (:func:`ternarize_rows`).
    """
    weight = check_weight(weight, check_finite=check_finite)
    check_choice("ternary rule", rule, RULES)
    if scale is None:
        scale = "tensor" if rule == "absmean" and group_size is None else "row"
    scope = _check_scope(scale, group_size)
    if scope == "tensor":
        tensor_codes, tensor_scale = ternarize_rows(weight.to(torch.float32).reshape(1, -1), rule, sum_dtype)
        return Quantized(tensor_codes.view(1, *weight.shape), tensor_scale.view(1, 1, 1))
    codes, scales = allocate(weight, 1, group_size)
    for block in blocks(weight, group_size):
        block_codes, block_scales = ternarize_rows(block.values(weight), rule, sum_dtype)
        block.store(codes, block_codes.unsqueeze(0), scales, block_scales.view(1, -1))
    return Quantized(codes, scales, group_size)


@dataclass(frozen=True)
class Block:
    """Some rows and some whole, equally long scale groups of a weight matrix."""

    rows: slice
    cols: slice
    groups: slice
    width: int

    def values(self, weight: Tensor) -> Tensor:
        """float32 [rows x groups, width], contiguous: one line for each scale."""
        return weight[self.rows, self.cols].to(torch.float32).reshape(-1, self.width).contiguous()

    def store(self, codes: Tensor, block_codes: Tensor, scales: Tensor, block_scales: Tensor) -> None:
        """Put codes [k, rows x groups, width] and scales [k, rows x groups] in their places."""
        target = codes[:, self.rows, self.cols]
        target.copy_(block_codes.reshape(target.shape))
        target = scales[:, self.rows, self.groups]
        target.copy_(block_scales.reshape(target.shape))


def allocate(weight: Tensor, components: int, group_size: int | None) -> tuple[Tensor, Tensor]:
    """Empty codes [components, rows, cols] and scales [components, rows, groups]."""
    rows, cols = weight.shape
    codes = torch.empty(components, rows, cols, dtype=torch.int8, device=weight.device)
    shape = (components, rows, group_count(cols, group_size))
    return codes, torch.empty(shape, dtype=torch.float32, device=weight.device)


def blocks(weight: Tensor, group_size: int | None, cost: int = 1) -> Iterator[Block]:
    """Cut ``weight`` into blocks of about ``BLOCK_ELEMENTS / cost`` weights, whole groups each."""
    rows, cols = weight.shape
    width = cols if group_size is None else min(group_size, cols)
    whole = cols // width
    step = max(1, BLOCK_ELEMENTS // (cost * cols))
    # A traced graph is one block: it would hold a copy of the loop's body for each, and a number of rows
    # that is not known yet cannot be cut.
    traced = torch.compiler.is_compiling()
    parts = [slice(None)] if traced else [slice(i, min(i + step, rows)) for i in range(0, rows, step)]
    for part in parts:
        yield Block(part, slice(0, whole * width), slice(0, whole), width)
        if whole * width < cols:
            yield Block(part, slice(whole * width, cols), slice(whole, whole + 1), cols - whole * width)


def _check_scope(scale: str, group_size: int | None) -> str:
    check_choice("scale", scale, SCALES)
    if check_group_size(group_size) is not None and scale == "tensor":
        raise ValueError(
            f"scale='tensor' and group_size={group_size} exclude each other: "
            "leave group_size out, or use scale='row'"
        )
    return scale
