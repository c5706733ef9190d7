"""``bitorch_engine.utils``: symmetric integer quantisation, and int8 weights for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from impl.checks import SCALES, check_choice, check_weight


def nv_tensor_quant(
    inputs: Tensor,
    amax: Tensor | None = None,
    num_bits: int = 8,
    unsigned: bool = False,
    narrow_range: bool = True,
) -> tuple[Tensor, Tensor]:
    """Whole numbers in the dtype of ``inputs``, and the scale: inputs = numbers / scale.

    The scale is L / ``amax`` with L = 2^(num_bits - 1) - 1, or 2^num_bits - 1 if ``unsigned``; numbers
    are rounded half to even and lie in -L .. L (``narrow_range``), -L - 1 .. L, or 0 .. L
    (``unsigned``). ``amax`` None is the largest *magnitude* of all ``inputs``; a tensor of as many
    dimensions broadcasts against them (one per row, say). Where ``amax`` is at most 2^-24 the numbers
    are 0 and the scale is 1. The scale is float32 (float64 for float64 inputs), of the shape of ``amax``.

    Raises TypeError for integer inputs, for negative ones with ``unsigned``, and for an ``amax`` that is
    no tensor; ValueError for one that is negative or of another number of dimensions, and for
    ``num_bits`` that the dtype cannot hold.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a floating-point tensor, got {got}: convert it with .float()")
    limit = 2 ** (num_bits if unsigned else num_bits - 1) - 1
    most = round(2 / torch.finfo(inputs.dtype).eps)
    if not 1 <= limit < most:
        raise ValueError(
            f"num_bits={num_bits} (unsigned={unsigned}) makes numbers up to {limit}, {inputs.dtype} holds "
            f"1 .. {most}: use {'fewer' if limit >= most else 'at least 2'} bits"
        )
    values = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    if unsigned and values.numel() and bool(values.min() < 0):
        raise TypeError(f"unsigned quantisation of negative values (least {values.min():.3g}): use signed")
    if amax is None:
        zero = values.new_zeros([1] * values.dim())
        amax = values.abs().amax().expand_as(zero).clone() if values.numel() else zero
    elif not isinstance(amax, Tensor):
        raise TypeError(f"amax must be a torch.Tensor or None, got {amax!r}: use torch.full")
    elif amax.dim() != inputs.dim():
        raise ValueError(
            f"amax has {amax.dim()} dimensions, the inputs {inputs.dim()}: "
            "keep reduced ones with keepdim=True"
        )
    amax = amax.to(values.dtype)
    if amax.numel() and bool(amax.min() < 0):
        raise ValueError(f"amax holds negative values (least {amax.min():.3g}): give largest magnitudes")
    invisible = amax <= 2**-24  # NaN is not: it reaches the numbers
    scale = torch.where(invisible, 1.0, limit / torch.where(invisible, 1.0, amax))
    lowest = 0 if unsigned else -limit if narrow_range else -limit - 1
    numbers = torch.where(invisible, 0.0, (values * scale).round().clamp(lowest, limit))
    return numbers.to(inputs.dtype), scale


def init_weight(
    weight: Tensor, cls: type[nn.Parameter] = nn.Parameter, scale: str = "tensor"
) -> tuple[nn.Parameter, Tensor]:
    """An int8 weight to train by flipping signs, and its scale, from float ``weight`` [rows, cols].

    The scale is mean|w|, a scalar, or [rows] with ``scale="row"``. The int8 values are w - mean(w) (of
    the tensor, or of the row) in steps of 1/127 of the largest magnitude; what rounds to 0 takes its
    sign, +1 for exact zeros, as a weight of 0 could never flip. ``cls`` is called with them
    (:class:`impl.parameters.BinaryLinearParameter` keeps their signs); ``nn.Parameter`` with
    ``requires_grad=False``, as torch has no gradients for plain int8 tensors.

    Raises ValueError for NaN, infinity and non-matrices, TypeError for integer weights.
    """
    check_choice("scale", scale, SCALES)
    values = check_weight(weight, check_finite=True).to(torch.float32)
    across = None if scale == "tensor" else 1
    scale_w = values.abs().mean(dim=across)
    centred = values - (values.mean() if across is None else values.mean(dim=across, keepdim=True))
    numbers, _ = nv_tensor_quant(centred)
    numbers = torch.where(numbers == 0, torch.where(centred >= 0, 1.0, -1.0), numbers).to(torch.int8)
    parameter = cls(numbers, requires_grad=False) if cls is nn.Parameter else cls(numbers)
    return parameter, scale_w
