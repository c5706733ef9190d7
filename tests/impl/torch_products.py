"""Which products torch itself computes: how many, and in what dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from impl.ops import conv, linear

_PRODUCTS = ("mm", "bmm", "addmm", "addmm_", "matmul", "convolution", "convolution_backward")

#: Operators of ours that multiply by torch: a mode does not see into them.
_OURS = {"linear_input_grad": linear._linear_input_grad, "conv_input_grad": conv._conv_input_grad}


class Products(TorchDispatchMode):
    """Notes torch's products inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        if func.namespace == "bitimpl" and name in _OURS:
            with self:
                return _OURS[name](*args, **(kwargs or {}))
        if name in _PRODUCTS:
            self.count += 1
            self.dtypes |= {a.dtype for a in args if isinstance(a, Tensor)}
        return func(*args, **(kwargs or {}))
