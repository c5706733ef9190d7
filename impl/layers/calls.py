"""How a layer is being called: autocast, transforms, and tensors that are more than memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_DERIVATIVES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def autocast(x: Tensor) -> Tensor:
    """x in autocast's dtype where autocast is on for its device, as ``F.linear`` would have it."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast does not know meta
        return x
    return x.to(torch.get_autocast_dtype(device))


def is_plain(x: Tensor) -> bool:
    """Whether ``x`` is memory and nothing else: no subclass, tracer or transform stands between
    the caller and the numbers. Those must see the operator, not a call into C."""
    return (
        (type(x) is Tensor or type(x) is nn.Parameter)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._is_tracing()
        and forward_ad._current_level < 0
        and not x.is_neg()
    )


def refuse_derivatives(x: Tensor, layers: str = "packed layers", remedy: str = "unpack() the layer") -> None:
    """RuntimeError where a derivative other than ``backward()``'s is asked for: torch would take
    the operator's forward derivative for zero, in silence, and refuse torch.func.grad obscurely."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):
        return
    transforms = torch._C._functorch.peek_interpreter_stack()
    if (transforms is not None and transforms.key() in _DERIVATIVES) or (
        forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
    ):
        raise RuntimeError(
            f"{layers} have gradients through backward() only, not through torch.func.grad, jvp or "
            f"forward-mode autograd: {remedy} to differentiate it that way"
        )
