"""Convolutions with integer weights and activations of 2 to 8 bits."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, check_positive
from impl.layers.nbit.base import IntegerLayer
from impl.layers.nbit.integers import without_autocast

_PRODUCTS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class NBitConv(IntegerLayer):
    """Base of the convolutions: arguments of ``nn.ConvNd`` (padding with zeros), and the widths.

    x [batch, in_channels, *spatial] or [in_channels, *spatial]; weight [out_channels,
    in_channels / groups, *kernel], a scale for each output channel; a dynamic activation scale is
    that of a sample, over channels and space. Everything else as
    :class:`impl.layers.nbit.base.IntegerLayer` says.
    """

    dims: ClassVar[int]
    conv: ClassVar[type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
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
        self.groups = check_positive("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.kernel_size = self._numbers("kernel_size", kernel_size, 1)
        self.stride = self._numbers("stride", stride, 1)
        self.dilation = self._numbers("dilation", dilation, 1)
        self.padding: tuple[int, ...] | str
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f"padding must be numbers, 'same' or 'valid', got {padding!r}")
            if padding == "same" and max(self.stride) > 1:
                raise ValueError(f"padding='same' needs stride 1, got {self.stride}")
            self.padding = padding
        else:
            self.padding = self._numbers("padding", padding, 0)
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
            conv.weight.device,
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
        if conv.padding_mode != "zeros":
            raise ValueError(
                f"padding_mode={conv.padding_mode!r} cannot be kept, only 'zeros': pad in front of the layer"
            )

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

    def _numbers(self, name: str, value: int | tuple[int, ...], least: int) -> tuple[int, ...]:
        """``value`` as one integer of at least ``least`` for each dimension."""
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.dims
        if len(values) != self.dims:
            raise ValueError(f"{name} must be an integer or {self.dims} of them, got {value!r}")
        if any(isinstance(number, bool) or not isinstance(number, int) for number in values):
            raise TypeError(f"{name} must be integers, got {value!r}")
        if min(values) < least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")
        return values

    def _check_input(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"the input must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in ACTIVATION_DTYPES:
            raise TypeError(
                f"the input must be float32, bfloat16 or float16, got {x.dtype}: convert it first"
            )
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"the input must be [batch, {self.in_channels} channels] and {self.dims} spatial "
                f"dimensions, or the same without batch, got shape {tuple(x.shape)}"
            )
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if self.padding == "same":
            added = [length - 1 for length in reach]
        else:
            added = [0] * self.dims if isinstance(self.padding, str) else [2 * p for p in self.padding]
        for axis, (size, more, needed) in enumerate(zip(x.shape[2:], added, reach, strict=True)):
            if size == 0 or size + more < needed:
                raise ValueError(
                    f"the padded input is {size + more} long in spatial dimension {axis}, the dilated kernel "
                    f"{needed}: use a larger input, more padding or a smaller kernel"
                )

    def _sample_dims(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(1, x.dim()))

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolve = _PRODUCTS[self.dims]
        y: Tensor = convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return y

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
