"""Where a convolution's kernel falls on its input: sizes, strides, padding, dilation, groups.

Plain numbers for 1, 2 or 3 spatial dimensions, shared by layers, operators, references and the native
call. A weight [out_channels, in_channels / groups, *kernel] is packed as the matrix
[out_channels, taps * in_channels / groups]: kernel positions outermost and in row-major order,
channels innermost, so that the channels one tap reads lie together (:func:`to_matrix`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from impl.checks import check_positive

#: Values that the border may hold.
PADDING_VALUES = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class ConvGeometry:
    """Shape of a convolution but for its input and output channels; one entry a spatial dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Positions added (before, after) each dimension."""
    dilation: tuple[int, ...]
    groups: int = 1
    padding_value: float = 0.0
    """What added positions hold: -1, 0 or +1. With signs and ternary values they hold just that (0: such
    positions count for nothing); else a value of the input, quantised with the rest of its sample."""

    def __post_init__(self) -> None:
        dims = len(self.kernel)
        if dims not in (1, 2, 3):
            raise ValueError(f"a convolution has 1 to 3 spatial dimensions, got kernel {self.kernel}")
        for name in ("stride", "padding", "dilation"):
            if len(getattr(self, name)) != dims:
                raise ValueError(
                    f"{name} {getattr(self, name)} does not have the {dims} dimensions of the kernel"
                )
        for name in ("kernel", "stride", "dilation"):
            for value in getattr(self, name):
                check_positive(name, value)
        check_positive("groups", self.groups)
        if any(side < 0 for pair in self.padding for side in pair):
            raise ValueError(f"padding must not be negative, got {self.padding}")
        if self.padding_value not in PADDING_VALUES:
            raise ValueError(f"padding_value must be -1, 0 or +1, got {self.padding_value!r}")

    @property
    def dims(self) -> int:
        """Spatial dimensions: 1, 2 or 3."""
        return len(self.kernel)

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    @property
    def pads(self) -> bool:
        """Whether any position is added."""
        return any(side > 0 for pair in self.padding for side in pair)

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the output for an input of spatial ``size``.

        ValueError where the padded input is smaller than the dilated kernel.
        """
        if len(size) != self.dims:
            raise ValueError(
                f"the input has {len(size)} spatial dimensions, the kernel {self.kernel} {self.dims}"
            )
        sizes = []
        for axis, length in enumerate(size):
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            padded = length + sum(self.padding[axis])
            if padded < reach:
                raise ValueError(
                    f"the padded input is {padded} long in spatial dimension {axis}, the dilated kernel "
                    f"{reach}: use a larger input, more padding or a smaller kernel"
                )
            sizes.append((padded - reach) // self.stride[axis] + 1)
        return tuple(sizes)

    def torch_padding(self) -> list[int]:
        """The argument of ``torch.nn.functional.pad``: last dimension first, before and after."""
        return [side for pair in reversed(self.padding) for side in pair]


def to_matrix(weight: Tensor) -> Tensor:
    """[out_channels, channels, *kernel] as the matrix [out_channels, taps * channels], contiguous."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def from_matrix(matrix: Tensor, geometry: ConvGeometry) -> Tensor:
    """The inverse of :func:`to_matrix`, for any leading dimensions: [..., out_channels, taps * channels]
    as [..., out_channels, channels, *kernel], contiguous."""
    channels = matrix.shape[-1] // geometry.taps
    spread = matrix.unflatten(-1, (*geometry.kernel, channels))
    return spread.movedim(-1, matrix.dim() - 1).contiguous()
