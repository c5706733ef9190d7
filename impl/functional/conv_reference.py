"""Reference implementations of the packed convolutions: the referee for every kernel.

Written to be read. The convolution of integer activations with integer codes is formed in float64,
where it is exact; what follows is ``impl.h`` operation by operation in float32, so that a kernel must
reproduce integer-activation results to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import ACTIVATION_DTYPES
from impl.convolution import convolve, pad
from impl.functional.reference import check_bias, check_format
from impl.geometry import ConvGeometry, from_matrix
from impl.packing import PackedWeight
from impl.quantizers import Quantized, quantize_samples


def binary_conv_python(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None = None,
    activation_bits: int | None = None,
) -> Tensor:
    """y = the convolution of x with a ``binary`` weight, plus bias; ``activation_bits`` None (float), 1
    (signs), 2 (ternary values), 8 or 16.

    ``x`` is float32, bfloat16 or float16 [batch, channels, *spatial] with any strides, ``weight`` the
    matrix [out_channels, taps * channels / groups] (:func:`impl.geometry.to_matrix`) without scale
    groups, ``bias`` [out_channels] or None; the result [batch, out_channels, *output] has the dtype of
    ``x``. A cross-correlation, as ``nn.Conv2d`` computes. Raises TypeError or ValueError for operands
    that do not belong together.
    """
    check_conv_operands(x, weight, geometry, bias, activation_bits, ("binary",))
    return _conv(x, weight, geometry, bias, activation_bits)


def ternary_conv_python(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None = None,
    activation_bits: int | None = None,
) -> Tensor:
    """y = the convolution of x with a ternary or k-ternary weight (``two_bit`` or ``base3``), plus bias;
    otherwise as :func:`binary_conv_python`."""
    check_conv_operands(x, weight, geometry, bias, activation_bits, ("two_bit", "base3"))
    return _conv(x, weight, geometry, bias, activation_bits)


def check_conv_operands(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None,
    activation_bits: int | None,
    formats: tuple[str, ...],
) -> None:
    """Refuse operands that the convolution for ``formats`` does not take."""
    check_format(weight, activation_bits, formats, "conv")
    check_conv_input(x, weight, geometry)
    check_bias(bias, weight)


def check_conv_input(x: Tensor, weight: PackedWeight, geometry: ConvGeometry) -> Tensor:
    """Return ``x`` if a convolution with ``weight`` under ``geometry`` can take it."""
    if weight.group_size is not None:
        raise ValueError(
            f"group_size={weight.group_size}: the scales of a convolution are per tensor or row, pack "
            "without scale groups"
        )
    if weight.cols % geometry.taps:
        raise ValueError(
            f"a weight of {weight.cols} columns is none of a kernel {geometry.kernel}, whose {geometry.taps} "
            "positions have as many columns each"
        )
    if weight.rows % geometry.groups:
        raise ValueError(
            f"{weight.rows} output channels do not divide into {geometry.groups} groups: choose a divisor"
        )
    return check_image(x, weight.cols // geometry.taps * geometry.groups, geometry)


def check_image(x: Tensor, channels: int, geometry: ConvGeometry) -> Tensor:
    """Return ``x`` if it is float32, bfloat16 or float16 [batch, channels, *spatial] and the kernel fits."""
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in ACTIVATION_DTYPES:
        raise TypeError(f"the input must be float32, bfloat16 or float16, got {x.dtype}: convert it first")
    if x.dim() != geometry.dims + 2:
        raise ValueError(
            f"the input must be [batch, channels, *spatial] with {geometry.dims} spatial dimensions, got "
            f"shape {tuple(x.shape)}"
        )
    if x.shape[1] != channels:
        raise ValueError(
            f"the input must have in_channels = {channels} in its second dimension, got {x.shape[1]} (shape "
            f"{tuple(x.shape)})"
        )
    if 0 in x.shape[2:]:
        raise ValueError(
            f"the input has no positions: spatial sizes must be at least 1, got {tuple(x.shape)}"
        )
    geometry.output_size(tuple(x.shape[2:]))
    return x


def _conv(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None,
    activation_bits: int | None,
) -> Tensor:
    codes = weight.unpack()
    if activation_bits is None:
        decoded = Quantized(codes, weight.scales).dequantize(torch.float64)
        product = convolve(pad(x.to(torch.float64), geometry), from_matrix(decoded, geometry), geometry)
    else:
        q, activation_scale = quantize_samples(x, activation_bits, geometry)
        q64 = q.to(torch.float64)
        scales = weight.scales.to(torch.float32).reshape(*weight.scales.shape[:2], *[1] * geometry.dims)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        for component, scale in zip(from_matrix(codes, geometry), scales, strict=True):
            dot = convolve(q64, component.to(torch.float64), geometry)
            total = total + scale * dot.to(torch.float32)
        product = total * activation_scale
    if bias is not None:
        product = product + bias.to(product.dtype).reshape(-1, *[1] * geometry.dims)
    return product.to(x.dtype)
