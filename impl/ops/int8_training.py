"""Training of binary and ternary linear layers with int8 products, forwards and towards the input.

``quantize_latent``            codes, scales and mask of a latent weight, once a step
``int8_training_linear``       the product with them, and the gradients of input, latent weight and bias
``int8_linear_input_grad``     its gradient towards the input, by exact integer products
``apply_ste_mask``             a gradient, where the mask of the estimator ``clip`` lets it through

Kernels of ``csrc/cuda/{quantize_weight,input_grad}.cu`` serve CUDA tensors; elsewhere torch computes the
same numbers. Arithmetic: ``impl_cuda.h``, section on training.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from impl import decoding, native
from impl.checks import check_choice, check_weight, group_count
from impl.ops.library import FORMAT_NAMES, check_device, packed_weight, register, without_autocast
from impl.ops.linear import apply_linear
from impl.packing import PackedWeight, codes_bytes, pack, unpack_sign_rows
from impl.packing.layout import pack_bits
from impl.quantizers import quantize_activations, quantize_binary, quantize_ternary
from impl.quantizers.activations import WINDOWS, absmax_codes, passes_gradient
from impl.tiles import row_tiles

RULES = tuple(native.cuda.training.RULES)
"""Rules that the kernels know: ``sign`` (:func:`impl.quantizers.quantize_binary`) for format ``binary``, some
of :data:`impl.quantizers.RULES` for the others."""

#: Least amax of a row of gradients, which are small: far below that of activations.
_GRADIENT_FLOOR = 1e-36

#: float32 holds integers up to here.
_EXACT = 1 << 24


# ---- the latent weight ------------------------------------------------------------------------


def quantize_latent(
    weight: Tensor, rule: str, per_tensor: bool, group_size: int, format: int, mask: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes (uint8), scales (float32 [1, rows or 1, groups]) and mask of ``weight`` [rows, cols].

    ``rule`` is one of :data:`RULES`; ``group_size`` 0 stands for none. The mask holds a bit for each weight,
    1 where |w| <= 1, as uint8 [rows, ceil(cols / 8)]; [0] unless ``mask``. Means are summed in float64, so
    that devices find the same scales, but where a mean all but ties between two float32 numbers.
    """
    name = _format_name(format)
    check_choice("rule of int8 training", rule, RULES)
    if (rule == "sign") != (name == "binary"):
        raise ValueError(f"rule='sign' makes binary codes and no others do, got rule={rule!r} for {name}")
    weight = check_weight(weight, check_finite=False)
    kernels = native.training_kernels(weight.device, name) if weight.dtype in native.DTYPES else None
    if kernels is not None:
        codes, scales, inside = kernels.quantize_weight(
            weight, rule, per_tensor=per_tensor, group_size=group_size or None, format=name, mask=mask
        )
    else:
        options: dict[str, Any] = {
            "scale": "tensor" if per_tensor else "row",
            "group_size": group_size or None,
            "check_finite": False,
            "sum_dtype": torch.float64,
        }
        if name == "binary":
            found = quantize_binary(weight, **options)
        else:
            found = quantize_ternary(weight, rule=rule, **options)
        codes, scales = pack(found.codes, name, group_size or None), found.scales
        inside = pack_bits(weight.abs() <= 1) if mask else None
    return codes, scales, weight.new_empty(0, dtype=torch.uint8) if inside is None else inside


