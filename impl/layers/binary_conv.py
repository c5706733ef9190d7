"""Convolutions with binary weights."""

from __future__ import annotations

from typing import ClassVar

import torch

from impl.checks import SCALES, check_choice
from impl.geometry import Sizes
from impl.layers.conv import QuantizedConv
from impl.layers.rules import BinaryWeight


class BinaryConv(BinaryWeight, QuantizedConv):
    """Convolution with weights -1 and +1 times a scale: 1 bit per weight once packed.

    Sizes, strides and padding as of ``nn.Conv2d``; ``padding_value`` and the quantisation of the input
    as of :class:`~impl.layers.QuantizedConv`. The scale mean|w| of each output channel is the
    least-squares one (Rastegari et al., 2016). ``activation_bits``: None (float), 16, 8, 2 (ternary
    values) or 1 (signs; the scale mean|x| of each sample). ``ste`` names the gradient of the weight's
    sign (:data:`impl.quantizers.STE`). Use :class:`BinaryConv1d`, :class:`BinaryConv2d` or
    :class:`BinaryConv3d`; :meth:`from_conv` of this class picks the one that fits.
    """

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
        padding_value: float = 0,
        activation_bits: int | None = None,
        scale: str = "row",
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "clip",
        format: str = "binary",
        int8_training: bool = False,
    ) -> None:
        super().__init__(
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
            padding_value=padding_value,
            format=format,
            components=1,
            activation_bits=activation_bits,
            scale=check_choice("scale", scale, SCALES),
            scale_dtype=scale_dtype,
            ste=ste,
            int8_training=int8_training,
        )


class BinaryConv1d(BinaryConv):
    """:class:`BinaryConv` of x [batch, in_channels, length] or [in_channels, length]."""

    dims: ClassVar[int] = 1


class BinaryConv2d(BinaryConv):
    """:class:`BinaryConv` of x [batch, in_channels, height, width] or [in_channels, height, width]."""

    dims: ClassVar[int] = 2


class BinaryConv3d(BinaryConv):
    """:class:`BinaryConv` of x [batch, in_channels, depth, height, width], or without the batch."""

    dims: ClassVar[int] = 3


BinaryConv.by_dims = {1: BinaryConv1d, 2: BinaryConv2d, 3: BinaryConv3d}
