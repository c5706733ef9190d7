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

from impl import functional, native
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
    Native kernels multiply ``packed`` bits, and on CUDA devices those of ``weight`` too, packed anew in
    every call; elsewhere, where packing has no kernel, and in compiled graphs torch multiplies float
    signs: the same numbers.

    Backward, with g the gradient of y and n the number of elements of x:
        x        (g scale_w) sign(W) where |x| <= |scale_a|, else 0
        weight   g^T (sign(x) scale_a)
        scale_a  sum of (gradient of x) sign(x), over sqrt(n)
    that is, autograd through a clipped identity in place of the signs. ``scale_w`` and ``packed`` are
    constants.

    ``precision`` says what these products are computed in (:data:`PRECISIONS`):
        float32
        bfloat16  g scale_w, g, scale_a and the product are rounded to it: a gradient as a whole is within
                  2^-7 of float32's, in the Frobenius norm
        int8      towards x: each row of g scale_w as int8 (``bitimpl_cuda_input_grad`` in
                  ``impl_cuda.h``), summed exactly, so that each term is off by at most 1/254 of its row's
                  largest, a gradient as a whole by about one percent; a NaN in the weight makes all of it
                  NaN, not its column alone. Towards the weight float32
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        packed: Tensor | None,
        scale_a: Tensor,
        scale_w: Tensor,
        precision: str = "float32",
    ) -> Tensor:
        ctx.save_for_backward(x, weight, packed, scale_a, scale_w)
        ctx.precision = precision
        with without_autocast(x.device):
            dot = _product(signs(x), weight, packed)
        return dot * scale_a.to(torch.float32) * scale_w.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, packed, scale_a, scale_w = ctx.saved_tensors
        needs_x, needs_weight, _, needs_scale, *_ = ctx.needs_input_grad
        x_signs = signs(x)
        dtype = product_dtype(ctx.precision)
        grad_x = grad_weight = grad_scale = None
        with without_autocast(x.device):
            if needs_x or needs_scale:
                if ctx.precision == "int8":
                    towards_x = _int8_product(grad, weight, packed, scale_w, x.shape[-1])
                else:
                    scaled = (grad * scale_w.to(torch.float32)).to(dtype)
                    towards_x = _transposed_product(scaled, weight, packed, x.shape[-1])
                towards_x = towards_x.to(torch.float32) * (x.abs() <= scale_a.abs())
                if needs_scale:
                    grad_scale = (towards_x * x_signs).sum() / math.sqrt(max(1, x.numel()))
                    grad_scale = grad_scale.to(scale_a.dtype)
                grad_x = towards_x.to(x.dtype) if needs_x else None
            if needs_weight:
                activations = (x_signs * scale_a.to(torch.float32)).reshape(-1, x.shape[-1]).to(dtype)
                grad_weight = grad.reshape(-1, grad.shape[-1]).to(dtype).t() @ activations
                grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, None, grad_scale, None, None


class SignMatMul(torch.autograd.Function):
    """z = x_clip y_clip sign(x) sign(y)^T over the last two dimensions, float32.

    x [..., M, K] and y [..., N, K], leading dimensions broadcast; the clips are scalars. Forward pass and
    gradients as of :class:`SignLinear`, with both operands in the role of x; ``precision`` is "float32" or
    "bfloat16". Up to :data:`MOST_PRODUCTS` matrices y go to the kernels one by one, more to torch as a batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, x_clip: Tensor, y_clip: Tensor, precision: str = "float32"
    ) -> Tensor:
        ctx.save_for_backward(x, y, x_clip, y_clip)
        ctx.precision = precision
        with without_autocast(x.device):
            dot = _batched_product(signs(x), signs(y))
        return dot * x_clip.to(torch.float32) * y_clip.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_clip, y_clip = ctx.saved_tensors
        dtype = product_dtype(ctx.precision)
        with without_autocast(x.device):
            grad = grad.to(dtype)
            grad_x, grad_x_clip = _operand_gradients(grad, x, y, x_clip, y_clip)
            grad_y, grad_y_clip = _operand_gradients(grad.transpose(-1, -2), y, x, y_clip, x_clip)
        return grad_x, grad_y, grad_x_clip, grad_y_clip, None


def _operand_gradients(
    grad: Tensor, own: Tensor, other: Tensor, own_clip: Tensor, other_clip: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of one operand and its clip; ``grad`` has the operand's rows in its last but one place."""
    values = (signs(other) * other_clip.to(torch.float32)).to(grad.dtype)
    towards = (grad @ values).to(torch.float32).sum_to_size(own.shape)
    towards = towards * (own.abs() <= own_clip.abs())
    clip = (towards * signs(own)).sum() / math.sqrt(max(1, own.numel()))
    return towards.to(own.dtype), clip.to(own_clip.dtype)


# ---- precision of the backward pass ---------------------------------------------------------------


