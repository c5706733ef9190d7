"""``binary_conv`` and ``ternary_conv``: the convolution of x [batch, channels, *spatial] with a packed
weight, plus bias. ``conv_input_grad`` is their gradient towards x.

``padding`` holds the positions added before and after each dimension, in order. y is contiguous, or
channels-last where x is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from impl import decoding, functional, native
from impl.convolution import input_gradient
from impl.functional.conv_reference import check_conv_input
from impl.geometry import ConvGeometry, from_matrix
from impl.ops.library import (
    ACTIVATIONS,
    FORMAT_NAMES,
    check_device,
    packed_weight,
    product_dtype,
    register,
)
from impl.packing import FORMATS, PackedWeight
from impl.quantizers import quantize_activations
from impl.quantizers.activations import WINDOWS, passes_gradient

_WEIGHT_SCHEMA = "int rows, int cols, int components, int format"
_PLACES_SCHEMA = "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups"
_CONV_SCHEMA = (
    f"(Tensor x, Tensor codes, Tensor scales, Tensor? bias, {_WEIGHT_SCHEMA}, int activation_bits, "
    f"{_PLACES_SCHEMA}, float padding_value) -> Tensor"
)
_GRAD_SCHEMA = (
    f"(Tensor grad, Tensor codes, Tensor scales, {_WEIGHT_SCHEMA}, {_PLACES_SCHEMA}, SymInt[] size) -> Tensor"
)

OPERATORS = ("binary_conv", "ternary_conv")


def weight_arguments(weight: PackedWeight) -> tuple[int, int, int, int]:
    """The arguments rows, cols, components and format of ``weight``."""
    return weight.rows, weight.cols, weight.components, FORMATS[weight.format]


def place_arguments(geometry: ConvGeometry) -> tuple[list[int], list[int], list[int], list[int], int]:
    """The arguments kernel, stride, padding, dilation and groups of ``geometry``."""
    padding = [side for pair in geometry.padding for side in pair]
    return (
        list(geometry.kernel),
        list(geometry.stride),
        padding,
        list(geometry.dilation),
        geometry.groups,
    )


def geometry_of(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_value: float = 0.0,
) -> ConvGeometry:
    """The geometry that an operator's arguments describe."""
    if len(padding) != 2 * len(kernel):
        raise ValueError(f"padding holds two numbers a dimension, got {padding} for kernel {list(kernel)}")
    return ConvGeometry(
        tuple(kernel),
        tuple(stride),
        tuple(zip(padding[::2], padding[1::2], strict=True)),
        tuple(dilation),
        groups,
        padding_value,
    )


def convolution(
    operator: str,
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None,
    activation_bits: int,
    geometry: ConvGeometry,
) -> Tensor:
    """What ``operator`` computes, by the implementation that serves x's device. No autograd."""
    if native.operator_of(weight.format, "conv") != operator:
        raise ValueError(f"{operator} does not take {weight.format} weights")
    if activation_bits not in ACTIVATIONS:
        raise ValueError(
            f"activation_bits={activation_bits}, {operator} takes {ACTIVATIONS} (0: float activations)"
        )
    check_device(check_conv_input(x, weight, geometry), weight.codes.device)
    bits = activation_bits or None
    if native.uses_native(x.device, native.operation_of(bits, "conv"), weight.format):
        y = native.conv(x, weight, geometry, bias, bits)
    else:
        native.record_kernel(native.kernel_name(weight, bits, "reference/torch", "conv"))
        y = getattr(functional, f"{operator}_python")(x, weight, geometry, bias, bits)
    return y.contiguous(memory_format=native.memory_format_of(x))


def _conv_kernel(
    operator: str,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    components: int,
    format: int,
    activation_bits: int,
    *places: Any,
) -> Tensor:
    weight = packed_weight(codes, scales, rows, cols, components, 0, format)
    return convolution(operator, x, weight, bias, activation_bits, geometry_of(*places))


def _conv_fake(
    x: Tensor,
    codes: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    scales: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    rows: int,
    cols: int,
    components: int,  # noqa: ARG001
    format: int,  # noqa: ARG001
    activation_bits: int,  # noqa: ARG001
    *places: Any,
) -> Tensor:
    geometry = geometry_of(*places)
    torch._check(x.dim() == geometry.dims + 2, lambda: f"the input must have {geometry.dims + 2} dimensions")
    channels = cols // geometry.taps * geometry.groups
    torch._check(x.shape[1] == channels, lambda: f"the input must have {channels} channels")
    size = geometry.output_size(tuple(x.shape[2:]))
    y = x.new_empty((x.shape[0], rows, *size))
    return y.contiguous(memory_format=native.memory_format_of(x))


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, codes, scales, bias, *numbers = inputs
    rows, cols, components, format, activation_bits, *places, _ = numbers
    _keep(ctx, x, codes, scales, bias, activation_bits)
    ctx.numbers = (rows, cols, components, format, *places)


