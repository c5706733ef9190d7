"""Argument checks shared by the package: each error names the value, the limit and the remedy."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable

import torch
from torch import Tensor

ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that the operators take and return."""

SCALES = ("row", "tensor")
"""What can share a scale of weights."""

MAX_COMPONENTS = 16
"""Most terms of a k-ternary weight (BITIMPL_MAX_COMPONENTS in impl.h)."""


def check_choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``allowed``; else a ValueError with the nearest name."""
    names = list(allowed)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(map(repr, names))}{hint}")


def check_positive(name: str, value: int) -> int:
    """``value`` as an int, if it is an integer (numpy's included) of at least 1."""
    return check_integer(name, value, 1)


def check_integer(name: str, value: int, least: int) -> int:
    """``value`` as an int, if it is an integer (numpy's included) of at least ``least``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def check_components(k: int) -> int:
    """The number of components ``k`` as an int, if it lies in 1 .. MAX_COMPONENTS."""
    number = check_positive("k", k)
    if number > MAX_COMPONENTS:
        raise ValueError(f"k must be at most {MAX_COMPONENTS}, got {number}: use fewer components")
    return number


def check_group_size(group_size: int | None) -> int | None:
    """Return ``group_size`` if it is None (no groups) or a positive multiple of 8."""
    if group_size is None:
        return None
    if isinstance(group_size, bool) or not isinstance(group_size, int):
        raise TypeError(f"group_size must be an integer or None, got {group_size!r}")
    if group_size < 8 or group_size % 8:
        raise ValueError(
            f"group_size must be a positive multiple of 8, got {group_size}: "
            "use 32, 64 or 128, or None for one scale per row"
        )
    return group_size


def group_count(cols: int, group_size: int | None) -> int:
    """Scale groups in a row of ``cols`` columns; the last group may be shorter."""
    return 1 if group_size is None else -(-cols // group_size)


def check_weight(weight: Tensor, *, check_finite: bool) -> Tensor:
    """Return ``weight`` detached, if it is a non-empty floating-point matrix [rows, cols].

    ``check_finite`` also refuses NaN and infinity. The values are not looked at while
    ``torch.compile`` traces, nor on the meta device.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor, got {type(weight).__name__}")
    if hasattr(weight, "full_tensor"):  # a DTensor, without importing torch.distributed
        raise TypeError(
            "weight is sharded over processes: quantise weight.full_tensor(), or load the gathered "
            "state_dict into a layer that is not sharded"
        )
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, got {weight.dtype}: convert it with weight.float()")
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"weight must be a non-empty matrix [rows, cols], got shape {tuple(weight.shape)}: "
            "flatten the trailing dimensions of other weights first"
        )
    weight = weight.detach()
    readable = not torch.compiler.is_compiling() and weight.device.type != "meta"
    # NaN passes through both extremes; isfinite() of it all would take weight-sized temporaries.
    if check_finite and readable and not bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all()):
        bad = weight.numel() - int(torch.isfinite(weight).sum())
        raise ValueError(
            f"weight holds {bad} NaN or infinite values of {weight.numel()}: "
            "repair the checkpoint or the training run before quantising"
        )
    return weight


def check_activations(x: Tensor, features: int | None = None) -> Tensor:
    """Return ``x`` if it is a float32, bfloat16 or float16 tensor [..., features]."""
    if not isinstance(x, Tensor):
        raise TypeError(f"the input must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in ACTIVATION_DTYPES:
        raise TypeError(f"the input must be float32, bfloat16 or float16, got {x.dtype}: convert it first")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"the input needs a last dimension of at least 1, got shape {tuple(x.shape)}")
    if features is not None and x.shape[-1] != features:
        raise ValueError(
            f"the last dimension of the input must be in_features = {features}, got {x.shape[-1]} "
            f"(shape {tuple(x.shape)})"
        )
    return x
