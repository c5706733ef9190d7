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

from impl.checks import check_integer, check_positive

#: Values that the border may hold.
PADDING_VALUES = (-1.0, 0.0, 1.0)

#: What may be given for each spatial dimension alike, or as one number a dimension.
Sizes = int | tuple[int, ...] | list[int]


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
        for name in ("kernel", "stride", "padding", "dilation"):
            value = getattr(self, name)
            if not isinstance(value, tuple):  # a list could change under whoever holds the geometry
                raise TypeError(f"{name} must be a tuple, got {value!r}")
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
        if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in self.padding):
            raise TypeError(f"padding must be a tuple of pairs (before, after), got {self.padding}")
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


def conv_geometry(
    channels: tuple[int, int],
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    *,
    dims: int,
    padding_value: float = 0.0,
) -> ConvGeometry:
    """The geometry that the arguments of ``nn.ConvNd`` describe, for (in, out) ``channels``.

    ``padding`` may be "same" or "valid". TypeError or ValueError naming the argument that fits no
    convolution of ``dims`` spatial dimensions.
    """
    groups = check_positive("groups", groups)
    for name, count in zip(("in_channels", "out_channels"), channels, strict=True):
        if count % groups:
            raise ValueError(f"{name} = {count} must be a multiple of groups = {groups}")
    kernel = _sizes("kernel_size", kernel_size, dims)
    steps, reach = _sizes("stride", stride, dims), _sizes("dilation", dilation, dims)
    return ConvGeometry(kernel, steps, _padding(padding, kernel, steps, reach), reach, groups, padding_value)


def check_padding_mode(mode: str) -> None:
    """ValueError for a ``padding_mode`` of ``nn.ConvNd`` that a :class:`ConvGeometry` does not have."""
    if mode != "zeros":
        raise ValueError(
            f"padding_mode={mode!r} is not supported: padding adds one value everywhere. Pad the input with "
            "torch.nn.functional.pad and set padding=0, padding_mode='zeros'"
        )


def to_matrix(weight: Tensor) -> Tensor:
    """[out_channels, channels, *kernel] as the matrix [out_channels, taps * channels], contiguous."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def from_matrix(matrix: Tensor, geometry: ConvGeometry) -> Tensor:
    """The inverse of :func:`to_matrix`, for any leading dimensions: [..., out_channels, taps * channels]
    as [..., out_channels, channels, *kernel], contiguous."""
    channels = matrix.shape[-1] // geometry.taps
    spread = matrix.unflatten(-1, (*geometry.kernel, channels))
    return spread.movedim(-1, matrix.dim() - 1).contiguous()


def _sizes(name: str, value: Sizes, dims: int, least: int = 1) -> tuple[int, ...]:
    """``value`` as one int a dimension; TypeError or ValueError naming what it cannot be."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{name} must be an int or {dims} of them, got {value!r}")
    return tuple(check_integer(name, number, least) for number in values)


def _padding(
    padding: Sizes | str, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Positions before and after each dimension, as ``nn.Conv2d`` places them."""
    if not isinstance(padding, str):
        return tuple((side, side) for side in _sizes("padding", padding, len(kernel), least=0))
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding != "same":
        raise ValueError(f"unknown padding {padding!r}: use 'same', 'valid' or a number of positions")
    if any(step != 1 for step in stride):
        raise ValueError(f"padding='same' needs stride 1, got {stride}: give the padding as numbers")
    totals = [reach * (size - 1) for reach, size in zip(dilation, kernel, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)
