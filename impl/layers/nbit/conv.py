"""Convolutions with integer weights and activations of 2 to 8 bits."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.checks import check_positive
from impl.convolution import convolve, pad
from impl.functional.conv_reference import check_image
from impl.geometry import Sizes, check_padding_mode, conv_geometry
from impl.layers.conv_attributes import ConvAttributes
from impl.layers.nbit.base import IntegerLayer
from impl.ops.library import without_autocast


class NBitConv(ConvAttributes, IntegerLayer):
    """Base of the convolutions: arguments of ``nn.ConvNd`` (padding with zeros), and the widths.

    x [batch, in_channels, *spatial] or [in_channels, *spatial]; weight [out_channels,
    in_channels / groups, *kernel], a scale for each output channel; a dynamic activation scale is
    that of a sample, over channels and space. ``geometry`` holds the arguments as an
    :class:`impl.geometry.ConvGeometry`; it and what is read from it cannot be set. Everything else as
    :class:`impl.layers.nbit.base.IntegerLayer` says.
    """

    dims: ClassVar[int]
    conv: ClassVar[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_bits: int = 4,
        activation_bits: int | None = 8,
        activation_scale: str = "dynamic",
        scale: str = "row",
    ) -> None:
        self.in_channels = check_positive("in_channels", in_channels)
        self.out_channels = check_positive("out_channels", out_channels)
        geometry = conv_geometry(
            (self.in_channels, self.out_channels),
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            dims=self.dims,
        )
        self._take_geometry(geometry, padding)
        super().__init__(
            (self.out_channels, self.in_channels // self.groups, *self.kernel_size),
            bias,
            device,
            dtype,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            activation_scale=activation_scale,
            scale=scale,
        )

    @classmethod
    def from_conv(cls, conv: nn.Module, *, pack: bool = True, **options: Any) -> Self:
        """The layer that replaces a trained convolution: weight, bias, device, dtype and mode are kept.

        TypeError for other modules, ValueError for a ``padding_mode`` other than "zeros".
        """
        cls._check_conv(conv)
        assert isinstance(conv, cls.conv)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            "meta",  # nothing is drawn: the numbers come from `conv`
            conv.weight.dtype,
            **options,
        )
        return layer._taken_from(conv, pack)

    @classmethod
    def _check_conv(cls, conv: nn.Module) -> None:
        if not isinstance(conv, cls.conv):
            raise TypeError(
                f"{cls.__name__}.from_conv takes an nn.{cls.conv.__name__}, got {type(conv).__name__}"
            )
        check_padding_mode(conv.padding_mode)

    def extra_repr(self) -> str:
        parts = (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )
        return f"{parts}, padding={self.padding!r}, groups={self.groups}, {super().extra_repr()}"

    def forward(self, x: Tensor) -> Tensor:
        """y [batch, out_channels, *output], or without batch, as :meth:`IntegerLayer.forward` says."""
        if isinstance(x, Tensor) and x.dim() == self.dims + 1:
            return super().forward(x.unsqueeze(0)).squeeze(0)
        return super().forward(x)

    def _check_input(self, x: Tensor) -> None:
        check_image(x, self.in_channels, self.geometry)

    def _sample_dims(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(1, x.dim()))

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(pad(x, self.geometry), weight, self.geometry, bias)

    def _integer_product(self, codes: Tensor, weight: Tensor) -> Tensor:
        weight = weight.reshape(self._weight_shape)
        with without_autocast(codes.device):
            y = self._product(codes.to(torch.float64), weight.to(torch.float64), None)
        # A backend may convolve by transforms, which are off by far less than half a code.
        return y.round().to(torch.float32)

    def _over_outputs(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * self.dims)


class NBitConv1d(NBitConv):
    """Convolution over [batch, channels, length]; see :class:`NBitConv`."""

    dims, conv = 1, nn.Conv1d


class NBitConv2d(NBitConv):
    """Convolution over [batch, channels, height, width]; see :class:`NBitConv`."""

    dims, conv = 2, nn.Conv2d


class NBitConv3d(NBitConv):
    """Convolution over [batch, channels, depth, height, width]; see :class:`NBitConv`."""

    dims, conv = 3, nn.Conv3d
