"""The packed operators, served by the fastest implementation for the tensors at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from impl.functional.conv_reference import check_conv_operands
from impl.functional.reference import check_operands
from impl.geometry import ConvGeometry
from impl.packing import FORMATS, PackedWeight


def binary_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation_bits: int | None = None
) -> Tensor:
    """y = x W^T + bias for a ``binary`` weight, through ``torch.ops.bitimpl.binary_linear``.

    Operands and result as in :func:`impl.functional.binary_linear_python`. Differentiable with
    respect to ``x`` and ``bias``.
    """
    check_operands(x, weight, bias, activation_bits, ("binary",))
    return _call("binary_linear", x, weight, bias, activation_bits)


def ternary_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, activation_bits: int | None = None
) -> Tensor:
    """y = x W^T + bias for a ternary or k-ternary weight, through ``torch.ops.bitimpl.ternary_linear``.

    Operands and result as in :func:`impl.functional.ternary_linear_python`. Differentiable with
    respect to ``x`` and ``bias``.
    """
    check_operands(x, weight, bias, activation_bits, ("two_bit", "base3"))
    return _call("ternary_linear", x, weight, bias, activation_bits)


def binary_conv(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None = None,
    activation_bits: int | None = None,
) -> Tensor:
    """The convolution of x with a ``binary`` weight, plus bias, through ``torch.ops.bitimpl.binary_conv``.

    Operands and result as in :func:`impl.functional.binary_conv_python`; y is channels-last where x
    is. Differentiable with respect to ``x`` and ``bias``.
    """
    check_conv_operands(x, weight, geometry, bias, activation_bits, ("binary",))
    return _call_conv("binary_conv", x, weight, geometry, bias, activation_bits)


def ternary_conv(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None = None,
    activation_bits: int | None = None,
) -> Tensor:
    """The convolution of x with a ternary or k-ternary weight, plus bias, through
    ``torch.ops.bitimpl.ternary_conv``.

    Operands and result as in :func:`impl.functional.ternary_conv_python`; y is channels-last where x
    is. Differentiable with respect to ``x`` and ``bias``.
    """
    check_conv_operands(x, weight, geometry, bias, activation_bits, ("two_bit", "base3"))
    return _call_conv("ternary_conv", x, weight, geometry, bias, activation_bits)


def _call(
    operator: str, x: Tensor, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None
) -> Tensor:
    import impl.ops  # noqa: F401  (registers the operators; not needed by the references)

    return getattr(torch.ops.bitimpl, operator)(
        x,
        weight.codes,
        weight.scales,
        bias,
        weight.rows,
        weight.cols,
        weight.components,
        weight.group_size or 0,
        FORMATS[weight.format],
        activation_bits or 0,
    )


def _call_conv(
    operator: str,
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None,
    activation_bits: int | None,
) -> Tensor:
    from impl.ops.conv import place_arguments, weight_arguments

    return getattr(torch.ops.bitimpl, operator)(
        x,
        weight.codes,
        weight.scales,
        bias,
        *weight_arguments(weight),
        activation_bits or 0,
        *place_arguments(geometry),
        geometry.padding_value,
    )
