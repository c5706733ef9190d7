"""Sign, step and ternary functions with a gradient, for activations and for weights.

Each returns the discrete value in the forward pass and multiplies the incoming gradient by a slope
in the backward pass: the derivative of a smooth function that resembles the discrete one. The names
and defaults are larq's (Geiger and Team, JOSS 2020). :func:`impl.quantizers.straight_through` is for
values that were quantised elsewhere, with scales; these functions have none, but for
:func:`magnitude_aware_sign`.

All take floating-point tensors of any shape and stride and return their dtype. The signs take zero, of
either sign, as positive, in both passes. NaN and infinity come out as NaN, so that a network that
diverges is seen to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ste_sign(x: Tensor, clip_value: float | None = 1.0) -> Tensor:
    """+1 where x >= 0, else -1; slope 1 where |x| <= ``clip_value``, else 0 (None: 1 everywhere).

    The derivative of the identity clipped to that range (Courbariaux et al., arXiv 1602.02830, eq. 4).
    """
    constant = _constant(x)
    return with_slope(_sign(constant), x, _window(constant, clip_value))


def approx_sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1; slope 2 (1 - |x|) where |x| <= 1, else 0.

    The derivative of a piecewise parabola (Bi-Real Net, Liu et al., arXiv 1808.00278); the gradient
    of ReActNet's binary activation.
    """
    constant = _constant(x)
    return with_slope(_sign(constant), x, parabola_slope(constant))


def swish_sign(x: Tensor, beta: float = 5.0) -> Tensor:
    """+1 where x >= 0, else -1; slope beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)).

    The derivative of 2 s (1 + beta x (1 - s)) - 1 with s = sigmoid(beta x) (BNN+, Darabi et al., arXiv
    1812.11800). It is slightly negative beyond |x| = 2.4 / beta. Computed in float32 at least.
    """
    constant = _constant(x)
    return with_slope(_sign(constant), x, swish_slope(constant, check_positive_number("beta", beta)))


def ste_heaviside(x: Tensor, clip_value: float | None = 1.0) -> Tensor:
    """1 where x > 0, else 0; slope 1 where |x| <= ``clip_value``, else 0 (None: 1 everywhere)."""
    constant = _constant(x)
    return with_slope((constant > 0).to(x.dtype), x, _window(constant, clip_value))


def magnitude_aware_sign(x: Tensor, clip_value: float | None = 1.0, channel_dim: int = 0) -> Tensor:
    """s where x >= 0, else -s, with s = mean|x| of the channel; slope s inside ``clip_value``, else 0.

    The scale (float32 sums) is a constant to the gradient. ``channel_dim`` indexes the channels: 0 for
    weights [out_features, ...]; the mean is over all other dimensions. ``clip_value`` as for
    :func:`ste_sign`. Raises ValueError where ``x`` has fewer than two dimensions or no elements.
    """
    constant = _constant(x)
    if x.dim() < 2 or x.numel() == 0:
        raise ValueError(
            f"magnitude_aware_sign needs channels of at least one value, got shape {tuple(x.shape)}: "
            "use ste_sign for other tensors"
        )
    scale = mean_magnitude(constant, check_dim("channel_dim", channel_dim, x))
    window = _window(constant, clip_value)
    slope = scale.expand_as(constant) if window is None else window * scale
    return with_slope(_sign(constant) * scale, x, slope)


def ste_tern(
    x: Tensor,
    threshold_value: float = 0.05,
    ternary_weight_networks: bool = False,
    clip_value: float | None = 1.0,
) -> Tensor:
    """+1 where x > t, -1 where x < -t, else 0; slope 1 where |x| <= ``clip_value``, else 0.

    t is ``threshold_value``, or with ``ternary_weight_networks`` 0.7 mean|x| over the whole tensor (Li
    et al., arXiv 1605.04711). For a threshold per row and a least-squares scale, quantise with
    :func:`impl.quantizers.quantize_ternary` and the rule "twn". ``clip_value`` as for :func:`ste_sign`.
    """
    check_threshold(threshold_value)
    constant = _constant(x)
    if ternary_weight_networks:
        magnitude = constant.abs().to(_wide(x.dtype))
        kept = magnitude > 0.7 * magnitude.mean()
    else:
        kept = constant.abs() > threshold_value
    return with_slope(constant.sign() * kept, x, _window(constant, clip_value))


def with_slope(value: Tensor, x: Tensor, slope: Tensor | None) -> Tensor:
    """``value`` in the forward pass; the incoming gradient times ``slope`` (None: 1) for ``x``.

    ``value`` and ``slope`` are constants that broadcast to the shape of ``x``. Where ``x`` is NaN or
    infinite the result is NaN.
    """
    # An exact zero that carries the gradient: unlike a custom autograd function it needs no rules of
    # its own for vmap, forward-mode derivatives and compilation.
    zero = x - x.detach()
    return value.to(x.dtype) + (zero if slope is None else zero * slope)


def parabola_slope(x: Tensor) -> Tensor:
    """2 (1 - |x|) where |x| <= 1, else 0."""
    return 2 * (1 - x.abs()).clamp_min(0)


def swish_slope(x: Tensor, beta: float) -> Tensor:
    """beta (2 - beta x tanh(beta x / 2)) / (1 + cosh(beta x)), computed in float32 at least."""
    # The cosine leaves bfloat16's precision and float16's range early. Beyond 700 the slope is zero in
    # every dtype, and infinity over infinity would not be.
    scaled = (beta * x.to(_wide(x.dtype))).clamp(-700, 700)
    return (beta * (2 - scaled * torch.tanh(scaled / 2)) / (1 + torch.cosh(scaled))).to(x.dtype)


def mean_magnitude(x: Tensor, channel: int) -> Tensor:
    """mean|x| of each index of dimension ``channel``, of size 1 along the others; float32 sums at least."""
    others = [d for d in range(x.dim()) if d != channel]
    return x.abs().to(_wide(x.dtype)).mean(dim=others, keepdim=True).to(x.dtype)


def check_dim(name: str, dim: int, x: Tensor) -> int:
    """``dim`` counted from the front, if ``x`` has it."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{name}={dim} is not a dimension of a tensor of shape {tuple(x.shape)}")
    return dim % x.dim()


def check_float(x: Tensor) -> Tensor:
    """``x`` if it is a real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"the input must be floating point, got {x.dtype}: convert it with x.float()")
    return x


def check_clip(clip_value: float | None) -> float | None:
    """``clip_value`` if it is a positive number or None."""
    return None if clip_value is None else check_positive_number("clip_value", clip_value)


def check_threshold(threshold_value: float) -> float:
    """``threshold_value`` if it is a number of at least 0."""
    if not (math.isfinite(threshold_value) and threshold_value >= 0):
        raise ValueError(f"threshold_value must be a number of at least 0, got {threshold_value!r}")
    return threshold_value


def _constant(x: Tensor) -> Tensor:
    return check_float(x).detach()


def _sign(x: Tensor) -> Tensor:
    # Not torch.sign, which makes a third value of zero.
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def _window(x: Tensor, clip_value: float | None) -> Tensor | None:
    limit = check_clip(clip_value)
    return None if limit is None else (x.abs() <= limit).to(x.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def check_positive_number(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return value
