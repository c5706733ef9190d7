"""torch's own convolution under a :class:`~impl.geometry.ConvGeometry`.

It pads by zeros only, alike on both sides of a dimension. Any other border is laid around the input
by :func:`pad`; :func:`convolve` takes what that returns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from impl.geometry import ConvGeometry

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def pad(x: Tensor, geometry: ConvGeometry, value: float | None = None) -> Tensor:
    """``x`` [batch, channels, *spatial] with the border that torch's convolution cannot add itself.

    It holds ``geometry.padding_value``, or ``value`` where given.
    """
    if not geometry.pads or _torch_pads(geometry):
        return x
    return F.pad(x, geometry.torch_padding(), value=geometry.padding_value if value is None else value)


def convolve(x: Tensor, weight: Tensor, geometry: ConvGeometry, bias: Tensor | None = None) -> Tensor:
    """The convolution of ``x``, as :func:`pad` returns it, with ``weight`` [out_channels,
    channels / groups, *kernel]."""
    y: Tensor = _CONVOLUTIONS[geometry.dims](
        x,
        weight,
        bias,
        geometry.stride,
        [before if _torch_pads(geometry) else 0 for before, _ in geometry.padding],
        geometry.dilation,
        geometry.groups,
    )
    return y


def input_gradient(grad: Tensor, weight: Tensor, geometry: ConvGeometry, size: list[int]) -> Tensor:
    """Gradient [batch, channels, *spatial] = ``size`` towards the input of a convolution, padding
    included in ``geometry``, from ``grad`` [batch, out_channels, *output]."""
    padded = [
        *size[:2],
        *(length + sum(sides) for length, sides in zip(size[2:], geometry.padding, strict=True)),
    ]
    none = [0] * geometry.dims
    out = torch.ops.aten.convolution_backward(
        grad,
        grad.new_empty(1).expand(padded),  # only its shape is read
        weight,
        None,
        geometry.stride,
        none,
        geometry.dilation,
        False,
        none,
        geometry.groups,
        (True, False, False),
    )[0]
    for dim, (before, _) in enumerate(geometry.padding, start=2):
        out = out.narrow(dim, before, size[dim])
    return out


def _torch_pads(geometry: ConvGeometry) -> bool:
    return geometry.padding_value == 0 and all(before == after for before, after in geometry.padding)
