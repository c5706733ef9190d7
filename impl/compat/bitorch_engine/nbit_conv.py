"""The 4-bit convolution of bitorch_engine."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from impl.compat.bitorch_engine.nbit import QuantizedForms
from impl.layers.nbit import NBitConv2d

Size = int | tuple[int, ...]


class nBitConv2dBase(QuantizedForms, NBitConv2d):
    """Convolution of integer codes, weight [out_channels, in_channels / groups, *kernel], padded with 0.

    x and y are [batch, channels, height, width], or the same without batch; any number of channels, any
    kernel. See :class:`impl.compat.bitorch_engine.nbit.QuantizedForms` for the scales, and
    :class:`impl.layers.nbit.base.IntegerLayer` for the arithmetic: exact, the same in training and
    eval. New against the original: tuples of sizes, ``groups`` and ``bias``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        a_bit: int = 4,
        w_bit: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        *,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        self._check_widths(a_bit, w_bit)
        NBitConv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            device,
            dtype,
            weight_bits=w_bit,
            activation_bits=a_bit,
            activation_scale="learned",
            scale="tensor",
        )
        self._set_up(in_channels)

    @classmethod
    def from_conv(cls, conv: nn.Module, *, pack: bool = False, **options: Any) -> Self:
        """A layer with the weight, bias, device, dtype and mode of ``conv``, which is not changed.

        TypeError for other modules than ``nn.Conv2d``, ValueError for a ``padding_mode`` other than "zeros".
        """
        cls._check_conv(conv)
        assert isinstance(conv, nn.Conv2d)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            device="meta",
            dtype=conv.weight.dtype,
            groups=conv.groups,
            bias=conv.bias is not None,
            **options,
        )
        return layer._taken_from(conv, pack)

    def _over_inputs(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)


class Q4Conv2dCutlass(nBitConv2dBase):
    """:class:`nBitConv2dBase` with 4-bit weights and activations, on any device."""

    widths = (4,)
