"""Convolutions whose weight is a sum of ternary components."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import nn

from impl.checks import check_choice, check_components
from impl.geometry import Sizes
from impl.layers.conv import QuantizedConv
from impl.layers.rules import MultiTernaryWeight
from impl.quantizers import RULES


class MultiTernaryConv(MultiTernaryWeight, QuantizedConv):
    """Convolution whose weight is the sum of ``k`` ternary ones, each with a scale an output channel.

    Sizes, strides and padding as of ``nn.Conv2d``; ``padding_value`` and the quantisation of the input
    as of :class:`~impl.layers.QuantizedConv`. ``k``, ``rule`` and ``refit`` as of
    :class:`~impl.layers.MultiTernaryLinear`: greedy in training form, fitted jointly when packing.
    ``activation_bits``: None (float), 16, 8, 2 (ternary values) or 1 (signs). Use
    :class:`MultiTernaryConv1d`, :class:`MultiTernaryConv2d` or :class:`MultiTernaryConv3d`;
    :meth:`from_conv` of this class picks the one that fits.
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
        k: int = 2,
        padding_value: float = 0,
        activation_bits: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "identity",
        format: str = "base3",
        rule: str = "twn",
        refit: bool = True,
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
            components=check_components(k),
            activation_bits=activation_bits,
            scale="row",
            scale_dtype=scale_dtype,
            ste=ste,
            int8_training=int8_training,
        )
        self.rule = check_choice("rule", rule, RULES)
        self.refit = refit

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        *,
        k: int = 2,
        pack: bool = True,
        rule: str | None = None,
        **options: Any,
    ) -> Self:
        """As :meth:`QuantizedConv.from_conv`; ``rule`` None is ``optimal`` when packing, else ``twn``."""
        return super().from_conv(conv, pack=pack, k=k, rule=rule or cls._rule_for(pack), **options)


class MultiTernaryConv1d(MultiTernaryConv):
    """:class:`MultiTernaryConv` of x [batch, in_channels, length] or [in_channels, length]."""

    dims: ClassVar[int] = 1


class MultiTernaryConv2d(MultiTernaryConv):
    """:class:`MultiTernaryConv` of x [batch, in_channels, height, width], or without the batch."""

    dims: ClassVar[int] = 2


class MultiTernaryConv3d(MultiTernaryConv):
    """:class:`MultiTernaryConv` of x [batch, in_channels, depth, height, width], or without the batch."""

    dims: ClassVar[int] = 3


MultiTernaryConv.by_dims = {1: MultiTernaryConv1d, 2: MultiTernaryConv2d, 3: MultiTernaryConv3d}