PRECISIONS = ("float32", "bfloat16", "int8")
"""What gradients of sign products are computed in."""

BACKWARDS = ("float", "int8")
"""Values of the option ``backward`` of a layer."""


def precision_of(x: Tensor, backward: str = "float") -> str:
    """The precision for a layer with that option whose input, after autocast, is ``x``: bfloat16 for that,
    float32 for others (float16 has not the range), or int8."""
    if backward == "int8":
        return backward
    return "bfloat16" if x.dtype == torch.bfloat16 else "float32"


def product_dtype(precision: str) -> torch.dtype:
    """What torch multiplies gradients in."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


# ---- products ------------------------------------------------------------------------------------


MOST_PRODUCTS = 8
"""Matrices that :class:`SignMatMul` packs one by one."""


def multiplies_bits(x: Tensor, operation: str) -> bool:
    """Whether kernels pack a float weight on x's device and multiply its bits; ``operation`` is "linear" or
    "conv"."""
    if torch.compiler.is_compiling() or native.training_kernels(x.device, "binary") is None:
        return False
    return native.uses_native(x.device, operation, "binary")


def packed_signs(matrix: Tensor) -> PackedWeight:
    """The signs of ``matrix`` [rows, cols] as a binary weight; a row's scale is 1, or NaN for NaNs in it."""
    rows, cols = matrix.shape
    # Their mean magnitude is exactly 1.
    codes, scales, _ = torch.ops.bitimpl.quantize_latent(
        signs(matrix.detach()), "sign", False, 0, FORMATS["binary"], False
    )
    return PackedWeight("binary", 1, rows, cols, None, codes, scales)


def _product(x_signs: Tensor, weight: Tensor | None, packed: Tensor | None) -> Tensor:
    """sign(x) sign(W)^T, exact: the kernel for bits, or float32 sums of +-1."""
    if weight is None:
        assert packed is not None
        held = _as_packed_weight(packed, x_signs.shape[-1])
    elif multiplies_bits(x_signs, "linear"):
        held = packed_signs(weight)
    else:
        return x_signs @ signs(weight).t()
    # The kernel scales signs by the row's mean |x|: of signs it is exactly 1.
    return functional.binary_linear(x_signs, held, None, 1)


def _batched_product(x_signs: Tensor, y_signs: Tensor) -> Tensor:
    """x [..., M, K] times the transpose of y [..., N, K], both signs."""
    lead = torch.broadcast_shapes(x_signs.shape[:-2], y_signs.shape[:-2])
    count = y_signs.shape[:-2].numel()
    # One y for all x, or one for each; others are left to torch.
    fits = y_signs.numel() > 0 and count <= MOST_PRODUCTS and count in (1, lead.numel())
    if not (fits and multiplies_bits(x_signs, "linear")):
        return x_signs @ y_signs.transpose(-1, -2)
    x = x_signs.reshape(1, -1, x_signs.shape[-1])
    if count > 1:
        x = x_signs.expand(*lead, *x_signs.shape[-2:]).reshape(count, *x_signs.shape[-2:])
    y = y_signs.reshape(count, *y_signs.shape[-2:])
    products = [functional.binary_linear(a, packed_signs(b), None, 1) for a, b in zip(x, y, strict=True)]
    return torch.stack(products).view(*lead, x_signs.shape[-2], y_signs.shape[-2])


def _transposed_product(grad: Tensor, weight: Tensor | None, packed: Tensor | None, columns: int) -> Tensor:
    """grad [..., N] times sign(W) [N, columns], in the dtype of grad."""
    if weight is not None:
        return grad @ signs(weight).to(grad.dtype)
    assert packed is not None
    held = _as_packed_weight(packed, columns)
    product: Tensor = torch.ops.bitimpl.linear_input_grad(
        grad, held.codes, held.scales, held.rows, held.cols, 1, 0, FORMATS["binary"]
    )
    return product


def _int8_product(
    grad: Tensor, weight: Tensor | None, packed: Tensor | None, scale_w: Tensor, columns: int
) -> Tensor:
    """grad [..., N] times scale_w sign(W) [N, columns], each row of (grad scale_w) as int8: float32."""
    if weight is not None:
        held = packed_signs(weight)
    else:
        assert packed is not None
        held = _as_packed_weight(packed, columns)
    scales = held.scales * scale_w.to(torch.float32).view(1, -1, 1)
    product: Tensor = torch.ops.bitimpl.int8_linear_input_grad(
        grad, held.codes, scales, held.rows, held.cols, 0, FORMATS["binary"]
    )
    return product


def _as_packed_weight(packed: Tensor, columns: int) -> PackedWeight:
    ones = torch.ones(1, 1, 1, dtype=torch.float32, device=packed.device)
    return PackedWeight("binary", 1, packed.shape[0], columns, None, packed.reshape(-1), ones)