def _keep(
    ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, activation_bits: int
) -> None:
    # Only the window of signs and ternary values needs x again.
    ctx.activation_bits = activation_bits
    ctx.save_for_backward(codes, scales, *([x] if activation_bits in WINDOWS else []))
    ctx.size = x.shape
    ctx.bias_dtype = None if bias is None else bias.dtype


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_bias = _gradients(ctx, grad, ctx.needs_input_grad[0], ctx.needs_input_grad[3])
    return (grad_x, None, None, grad_bias, *(None for _ in range(len(ctx.numbers) + 2)))


def _gradients(
    ctx: Any, grad: Tensor, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients towards x and bias. Packed weights are constants; quantised activations pass the
    gradient as :func:`impl.quantizers.fake_quantize_samples` does in training form."""
    codes, scales, *saved = ctx.saved_tensors
    grad_x = grad_bias = None
    if needs_x:
        grad_x = torch.ops.bitimpl.conv_input_grad(grad, codes, scales, *ctx.numbers, ctx.size)
        for x in saved:
            _, scale = quantize_activations(x, ctx.activation_bits, tuple(range(1, x.dim())))
            grad_x = grad_x * passes_gradient(x, scale, ctx.activation_bits)
    if needs_bias:
        grad_bias = grad.sum((0, *range(2, grad.dim()))).to(ctx.bias_dtype)
    return grad_x, grad_bias


class ConvFunction(torch.autograd.Function):
    """A prepared convolution with gradients, for eager calls: what the registered operators do, past the
    dispatcher."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        prepared: native.DescribedConv,
    ) -> Tensor:
        weight = prepared.weight
        _keep(ctx, x, weight.codes, weight.scales, bias, prepared.activation_bits or 0)
        ctx.numbers = (*weight_arguments(weight), *place_arguments(prepared.geometry))
        return prepared(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, grad, *ctx.needs_input_grad[:2]), None)


def _conv_input_grad(
    grad: Tensor,
    codes: Tensor,
    scales: Tensor,
    rows: int,
    cols: int,
    components: int,
    format: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    size: Sequence[int],
) -> Tensor:
    """Gradient [batch, channels, *spatial] = ``size`` in the dtype of grad, contiguous; multiplied in
    :func:`product_dtype` of grad."""
    geometry = geometry_of(kernel, stride, padding, dilation, groups)
    weight = packed_weight(codes, scales, rows, cols, components, 0, format)
    dtype = product_dtype(grad)
    decoded = from_matrix(decoding.dequantize_rows(weight, 0, rows), geometry).to(dtype)
    return input_gradient(grad.to(dtype), decoded, geometry, list(size)).to(grad.dtype).contiguous()


def _conv_input_grad_fake(
    grad: Tensor,
    codes: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    scales: Tensor,  # noqa: ARG001
    *rest: Any,
) -> Tensor:
    return grad.new_empty(rest[-1])


def _conv_input_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, codes, scales, *numbers, _ = inputs
    ctx.save_for_backward(codes, scales)
    ctx.numbers = numbers


def _conv_input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient towards x is linear in the gradient of y; its own gradient is the convolution with
    float activations and zeros around them."""
    codes, scales = ctx.saved_tensors
    rows, cols, components, format, *places = ctx.numbers
    operator = getattr(torch.ops.bitimpl, native.operator_of(FORMAT_NAMES[format], "conv"))
    back = operator(grad, codes, scales, None, rows, cols, components, format, 0, *places, 0.0)
    return (back, None, None, *(None for _ in ctx.numbers), None)


for _name in OPERATORS:
    register(
        _name, _CONV_SCHEMA, functools.partial(_conv_kernel, _name), _conv_fake, _conv_setup, _conv_backward
    )
register(
    "conv_input_grad",
    _GRAD_SCHEMA,
    _conv_input_grad,
    _conv_input_grad_fake,
    _conv_input_grad_setup,
    _conv_input_grad_backward,
)