def _quantize_latent_fake(
    weight: Tensor,
    rule: str,  # noqa: ARG001 - the fake has the operator's signature
    per_tensor: bool,
    group_size: int,
    format: int,
    mask: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, cols = weight.shape
    codes = codes_bytes(_format_name(format), 1, rows, cols)
    groups = group_count(cols, group_size or None)
    return (
        weight.new_empty(codes, dtype=torch.uint8),
        weight.new_empty((1, 1 if per_tensor else rows, groups), dtype=torch.float32),
        weight.new_empty((rows, -(-cols // 8)) if mask else (0,), dtype=torch.uint8),
    )


def _format_name(format: int) -> str:
    if format not in FORMAT_NAMES:
        raise ValueError(f"format={format} is unknown, the formats are {FORMAT_NAMES}")
    return FORMAT_NAMES[format]


# ---- the product --------------------------------------------------------------------------------


def _weight_of(
    codes: Tensor, scales: Tensor, rows: int, cols: int, group_size: int, format: int
) -> PackedWeight:
    return packed_weight(codes, scales, rows, cols, 1, group_size, format)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    scales: Tensor,
    mask: Tensor | None,  # noqa: ARG001 - for the gradient
    group_size: int,
    format: int,
    activation_bits: int,
) -> Tensor:
    packed = _weight_of(codes, scales, weight.shape[0], weight.shape[1], group_size, format)
    return apply_linear(native.operator_of(packed.format), x, packed, bias, activation_bits)


def _linear_fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:  # noqa: ARG001 - the operator's
    rows, cols = weight.shape
    torch._check(x.dim() > 0 and x.shape[-1] == cols, lambda: f"input's last dimension must be {cols}")
    return x.new_empty((*x.shape[:-1], rows))


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch's
    x, weight, bias, codes, scales, mask, group_size, format, activation_bits = inputs
    ctx.activation_bits = activation_bits
    # x itself, not its codes: it is likely to be kept by others anyway.
    windowed = ctx.needs_input_grad[0] and activation_bits in WINDOWS
    kept = x if ctx.needs_input_grad[1] or windowed else None
    ctx.save_for_backward(codes, scales, mask, kept)
    ctx.numbers = (*weight.shape, group_size, format)
    ctx.weight_dtype = weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """x: int8 gradients times codes, passed on as the activations pass it (8 bits: as it is). Weight: the
    product with the quantised x, in the dtype of x, where the mask lets it through."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "int8_training has first derivatives only, backward(create_graph=True) asks for more: "
            "set int8_training=False"
        )
    codes, scales, mask, x = ctx.saved_tensors
    rows, cols, *_ = ctx.numbers
    bits = ctx.activation_bits
    grad_x = grad_weight = grad_bias = None
    q, scale = (codes, scales) if x is None else quantize_activations(x, bits)  # looked at only with x
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.bitimpl.int8_linear_input_grad(grad, codes, scales, *ctx.numbers)
        if bits in WINDOWS:
            grad_x = grad_x * passes_gradient(x, scale, bits)
    flat = grad.reshape(-1, rows)
    if ctx.needs_input_grad[1]:
        values = (q * scale).to(x.dtype).reshape(-1, cols)
        with without_autocast(grad.device):
            grad_weight = (flat.t() @ values).to(ctx.weight_dtype)
        if mask is not None:
            grad_weight = torch.ops.bitimpl.apply_ste_mask(grad_weight, mask)
    if ctx.needs_input_grad[2]:
        grad_bias = flat.sum(0).to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, *(None for _ in range(6))


class Int8TrainingFunction(torch.autograd.Function):
    """``int8_training_linear`` for eager calls, past the dispatcher (see
    :class:`impl.ops.linear.PreparedFunction`)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _linear(*inputs)
        _linear_setup(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _linear_backward(ctx, grad)


# ---- gradients ----------------------------------------------------------------------------------


def _input_grad(
    grad: Tensor, codes: Tensor, scales: Tensor, rows: int, cols: int, group_size: int, format: int
) -> Tensor:
    """grad [..., rows], each row of it as int8, times the packed weight: [..., cols] in its dtype."""
    weight = _weight_of(codes, scales, rows, cols, group_size, format)
    check_device(grad, codes.device)
    flat = grad.reshape(-1, rows)
    kernels = native.training_kernels(grad.device, weight.format)
    out = input_grad_python(flat, weight) if kernels is None else kernels.input_grad(flat, weight)
    return out.view(*grad.shape[:-1], cols)


def input_grad_python(grad: Tensor, weight: PackedWeight) -> Tensor:
    """What ``bitimpl_cuda_input_grad`` computes for one component, to the bit: [M, cols] of ``grad``
    [M, rows], in its dtype."""
    values = grad.to(torch.float32)
    ones = torch.ones((1, 1, weight.scales.shape[2]), dtype=torch.float32, device=grad.device)
    codes = replace(weight, scales=ones)
    exact = torch.float32 if 127 * weight.rows <= _EXACT else torch.float64
    width = weight.group_size or weight.cols
    scales = weight.scales[0].to(torch.float32).expand(weight.rows, -1)
    quantised = [
        absmax_codes(values * scales[:, group], 127, -1, _GRADIENT_FLOOR) for group in range(scales.shape[1])
    ]
    sums = values.new_zeros((grad.shape[0], weight.cols), dtype=exact)
    with without_autocast(grad.device):
        for begin, end in row_tiles(codes):
            tile = decoding.dequantize_rows(codes, begin, end).to(exact)
            for group, (q, _) in enumerate(quantised):
                columns = slice(group * width, min((group + 1) * width, weight.cols))
                sums[:, columns] += q[:, begin:end].to(exact) @ tile[:, columns]
    parts = [
        scale * part.to(torch.float32)
        for (_, scale), part in zip(quantised, sums.split(width, dim=1), strict=True)
    ]
    return torch.cat(parts, dim=1).to(grad.dtype)


def _input_grad_fake(
    grad: Tensor,
    codes: Tensor,  # noqa: ARG001 - the fake has the operator's signature
    scales: Tensor,  # noqa: ARG001 - as above
    rows: int,  # noqa: ARG001 - as above
    cols: int,
    *rest: int,  # noqa: ARG001 - as above
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], cols))


def _apply_mask(grad: Tensor, mask: Tensor) -> Tensor:
    if grad.dim() != 2 or mask.device != grad.device:
        raise ValueError(
            f"the gradient of a weight is [rows, cols] with its mask beside it, got {list(grad.shape)} on "
            f"{grad.device} and a mask on {mask.device}"
        )
    rows, cols = grad.shape
    if mask.dtype != torch.uint8 or tuple(mask.shape) != (rows, -(-cols // 8)):
        raise ValueError(
            f"the mask of a gradient {list(grad.shape)} is uint8 [{rows}, {-(-cols // 8)}], got {mask.dtype} "
            f"{list(mask.shape)}: take that of quantize_latent"
        )
    kernels = native.training_kernels(grad.device, "base3") if grad.dtype in native.DTYPES else None
    if kernels is None:
        return torch.where(unpack_sign_rows(mask, cols) > 0, grad, 0).contiguous()
    out = grad.clone(memory_format=torch.contiguous_format)
    kernels.apply_mask(out, mask.contiguous())
    return out


def _apply_mask_fake(grad: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001 - the operator's
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def _no_gradient(ctx: Any, *grads: Tensor) -> None:  # noqa: ARG001 - torch's signature
    raise RuntimeError(
        "this operator of int8 training is a step of a gradient or of a quantiser and has no gradient "
        "itself: detach its inputs, or use the layer"
    )


register(
    "quantize_latent",
    "(Tensor weight, str rule, bool per_tensor, int group_size, int format, bool mask) "
    "-> (Tensor codes, Tensor scales, Tensor mask)",
    quantize_latent,
    _quantize_latent_fake,
    _no_setup,
    _no_gradient,
)
register(
    "int8_training_linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor codes, Tensor scales, Tensor? mask, int group_size, "
    "int format, int activation_bits) -> Tensor",
    _linear,
    _linear_fake,
    _linear_setup,
    _linear_backward,
)
register(
    "int8_linear_input_grad",
    "(Tensor grad, Tensor codes, Tensor scales, SymInt rows, SymInt cols, int group_size, int format) "
    "-> Tensor",
    _input_grad,
    _input_grad_fake,
    _no_setup,
    _no_gradient,
)
register(
    "apply_ste_mask",
    "(Tensor grad, Tensor mask) -> Tensor",
    _apply_mask,
    _apply_mask_fake,
    _no_setup,
    _no_gradient,
)
