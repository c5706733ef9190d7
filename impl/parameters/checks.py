"""Argument checks of the parameter classes."""

from __future__ import annotations

import torch
from torch import Tensor


def check_data(data: Tensor | None, dimensions: tuple[int, ...]) -> Tensor:
    """``data`` detached, or empty data of the first of ``dimensions`` for None."""
    if data is None:
        return torch.empty((0,) * dimensions[0])
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a torch.Tensor, got {type(data).__name__}")
    return data.detach()


def check_dimensions(owner: str, shape: torch.Size, dimensions: tuple[int, ...]) -> None:
    """ValueError where ``shape`` has a number of dimensions that the class ``owner`` does not take."""
    if len(shape) not in dimensions:
        allowed = " or ".join(str(number) for number in sorted(dimensions))
        raise ValueError(f"{owner} takes data of {allowed} dimensions, got shape {tuple(shape)}")


def outside_dtype(dtype: torch.dtype | None, data: Tensor) -> torch.dtype:
    """The dtype of the parameter outside: ``dtype``, or that of floating-point ``data``, or float32."""
    if dtype is None:
        return data.dtype if data.is_floating_point() else torch.float32
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}: the integers stay inside")
    return dtype


def check_scales(scales: Tensor | None, codes: Tensor, scope: str) -> Tensor:
    """Own float32 copy [rows] or [1] of ``scales`` for the matrix ``codes``; ones for None."""
    rows = codes.shape[0]
    if scales is None:
        count = 1 if scope == "tensor" else rows
        return torch.ones(count, dtype=torch.float32, device=codes.device)
    if not isinstance(scales, Tensor) or not scales.is_floating_point():
        got = scales.dtype if isinstance(scales, Tensor) else type(scales).__name__
        raise TypeError(f"scales must be a floating-point tensor, got {got}")
    if scales.numel() not in (1, rows):
        raise ValueError(
            f"scales must have 1 element or one for each of {rows} rows, got shape {tuple(scales.shape)}"
        )
    flat = scales.detach().to(codes.device, torch.float32, copy=True).flatten()
    if not flat.is_meta and not bool(((flat >= 0) & flat.isfinite()).all()):
        raise ValueError("scales must be finite and not negative: a sign belongs into the codes")
    return flat


def check_gradient(owner: str, gradient: Tensor) -> Tensor:
    """``gradient`` if it is finite."""
    if gradient.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(gradient.detach()))).all()):
        bad = gradient.numel() - int(torch.isfinite(gradient).sum())
        raise ValueError(
            f"the gradient of a {owner} holds {bad} NaN or infinite values of {gradient.numel()}: skip this "
            "step, as torch.amp.GradScaler does, and look for them with torch.autograd.detect_anomaly()"
        )
    return gradient
