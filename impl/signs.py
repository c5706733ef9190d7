"""Signs between two binary layers: a bit each, as the kernels hand them on.

What stands between the layers, ``sign(batch_norm(y))`` say, is +1 in one interval of y for each channel
(:class:`Thresholds`), so that a kernel can write the bit at once ("Signs from operator to operator" in
``csrc/include/impl.h``). :mod:`impl.thresholds` finds the intervals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from impl.packing.layout import pack_bits, unpack_sign_rows


class Signs(NamedTuple):
    """Signs of [..., channels] values, or of [batch, channels, *spatial] ones with the channels last.

    ``bits``: uint8 [..., ceil(channels / 8)] or [batch, *spatial, ceil(channels / 8)]; bit c % 8, least
    significant first, of byte c // 8 is 1 for +1, and unused bits are 0. ``scale``: float32 [...], or
    [batch] of images: 1, or NaN where one of the values was not finite and its sign is not a number.
    """

    bits: Tensor
    scale: Tensor
    channels: int

    def check(self, image: bool) -> None:
        """TypeError or ValueError where the tensors are not what the class says."""
        bits, scale = self.bits, self.scale
        if bits.dtype != torch.uint8 or scale.dtype != torch.float32:
            raise TypeError(f"signs are uint8 bits and a float32 scale, got {bits.dtype} and {scale.dtype}")
        if bits.dim() == 0 or bits.shape[-1] != -(-self.channels // 8):
            raise ValueError(
                f"the bits of {self.channels} channels take {-(-self.channels // 8)} bytes, got shape "
                f"{tuple(bits.shape)}"
            )
        places = bits.shape[:1] if image else bits.shape[:-1]
        if scale.shape != places or scale.device != bits.device:
            raise ValueError(
                f"signs in bits {tuple(bits.shape)} on {bits.device} have a scale {tuple(places)} there, got "
                f"{tuple(scale.shape)} on {scale.device}"
            )

    def to_float(self, dtype: torch.dtype, image: bool) -> Tensor:
        """The +-1 in ``dtype``, channels where torch has them; NaN where the scale is."""
        values = unpack_sign_rows(self.bits, self.channels).to(dtype)
        if not image:
            return values * self.scale.to(dtype).unsqueeze(-1)
        scale = self.scale.to(dtype).view(-1, *[1] * (values.dim() - 1))
        return (values * scale).movedim(-1, 1).contiguous()


class Thresholds(NamedTuple):
    """Where a channel's sign is +1: ``lower`` <= y <= ``upper``; a number: ``least`` <= y <= ``most``.

    All float32 [channels], for y in float32 before it is rounded to the dtype of the layer.
    """

    lower: Tensor
    upper: Tensor
    least: Tensor
    most: Tensor

    def signs_of(self, y: Tensor, image: bool) -> Signs:
        """The signs of ``y`` [..., channels], or [batch, channels, *spatial] of an ``image``."""
        values = y.movedim(1, -1) if image else y
        values = values.to(torch.float32)
        plus = (values >= self.lower) & (values <= self.upper)
        numbers = (values >= self.least) & (values <= self.most)
        numbers = numbers.flatten(1).all(1) if image else numbers.all(-1)
        channels = values.shape[-1]
        scale = torch.where(numbers, 1.0, torch.nan).to(torch.float32)
        return Signs(pack_bits(plus), scale, channels)
