"""Convolutions of signs: exact in the forward pass, straight-through in the backward pass.

The conventions are those of :mod:`impl.compat.bitorch_engine.signs`. A NaN in a sample makes that
sample's output NaN, and no other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from impl import functional
from impl.compat.bitorch_engine.signs import multiplies_bits, packed_signs, product_dtype, signs, unpack_signs
from impl.convolution import input_gradient
from impl.geometry import ConvGeometry, from_matrix, to_matrix
from impl.ops.library import without_autocast
from impl.packing import PackedWeight


class SignConv2d(torch.autograd.Function):
    """y = scale_a scale_w (sign(x) * sign(W)), float32, with the gradients of bitorch_engine.

    x [batch, channels, height, width] float; W as ``weight`` [out_channels, channels / groups, *kernel]
    or, if that is None, as ``packed`` bits of :func:`impl.geometry.to_matrix` of it; ``scale_a`` a scalar,
    or one per sample [batch, 1, 1, 1]; ``scale_w`` a scalar or [out_channels, 1, 1]. The border of
    ``geometry`` holds its ``padding_value`` as a sign, scaled by scale_a as all others are. The product of
    the signs is an exact integer, multiplied by scale_a, then by scale_w, each rounded to float32. Native
    kernels multiply bits as for :class:`impl.compat.bitorch_engine.signs.SignLinear`.

    Backward, with g the gradient of y, n the number of elements of x, and the convolution's own
    transposes:
        x        (g scale_w) through sign(W) where |x| <= |scale_a|, else 0
        weight   g through the padded sign(x), times scale_a
        scale_a  sum of (gradient of x) sign(x), over sqrt(n)
    that is, autograd through a clipped identity in place of the signs. ``scale_w`` and ``packed`` are
    constants. ``precision``: "float32" or "bfloat16", with the rounding that
    :class:`impl.compat.bitorch_engine.signs.SignLinear` states.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        packed: Tensor | None,
        scale_a: Tensor,
        scale_w: Tensor,
        geometry: ConvGeometry,
        precision: str = "float32",
    ) -> Tensor:
        ctx.save_for_backward(x, weight, packed, scale_a, scale_w)
        ctx.geometry, ctx.precision = geometry, precision
        with without_autocast(x.device):
            product = _product(signs(x), weight, packed, geometry)
        return product * scale_a.to(torch.float32) * scale_w.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, packed, scale_a, scale_w = ctx.saved_tensors
        geometry: ConvGeometry = ctx.geometry
        needs_x, needs_weight, _, needs_scale, *_ = ctx.needs_input_grad
        x_signs = signs(x)
        dtype = product_dtype(ctx.precision)
        grad_x = grad_weight = grad_scale = None
        with without_autocast(x.device):
            if needs_x or needs_scale:
                held = _weight_signs(weight, packed, x.shape[1] // geometry.groups, geometry).to(dtype)
                scaled = (grad * scale_w.to(torch.float32)).to(dtype)
                towards_x = input_gradient(scaled, held, geometry, list(x.shape))
                towards_x = towards_x.to(torch.float32) * (x.abs() <= scale_a.abs())
                if needs_scale:
                    grad_scale = (towards_x * x_signs).sum() / math.sqrt(max(1, x.numel()))
                    grad_scale = grad_scale.to(scale_a.dtype)
                grad_x = towards_x.to(x.dtype) if needs_x else None
            if needs_weight:
                padded = _with_border(x_signs, geometry)
                grad_weight = conv2d_weight(
                    (padded * scale_a.to(torch.float32)).to(dtype),
                    weight.shape,
                    grad.to(dtype),
                    stride=geometry.stride,
                    dilation=geometry.dilation,
                    groups=geometry.groups,
                )
                grad_weight = grad_weight.to(weight.dtype)
        return grad_x, grad_weight, None, grad_scale, None, None, None


def _product(x_signs: Tensor, weight: Tensor | None, packed: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """The convolution of signs, exact: the kernel for bits, or float32 sums of +-1."""
    held: PackedWeight | None = None
    if weight is None:
        assert packed is not None
        ones = torch.ones(1, 1, 1, dtype=torch.float32, device=packed.device)
        columns = geometry.taps * (x_signs.shape[1] // geometry.groups)
        held = PackedWeight("binary", 1, packed.shape[0], columns, None, packed.reshape(-1), ones)
    elif multiplies_bits(x_signs, "conv"):
        held = packed_signs(to_matrix(signs(weight)))
    if held is not None:
        # The kernel scales signs by the sample's mean |x|: of signs it is exactly 1.
        return functional.binary_conv(x_signs, held, geometry, None, 1)
    assert weight is not None
    padded = _with_border(x_signs, geometry)
    product = F.conv2d(padded, signs(weight), None, geometry.stride, 0, geometry.dilation, geometry.groups)
    # Whole numbers, also where a convolution by transforms (Winograd's, Fourier's) is a little off;
    # and NaN all over a sample that holds one.
    return product.round() + 0 * x_signs.sum(dim=(1, 2, 3), keepdim=True)


def _with_border(x_signs: Tensor, geometry: ConvGeometry) -> Tensor:
    return F.pad(x_signs, geometry.torch_padding(), value=geometry.padding_value)


def _weight_signs(
    weight: Tensor | None, packed: Tensor | None, channels: int, geometry: ConvGeometry
) -> Tensor:
    """Signs of the weight, float32 [out_channels, channels, *kernel]."""
    if weight is not None:
        return signs(weight)
    assert packed is not None
    return from_matrix(unpack_signs(packed, geometry.taps * channels), geometry)
