"""Convolutions with ternary weights."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import nn

from impl.checks import check_choice
from impl.geometry import Sizes
from impl.layers.conv import QuantizedConv
from impl.layers.rules import TernaryWeight
from impl.quantizers import RULES


class TernaryConv(TernaryWeight, QuantizedConv):
    """Convolution with weights -1, 0 and +1 times a scale: 1.6 (``base3``) or 2 (``two_bit``) bits per
    weight once packed.

    Sizes, strides and padding as of ``nn.Conv2d``; ``padding_value`` and the quantisation of the input
    as of :class:`~impl.layers.QuantizedConv`. ``rule`` says which weights become zero
    (:data:`impl.quantizers.RULES`): ``absmean`` (b1.58) is cheap enough for every training step,
    ``optimal`` (exact least squares) suits trained weights and is what :meth:`from_conv` uses when it
    packs. ``scale``: "row" (an output channel), "tensor", or None for the rule's own (``absmean``: per
    tensor). ``activation_bits``: None (float), 16, 8, 2 (ternary values) or 1 (signs). Use
    :class:`TernaryConv1d`, :class:`TernaryConv2d` or :class:`TernaryConv3d`; :meth:`from_conv` of this
    class picks the one that fits.
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
        scale: str | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "identity",
        format: str = "base3",
        rule: str = "absmean",
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
            scale=scale,
            scale_dtype=scale_dtype,
            ste=ste,
            int8_training=int8_training,
        )
        self.rule = check_choice("rule", rule, RULES)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        *,
        pack: bool = True,
        rule: str | None = None,
        **options: Any,
    ) -> Self:
        """As :meth:`QuantizedConv.from_conv`; ``rule`` None is ``optimal`` when packing, else
        ``absmean``."""
        return super().from_conv(conv, pack=pack, rule=rule or cls._rule_for(pack), **options)


class TernaryConv1d(TernaryConv):
    """:class:`TernaryConv` of x [batch, in_channels, length] or [in_channels, length]."""

    dims: ClassVar[int] = 1


class TernaryConv2d(TernaryConv):
    """:class:`TernaryConv` of x [batch, in_channels, height, width] or [in_channels, height, width]."""

    dims: ClassVar[int] = 2


class TernaryConv3d(TernaryConv):
    """:class:`TernaryConv` of x [batch, in_channels, depth, height, width], or without the batch."""

    dims: ClassVar[int] = 3


TernaryConv.by_dims = {1: TernaryConv1d, 2: TernaryConv2d, 3: TernaryConv3d}
