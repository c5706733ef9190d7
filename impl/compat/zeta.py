"""``zeta.nn.quant``: :class:`BitLinear` and :func:`absmax_quantize` under their own names.

The layer is BitNet b1's (Wang et al., 2023): weights are signs about their group's mean, activations
8-bit integers. Against the original, outputs are in the unit of the input, a row's output depends on
that row alone, gradients reach weight and input, and any ``groups`` that divide the weight work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, check_activations, check_positive
from impl.layers.calls import autocast
from impl.quantizers import fake_quantize_activations, straight_through

__all__ = ["BitLinear", "absmax_quantize"]

MAX_BITS = 24
"""Widest integers: float32 holds no wider ones exactly."""


def absmax_quantize(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """``x`` as integers of ``bits`` bits, with one scale for the whole tensor, and what they stand for.

    With L = 2^(bits - 1) - 1 and s = L / max|x|: ``quantised`` = round(s x), half to even, and
    ``dequantised`` = quantised / s, both of the shape of ``x``. A tensor of zeros stays zero,
    and one becomes zero whose s the dtype could not hold (in float32, max|x| below 1e-36 for 8 bits).

    Returns ``quantised`` as int8 up to 8 bits, int16 up to 16 and int32 up to 24, and ``dequantised``
    in the dtype of ``x``; the gradient of the latter passes to ``x`` unchanged. Raises TypeError for
    integer tensors, ValueError for ``bits`` outside 2 .. 24 and for NaN and infinity.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be an integer from 2 to {MAX_BITS}, got {bits!r}: use 4, 8 or 16")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a floating-point tensor, got {got}: convert it with x.float()")
    values = x.detach()
    if values.dtype in (torch.float16, torch.bfloat16):  # neither range nor precision for the products
        values = values.to(torch.float32)
    if values.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
        bad = values.numel() - int(torch.isfinite(values).sum())
        raise ValueError(f"x holds {bad} NaN or infinite values of {values.numel()}: they have no scale")
    limit = 2 ** (bits - 1) - 1
    # The largest magnitude of no elements is 0; below the floor the scale would overflow.
    largest = values.abs().amax() if values.numel() else values.new_zeros(())
    floor = 2 * limit / torch.finfo(values.dtype).max
    scale = torch.where(largest > floor, limit / largest.clamp_min(floor), 1.0)
    quantised = (values * scale).round().clamp(-limit, limit)
    dequantised = (quantised / scale).to(x.dtype)
    integers = torch.int8 if bits <= 8 else torch.int16 if bits <= 16 else torch.int32
    return quantised.to(integers), dequantised + (x - x.detach())  # an exact zero carries the gradient


class BitLinear(nn.Module):
    """Linear layer without bias, with weights -1 and +1 times a scale and 8-bit activations.

    ``weight`` is a float Parameter [out_features, in_features]. Forward cuts it, row after row, into
    ``groups`` runs of equal length; with mean a and mean magnitude b of a run, its weights count as
    b sign(w - a), where sign(0) = +1. Each row of the input is rounded to 8 bits
    (:func:`impl.quantizers.fake_quantize_activations`). Both pass the gradient straight through.

    Raises ValueError where ``groups`` does not divide in_features x out_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_positive("in_features", in_features)
        self.out_features = check_positive("out_features", out_features)
        self.groups = check_positive("groups", groups)
        count = self.in_features * self.out_features
        if count % self.groups:
            raise ValueError(
                f"groups = {self.groups} does not divide the {self.out_features} x {self.in_features} = "
                f"{count} weights: use a divisor of {count}"
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self.weight = nn.Parameter(
            torch.empty(self.out_features, self.in_features, device=device, dtype=dtype)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight anew, as ``nn.Linear`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def quantized_weight(self) -> Tensor:
        """The weight that forward uses, float32 [out_features, in_features], without gradient."""
        runs = self.weight.detach().to(torch.float32).reshape(self.groups, -1)
        scale = runs.abs().mean(dim=1, keepdim=True)
        positive = runs >= runs.mean(dim=1, keepdim=True)
        return torch.where(positive, scale, -scale).view(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """y [..., out_features] of input [..., in_features], in its dtype (autocast's, where on).

        Takes float32, bfloat16 and float16, any leading dimensions and strides, empty batches
        included; TypeError or ValueError otherwise.
        """
        x = autocast(check_activations(input, self.in_features))
        weight = straight_through(self.weight, self.quantized_weight())
        return F.linear(fake_quantize_activations(x, 8), weight.to(x.dtype))

    def extra_repr(self) -> str:
        """Shape and groups, as ``print(model)`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, groups={self.groups}"
