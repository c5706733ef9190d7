"""Straight-through estimators: gradients for latent weights behind a quantiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from impl.checks import check_choice
from impl.quantizers.sign import mean_magnitude, parabola_slope, swish_slope
from impl.quantizers.weights import Quantized

_SWISH_BETA = 5.0


def _identity(weight: Tensor) -> Tensor:
    return torch.ones_like(weight)


def _clip(weight: Tensor) -> Tensor:
    return (weight.abs() <= 1).to(weight.dtype)


def _swish_sign(weight: Tensor) -> Tensor:
    return swish_slope(weight, _SWISH_BETA)


def _magnitude_aware(weight: Tensor) -> Tensor:
    return _clip(weight) * mean_magnitude(weight, 0)


_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "clip": _clip,
    "approx_sign": parabola_slope,
    "swish_sign": _swish_sign,
    "magnitude_aware": _magnitude_aware,
}

STE = tuple(_SLOPES)
"""Names of the estimators; the gradient with respect to the latent weight w is the incoming one times

``identity``         1 (Bengio et al., 2013)
``clip``             1 where |w| <= 1, else 0 (Hubara et al., 2016)
``approx_sign``      2 (1 - |w|) where |w| <= 1, else 0 (Bi-Real Net, Liu et al., 2018)
``swish_sign``       beta (2 - beta w tanh(beta w / 2)) / (1 + cosh(beta w)), beta = 5 (BNN+, 2018)
``magnitude_aware``  mean|w| of the output channel where |w| <= 1, else 0 (larq's MagnitudeAwareSign)
"""


def straight_through(weight: Tensor, quantized: Tensor | Quantized, ste: str = "identity") -> Tensor:
    """``quantized`` in the forward pass, the gradient of ``ste`` to ``weight`` in the backward pass.

    ``weight`` is the latent weight [out_features, ...]; ``quantized`` its quantised value, as a
    tensor of the same shape or as :class:`Quantized`, taken as a constant. The result has the dtype
    of ``weight`` and exactly the values of ``quantized`` in it.
    """
    check_choice("straight-through estimator", ste, STE)
    value = quantized.dequantize(weight.dtype) if isinstance(quantized, Quantized) else quantized
    if value.shape != weight.shape:
        raise ValueError(
            f"quantised values of shape {tuple(value.shape)} do not belong to a weight of shape "
            f"{tuple(weight.shape)}"
        )
    constant = weight.detach()
    # Adds an exact zero that carries the gradient.
    surrogate = weight - constant
    if ste != "identity":
        surrogate = surrogate * _SLOPES[ste](constant)
    return value.detach().to(weight.dtype) + surrogate
