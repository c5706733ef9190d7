"""Products of signs: exact in the forward pass, straight-through in the backward pass.

One convention everywhere, forward and backward: the sign of x is +1 where x >= 0, else -1. A NaN has
the sign NaN, so that it shows in the rows of the result that it touches.

Bits are packed least significant first, bit 1 for +1, every row starting on a byte and filled up with
0: the ``binary`` layout of ``csrc/include/impl.h``, the same for every class and device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from impl import functional
from impl.checks import check_weight
from impl.ops.library import without_autocast
from impl.packing import FORMATS, PackedWeight, pack_sign_rows, unpack_sign_rows


def signs(x: Tensor) -> Tensor:
    """Signs of ``x`` as float32 of its shape: +1 where x >= 0 (also at -0.0), -1 below, NaN at NaN."""
    one = torch.ones((), dtype=torch.float32, device=x.device)
    return torch.where(torch.isnan(x), torch.nan, torch.where(x >= 0, one, -one))


def bytes_per_row(columns: int) -> int:
    """Bytes that the packed signs of so many columns take."""
    return -(-columns // 8)


def pack_signs(weight: Tensor) -> Tensor:
    """Signs of ``weight`` [rows, cols], float or int8, as uint8 bits [rows, ceil(cols / 8)].

    ValueError where a float weight holds NaN or infinity, which have no place in a packed weight.
    """
    if weight.dtype != torch.int8:
        weight = check_weight(weight, check_finite=True)
    codes = torch.where(weight >= 0, 1, -1).to(torch.int8)
    return pack_sign_rows(codes)


def unpack_signs(packed: Tensor, columns: int) -> Tensor:
    """Signs -1 and +1, float32 [..., columns], of uint8 bits [..., ceil(columns / 8)]."""
    return unpack_sign_rows(packed, columns).to(torch.float32)


def check_packed(packed: Tensor, rows: int, columns: int) -> Tensor:
    """``packed`` as bits [rows, ceil(columns / 8)]; it may come flat.

    TypeError where it is not uint8, ValueError where its size does not fit or where bits beyond the
    last column are set, which packing never does.
    """
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed weights must be uint8, got {packed.dtype}: use set_weight_data for others")
    shape = (rows, bytes_per_row(columns))
    if tuple(packed.shape) not in (shape, (shape[0] * shape[1],)):
        raise ValueError(
            f"packed weights of {rows} x {columns} signs have shape {list(shape)}, got {list(packed.shape)}"
        )
    packed = packed.reshape(shape)
    if columns % 8 and not packed.is_meta and bool((packed[:, -1] >> (columns % 8)).any()):
        raise ValueError(
            f"packed weights have bits set beyond their {columns} columns: damaged, or of another width"
        )
    return packed


class SignLinear(torch.autograd.Function):
    """y = scale_a scale_w sign(x) sign(W)^T, float32, with the gradients of bitorch_engine.

    x [..., K] float; W as ``weight`` [N, K] or, if that is None, as ``packed`` bits [N, ceil(K / 8)];
    ``scale_a`` a scalar, or one per row of x [..., 1]; ``scale_w`` a scalar or [N]. The sign product is
    an exact integer (for K < 2^24), multiplied by scale_a, then by scale_w, each rounded to float32.

    Backward, with g the gradient of y and n the number of elements of x:
        x        (g scale_w) sign(W) where |x| <= |scale_a|, else 0
        weight   g^T (sign(x) scale_a)
        scale_a  sum of (gradient of x) sign(x), over sqrt(n)
    that is, autograd through a clipped identity in place of the signs. ``scale_w`` and ``packed`` are
    constants.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, packed: Tensor | None, scale_a: Tensor, scale_w: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, packed, scale_a, scale_w)
        with without_autocast(x.device):
            dot = _product(signs(x), weight, packed)
        return dot * scale_a.to(torch.float32) * scale_w.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, packed, scale_a, scale_w = ctx.saved_tensors
        needs_x, needs_weight, _, needs_scale, _ = ctx.needs_input_grad
        x_signs = signs(x)
        grad_x = grad_weight = grad_scale = None
        with without_autocast(x.device):
            if needs_x or needs_scale:
                towards_x = _transposed_product(grad * scale_w.to(torch.float32), weight, packed, x.shape[-1])
                towards_x = towards_x * (x.abs() <= scale_a.abs())
                if needs_scale:
                    grad_scale = (towards_x * x_signs).sum() / math.sqrt(max(1, x.numel()))
                    grad_scale = grad_scale.to(scale_a.dtype)
                grad_x = towards_x.to(x.dtype) if needs_x else None
            if needs_weight:
                activations = (x_signs * scale_a.to(torch.float32)).reshape(-1, x.shape[-1])
                grad_weight = grad.reshape(-1, grad.shape[-1]).t() @ activations
                grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, None, grad_scale, None


class SignMatMul(torch.autograd.Function):
    """z = x_clip y_clip sign(x) sign(y)^T over the last two dimensions, float32.

    x [..., M, K] and y [..., N, K], leading dimensions broadcast; the clips are scalars. Gradients as
    for :class:`SignLinear`, with both operands in the role of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, x_clip: Tensor, y_clip: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, x_clip, y_clip)
        with without_autocast(x.device):
            dot = signs(x) @ signs(y).transpose(-1, -2)
        return dot * x_clip.to(torch.float32) * y_clip.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_clip, y_clip = ctx.saved_tensors
        with without_autocast(x.device):
            grad_x, grad_x_clip = _operand_gradients(grad, x, y, x_clip, y_clip)
            grad_y, grad_y_clip = _operand_gradients(grad.transpose(-1, -2), y, x, y_clip, x_clip)
        return grad_x, grad_y, grad_x_clip, grad_y_clip


def _operand_gradients(
    grad: Tensor, own: Tensor, other: Tensor, own_clip: Tensor, other_clip: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of one operand and its clip; ``grad`` has the operand's rows in its last but one place."""
    towards = (grad @ (signs(other) * other_clip.to(torch.float32))).sum_to_size(own.shape)
    towards = towards * (own.abs() <= own_clip.abs())
    clip = (towards * signs(own)).sum() / math.sqrt(max(1, own.numel()))
    return towards.to(own.dtype), clip.to(own_clip.dtype)


def _product(x_signs: Tensor, weight: Tensor | None, packed: Tensor | None) -> Tensor:
    """sign(x) sign(W)^T, exact: float32 sums of +-1, or the kernel for packed weights."""
    if weight is not None:
        return x_signs @ signs(weight).t()
    assert packed is not None
    # The kernel scales signs by the row's mean |x|: of signs it is exactly 1.
    return functional.binary_linear(x_signs, _as_packed_weight(packed, x_signs.shape[-1]), None, 1)


def _transposed_product(grad: Tensor, weight: Tensor | None, packed: Tensor | None, columns: int) -> Tensor:
    """grad [..., N] times sign(W) [N, columns], float32."""
    if weight is not None:
        return grad @ signs(weight)
    assert packed is not None
    held = _as_packed_weight(packed, columns)
    product: Tensor = torch.ops.bitimpl.linear_input_grad(
        grad, held.codes, held.scales, held.rows, held.cols, 1, 0, FORMATS["binary"]
    )
    return product


def _as_packed_weight(packed: Tensor, columns: int) -> PackedWeight:
    ones = torch.ones(1, 1, 1, dtype=torch.float32, device=packed.device)
    return PackedWeight("binary", 1, packed.shape[0], columns, None, packed.reshape(-1), ones)
