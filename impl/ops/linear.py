"""``binary_linear`` and ``ternary_linear``: y [..., rows] = x [..., cols] times the transposed packed
weight, plus bias. Eager inference calls :func:`impl.native.prepare_linear` directly.
``linear_input_grad`` is their gradient towards x.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from impl import decoding, functional, native
from impl.checks import check_activations
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
from impl.tiles import row_tiles

_WEIGHT_SCHEMA = "int rows, int cols, int components, int group_size, int format"
_LINEAR_SCHEMA = (
    f"(Tensor x, Tensor codes, Tensor scales, Tensor? bias, {_WEIGHT_SCHEMA}, int activation_bits) -> Tensor"
)
_GRAD_SCHEMA = f"(Tensor grad, Tensor codes, Tensor scales, {_WEIGHT_SCHEMA}) -> Tensor"

OPERATORS = ("binary_linear", "ternary_linear")


def check_input(x: Tensor, in_features: int, device: torch.device) -> Tensor:
    """Return ``x`` if a packed layer on ``device`` can take it; else TypeError or ValueError."""
    return check_device(check_activations(x, in_features), device)


def apply_linear(
    operator: str, x: Tensor, weight: PackedWeight, bias: Tensor | None, activation_bits: int
) -> Tensor:
    """What ``operator`` computes, by the implementation that serves x's device. No autograd."""
    if native.operator_of(weight.format) != operator:
        raise ValueError(f"{operator} does not take {weight.format} weights")
    if activation_bits not in ACTIVATIONS:
        raise ValueError(
            f"activation_bits={activation_bits}, {operator} takes {ACTIVATIONS} (0: float activations)"
        )
    check_input(x, weight.cols, weight.codes.device)
    bits = activation_bits or None
    if native.uses_native(x.device, native.operation_of(bits), weight.format):
        return native.linear(x, weight, bias, bits)
    native.record_kernel(native.kernel_name(weight, bits, "reference/torch"))
    reference = getattr(functional, f"{operator}_python")
    y: Tensor = reference(x, weight, bias, bits)
    return y.contiguous()


def _linear_kernel(
    operator: str,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    rows: int,
    cols: int,
    components: int,
    group_size: int,
    format: int,
    activation_bits: int,
) -> Tensor:
    weight = packed_weight(codes, scales, rows, cols, components, group_size, format)
    return apply_linear(operator, x, weight, bias, activation_bits)


def _linear_fake(
    x: Tensor,
    codes: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    scales: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    rows: int,
    cols: int,
    *rest: int,  # noqa: ARG001
) -> Tensor:
    torch._check(x.dim() > 0 and x.shape[-1] == cols, lambda: f"input's last dimension must be {cols}")
    return x.new_empty((*x.shape[:-1], rows))


def _linear_input_grad(
    grad: Tensor,
    codes: Tensor,
    scales: Tensor,
    rows: int,
    cols: int,
    components: int,
    group_size: int,
    format: int,
) -> Tensor:
    """grad [..., rows] times the decoded weight, tile by tile: [..., cols] in the dtype of grad.

    Tiles are multiplied in :func:`product_dtype` of grad; their products are added in float32.
    """
    weight = packed_weight(codes, scales, rows, cols, components, group_size, format)
    dtype = product_dtype(grad)
    flat = grad.reshape(-1, rows).to(dtype)
    out = flat.new_zeros((flat.shape[0], cols), dtype=torch.float32)
    for begin, end in row_tiles(weight):
        tile = decoding.dequantize_rows(weight, begin, end)
        if dtype == torch.float32:
            out.addmm_(flat[:, begin:end], tile)
        else:
            out += flat[:, begin:end] @ tile.to(dtype)
    return out.to(grad.dtype).view(*grad.shape[:-1], cols)


def _linear_input_grad_fake(
    grad: Tensor,
    codes: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    scales: Tensor,  # noqa: ARG001
    rows: int,  # noqa: ARG001
    cols: int,
    *rest: int,  # noqa: ARG001
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], cols))


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, codes, scales, bias, *numbers, activation_bits = inputs
    _keep(ctx, x, codes, scales, activation_bits)
    ctx.numbers = numbers
    ctx.bias_dtype = None if bias is None else bias.dtype


def _keep(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, activation_bits: int) -> None:
    # Only the window of signs and ternary values needs x again.
    ctx.activation_bits = activation_bits
    ctx.save_for_backward(codes, scales, *([x] if activation_bits in WINDOWS else []))


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_bias = _gradients(ctx, grad, ctx.needs_input_grad[0], ctx.needs_input_grad[3])
    return (grad_x, None, None, grad_bias, *(None for _ in ctx.numbers), None)


def _gradients(
    ctx: Any, grad: Tensor, needs_x: bool, needs_bias: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients towards x and bias. Packed weights are constants; quantised activations pass the
    gradient as :func:`impl.quantizers.fake_quantize_activations` does in training form."""
    codes, scales, *saved = ctx.saved_tensors
    grad_x = grad_bias = None
    if needs_x:
        grad_x = torch.ops.bitimpl.linear_input_grad(grad, codes, scales, *ctx.numbers)
        for x in saved:
            _, scale = quantize_activations(x, ctx.activation_bits)
            grad_x = grad_x * passes_gradient(x, scale, ctx.activation_bits)
    if needs_bias:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
    return grad_x, grad_bias


class PreparedFunction(torch.autograd.Function):
    """A prepared layer with gradients, for eager calls. The registered operators do the same, but
    torch takes long to reach an operator whose gradient is registered in Python."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, prepared: native.DescribedLinear) -> Tensor:
        weight = prepared.weight
        _keep(ctx, x, weight.codes, weight.scales, prepared.activation_bits or 0)
        ctx.numbers = (
            weight.rows,
            weight.cols,
            weight.components,
            weight.group_size or 0,
            FORMATS[weight.format],
        )
        ctx.bias_dtype = None if bias is None else bias.dtype
        return prepared(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, grad, *ctx.needs_input_grad[:2]), None)


def _linear_input_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, codes, scales, *numbers = inputs
    ctx.save_for_backward(codes, scales)
    ctx.numbers = numbers


def _linear_input_grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient towards x is linear in the gradient of y; its own gradient is the layer with
    float activations."""
    codes, scales = ctx.saved_tensors
    name = FORMAT_NAMES[ctx.numbers[-1]]
    operator = getattr(torch.ops.bitimpl, native.operator_of(name))
    back = operator(grad, codes, scales, None, *ctx.numbers, 0)
    return (back, None, None, *(None for _ in ctx.numbers))


for _name in OPERATORS:
    register(
        _name,
        _LINEAR_SCHEMA,
        functools.partial(_linear_kernel, _name),
        _linear_fake,
        _linear_setup,
        _linear_backward,
    )
register(
    "linear_input_grad",
    _GRAD_SCHEMA,
    _linear_input_grad,
    _linear_input_grad_fake,
    _linear_input_grad_setup,
    _linear_input_grad_backward,
)
