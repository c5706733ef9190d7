"""The functional interface of krisaujla/BitLinear: its names and its rules.

Weights are float tensors that hold -1, 0 and +1; the rule is the row's largest magnitude as scale and
half of it as threshold. It keeps little of normally distributed weights (relative error 0.84, where
``impl.quantizers.quantize_ternary`` reaches 0.44): use it for compatibility, not for quality.
"""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import check_components, check_weight
from impl.quantizers import fake_quantize_activations, quantize_activations

SCALE_FLOOR = 1e-5


def absmax_scale(tensor: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Largest magnitude, at least 1e-5: of the whole tensor, or along ``dim`` (kept with size 1)."""
    if tensor.numel() == 0:
        raise ValueError(f"an empty tensor has no scale (shape {tuple(tensor.shape)})")
    magnitude = tensor.abs()
    largest = magnitude.amax() if dim is None else magnitude.amax(dim=dim, keepdim=True)
    return largest.clamp_min(SCALE_FLOOR)


def ternary_quantize(tensor: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ternary values of ``tensor`` (same shape and dtype) and the scale that they belong to.

    +1 above scale / 2, -1 below -scale / 2, else 0. ``scale`` broadcasts against ``tensor``; None
    takes the largest magnitude of the whole tensor.
    """
    if scale is None:
        scale = absmax_scale(tensor)
    return tensor.sign() * (tensor.abs() > scale / 2), scale


def weight_to_ternary(W: Tensor, per_channel: bool = True) -> tuple[Tensor, Tensor]:
    """Ternary values [out, in] of ``W`` and scales: [out], or a scalar with ``per_channel=False``."""
    weight = check_weight(W, check_finite=True)
    ternary, scale = ternary_quantize(weight, absmax_scale(weight, dim=1 if per_channel else None))
    return ternary, scale.squeeze(-1) if per_channel else scale


def greedy_ternary_decomposition(W: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``k`` ternary components [k, out, in] of ``W`` and their scales [k, out], each component
    ternarising, by the rule of :func:`weight_to_ternary`, what the ones before leave over."""
    check_components(k)
    residual = check_weight(W, check_finite=True)
    components, scales = [], []
    for _ in range(k):
        ternary, gamma = weight_to_ternary(residual)
        residual = residual - gamma.unsqueeze(-1) * ternary
        components.append(ternary)
        scales.append(gamma)
    return torch.stack(components), torch.stack(scales)


def bitlinear_python(x: Tensor, W_ternary: Tensor, gamma: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W_ternary^T * gamma + bias. x [..., in], W_ternary [out, in], gamma [out] or a scalar."""
    _check_features(x, W_ternary)
    y = torch.nn.functional.linear(x, W_ternary.to(x.dtype)) * gamma.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)


def multi_ternary_linear_python(
    x: Tensor, W_ternary: Tensor, gammas: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Sum of :func:`bitlinear_python` over components: W_ternary [k, out, in], gammas [k, out]."""
    if W_ternary.dim() != 3 or gammas.shape != W_ternary.shape[:2] or W_ternary.shape[0] == 0:
        raise ValueError(
            "W_ternary must be [k, out, in] with k >= 1 and gammas [k, out], got "
            f"{tuple(W_ternary.shape)} and {tuple(gammas.shape)}"
        )
    y = bitlinear_python(x, W_ternary[0], gammas[0])
    for ternary, gamma in zip(W_ternary[1:], gammas[1:], strict=True):
        y = y + bitlinear_python(x, ternary, gamma)
    return y if bias is None else y + bias.to(x.dtype)


def quantize_activations_absmax(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Integers and float32 scale [..., 1] of each row of ``x``; undone by :func:`dequantize_scale`."""
    return quantize_activations(x, bits)


def dequantize_scale(x_quantized: Tensor, scale: Tensor) -> Tensor:
    """Float values of quantised ones: x_quantized * scale, in the dtype of ``scale``."""
    return x_quantized.to(scale.dtype) * scale


def activation_quant(x: Tensor, bits: int = 8) -> Tensor:
    """``x`` rounded to ``bits`` per row, in its own dtype, with a straight-through gradient."""
    return fake_quantize_activations(x, bits)


def _check_features(x: Tensor, W_ternary: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"the input must be floating point, got {x.dtype}: convert it first")
    if W_ternary.dim() != 2:
        raise ValueError(f"W_ternary must be [out, in], got shape {tuple(W_ternary.shape)}")
    if x.dim() == 0 or x.shape[-1] != W_ternary.shape[1]:
        raise ValueError(
            f"the last dimension of the input must be in_features = {W_ternary.shape[1]}, "
            f"got shape {tuple(x.shape)}"
        )
