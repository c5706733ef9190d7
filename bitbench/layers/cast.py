"""Float layers of another type than their model's. Imports torch: worker side only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class CastLinear(nn.Module):
    """``linear`` inside a model of another float type: casts on the way in and out.

    x: ``[..., in_features]`` of any float type; the output has the type of x.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.in_features = linear.in_features
        self.out_features = linear.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The wrapped layer's weight, [out_features, in_features]."""
        return self.linear.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The wrapped layer's bias, [out_features], or None."""
        return self.linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``linear(x)``, computed in the weight's type."""
        out: torch.Tensor = self.linear(x.to(self.linear.weight.dtype))
        return out.to(x.dtype)


class CastConv2d(nn.Module):
    """``conv`` inside a model of another float type, as :class:`CastLinear`; x: ``[batch, in, h, w]``."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.kernel_size, self.stride, self.padding = conv.kernel_size, conv.stride, conv.padding

    @property
    def weight(self) -> torch.Tensor:
        """The wrapped layer's weight, [out_channels, in_channels, kernel, kernel]."""
        return self.conv.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The wrapped layer's bias, [out_channels], or None."""
        return self.conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``conv(x)``, computed in the weight's type."""
        out: torch.Tensor = self.conv(x.to(self.conv.weight.dtype))
        return out.to(x.dtype)


class CastEmbedding(nn.Module):
    """The embedding of a float32 model whose rows are stored in another float type.

    ``weight`` ``[vocab, hidden]`` is kept, not copied: a head of that type may share it.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = (
            weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows ``[*ids.shape, hidden]`` in float32."""
        return F.embedding(ids, self.weight).float()
