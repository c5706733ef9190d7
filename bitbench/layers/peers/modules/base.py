"""What the peers' modules share: any leading dimensions and float type in, bias behind."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class PeerLinear(nn.Module, ABC):
    """A linear layer that another project computes, for inference on the CPU.

    x: ``[..., in_features]`` of any float type; the output ``[..., out_features]`` has the type of x.
    Subclasses register their weights as buffers and compute float32 rows in :meth:`rows`.
    """

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        if bias is not None:
            check_tensor("bias", bias, torch.float32, (out_features,))
        self.register_buffer("bias", bias)

    @property
    @abstractmethod
    def kernel(self) -> str:
        """What serves the calls: project, operator, format and version, separated by ``/``."""

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """float32 ``[M, out]`` for contiguous float32 ``x [M, in]``, M >= 1, bias added."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"the last dimension of x is {x.shape[-1]}, not in_features={self.in_features}")
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(self).__name__} has no gradient: call it under torch.inference_mode() or detach x"
            )
        flat = x.detach().reshape(-1, self.in_features).float().contiguous()
        y = self.rows(flat) if flat.shape[0] else flat.new_empty(0, self.out_features)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self.kernel}"


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """ValueError unless ``tensor`` is contiguous and has this type and shape: its address goes to C."""
    if tensor.dtype != dtype or tuple(tensor.shape) != shape or not tensor.is_contiguous():
        strided = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}{strided}"
        )
