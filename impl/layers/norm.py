"""RMS normalisation in front of quantised linear layers.

Ternary networks are trained with a norm before every linear layer (b1.58, Wang et al., JMLR 26(125),
2025): it bounds what a token's eight-bit activations are scaled by. Networks that were built with
fewer norms get the missing ones before they are fine-tuned: :func:`add_input_norms`.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import check_activations, check_positive
from impl.layers.base import QuantizedLinear
from impl.layers.fused import leave_fused_paths


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467, eq. 4).

    ``weight`` [features] starts at one, or is None with ``affine=False``. x [..., features] is
    float32, bfloat16 or float16 and y has its dtype, whatever that of ``weight``.
    """

    def __init__(
        self,
        features: int,
        eps: float = 1e-6,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = check_positive("features", features)
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps must be a number of at least 0, got {eps!r}")
        self.eps = eps
        self.weight: nn.Parameter | None
        if affine:
            self.weight = nn.Parameter(torch.ones(self.features, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        check_activations(x, self.features)
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, (self.features,), weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.features}, eps={self.eps}, affine={self.weight is not None}"


class NormedLinear(nn.Module):
    """A norm, then a quantised linear layer: ``linear(norm(x))``, bias and all.

    ``linear`` is any :class:`~impl.layers.QuantizedLinear`, in either form, and stays what it is:
    :func:`impl.pack`, :func:`impl.unpack` and annealing find it inside. ``norm`` is any module that
    keeps the shape; by default an :class:`RMSNorm` with ``eps`` (None: 1e-6), on the device and in the
    dtype of ``linear``. The state has the keys of both, below ``norm.`` and ``linear.``.

    Raises TypeError for another kind of ``linear``, ValueError where both ``norm`` and ``eps`` are given.
    """

    def __init__(
        self, linear: QuantizedLinear, norm: nn.Module | None = None, *, eps: float | None = None
    ) -> None:
        super().__init__()
        if not isinstance(linear, QuantizedLinear):
            raise TypeError(
                f"linear must be a quantised layer, got {type(linear).__name__}: "
                "convert it first, as with BitLinear.from_linear"
            )
        if norm is None:
            held = linear.codes if linear.weight is None else linear.weight
            assert held is not None
            eps = 1e-6 if eps is None else eps
            norm = RMSNorm(linear.in_features, eps, device=held.device, dtype=linear.weight_dtype)
        elif eps is not None:
            raise ValueError(f"eps={eps} is for the RMSNorm made where norm is None: drop one of them")
        self.norm = norm
        self.linear = linear
        self.train(linear.training)

    @property
    def in_features(self) -> int:
        """Size of the last dimension of the input."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """Size of the last dimension of the output."""
        return self.linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.linear(self.norm(x)))


def add_input_norms(module: nn.Module, *, eps: float = 1e-6) -> nn.Module:
    """Wrap every quantised linear layer in ``module`` into a :class:`NormedLinear`, in place.

    What fine-tuning a float network to ternary weights asks for (Steinmetz et al., arXiv 2505.08823).
    Layers that are wrapped already stay so, and a layer used in several places is wrapped once.
    Parameters are added: call this before the optimizer is made. Returns ``module``, or the wrapper
    where ``module`` is itself a quantised layer. Raises ValueError where there is none.
    """
    wrapped = {id(m.linear): m for m in module.modules() if isinstance(m, NormedLinear)}
    if isinstance(module, QuantizedLinear):
        return NormedLinear(module, eps=eps)
    for parent in list(module.modules()):
        if isinstance(parent, NormedLinear):
            continue
        for name, child in list(parent._modules.items()):  # named_children() drops second names
            if isinstance(child, QuantizedLinear):
                if id(child) not in wrapped:
                    wrapped[id(child)] = NormedLinear(child, eps=eps)
                setattr(parent, name, wrapped[id(child)])
    leave_fused_paths(module)
    if not wrapped:
        raise ValueError("the module holds no quantised linear layer to put a norm before: prepare() it")
    return module
