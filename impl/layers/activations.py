"""Quantising activation functions as modules, and the trainable ones of ReActNet.

The functions behind the modules are in :mod:`impl.quantizers.sign` and :mod:`impl.quantizers.dorefa`,
with forward values, gradients and sources.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from impl.checks import check_choice, check_positive
from impl.quantizers.dorefa import MODES, check_k_bit, dorefa
from impl.quantizers.sign import (
    approx_sign,
    check_clip,
    check_float,
    check_positive_number,
    check_threshold,
    magnitude_aware_sign,
    ste_heaviside,
    ste_sign,
    ste_tern,
    swish_sign,
)


def hard_tanh(x: Tensor) -> Tensor:
    """``x`` clipped to -1 .. 1; gradient 1 where |x| <= 1, else 0."""
    return check_float(x).clamp(-1, 1)


def leaky_tanh(x: Tensor, alpha: float = 0.2) -> Tensor:
    """``x`` where |x| <= 1, beyond that a line of slope ``alpha``; gradient 1 and ``alpha``."""
    inside = hard_tanh(x)
    return inside + alpha * (x - inside)


class SteSign(nn.Module):
    """:func:`~impl.quantizers.sign.ste_sign`: +-1, gradient inside ``clip_value`` (None: everywhere)."""

    def __init__(self, clip_value: float | None = 1.0) -> None:
        super().__init__()
        self.clip_value = check_clip(clip_value)

    def forward(self, x: Tensor) -> Tensor:
        return ste_sign(x, self.clip_value)

    def extra_repr(self) -> str:
        return f"clip_value={self.clip_value}"


class ApproxSign(nn.Module):
    """:func:`~impl.quantizers.sign.approx_sign`: +-1, gradient 2 (1 - |x|) inside 1."""

    def forward(self, x: Tensor) -> Tensor:
        return approx_sign(x)


class SwishSign(nn.Module):
    """:func:`~impl.quantizers.sign.swish_sign`: +-1, gradient of a swish of steepness ``beta``."""

    def __init__(self, beta: float = 5.0) -> None:
        super().__init__()
        self.beta = check_positive_number("beta", beta)

    def forward(self, x: Tensor) -> Tensor:
        return swish_sign(x, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


class SteHeaviside(nn.Module):
    """:func:`~impl.quantizers.sign.ste_heaviside`: 0 or 1, gradient inside ``clip_value``."""

    def __init__(self, clip_value: float | None = 1.0) -> None:
        super().__init__()
        self.clip_value = check_clip(clip_value)

    def forward(self, x: Tensor) -> Tensor:
        return ste_heaviside(x, self.clip_value)

    def extra_repr(self) -> str:
        return f"clip_value={self.clip_value}"


class MagnitudeAwareSign(nn.Module):
    """:func:`~impl.quantizers.sign.magnitude_aware_sign`: +-mean|x| of each channel."""

    def __init__(self, clip_value: float | None = 1.0, channel_dim: int = 0) -> None:
        super().__init__()
        self.clip_value = check_clip(clip_value)
        self.channel_dim = channel_dim

    def forward(self, x: Tensor) -> Tensor:
        return magnitude_aware_sign(x, self.clip_value, self.channel_dim)

    def extra_repr(self) -> str:
        return f"clip_value={self.clip_value}, channel_dim={self.channel_dim}"


class SteTern(nn.Module):
    """:func:`~impl.quantizers.sign.ste_tern`: -1, 0 or +1 by a threshold, gradient inside
    ``clip_value``."""

    def __init__(
        self,
        threshold_value: float = 0.05,
        ternary_weight_networks: bool = False,
        clip_value: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.threshold_value = check_threshold(threshold_value)
        self.ternary_weight_networks = ternary_weight_networks
        self.clip_value = check_clip(clip_value)

    def forward(self, x: Tensor) -> Tensor:
        return ste_tern(x, self.threshold_value, self.ternary_weight_networks, self.clip_value)

    def extra_repr(self) -> str:
        threshold = "0.7 mean|x|" if self.ternary_weight_networks else self.threshold_value
        return f"threshold={threshold}, clip_value={self.clip_value}"


class DoReFa(nn.Module):
    """:func:`~impl.quantizers.dorefa.dorefa`: 2^k_bit evenly spaced values, for ``activations`` in
    0 .. 1 or for ``weights`` in -1 .. 1."""

    def __init__(self, k_bit: int = 2, mode: str = "activations") -> None:
        super().__init__()
        self.k_bit = check_k_bit(k_bit)
        self.mode = check_choice("DoReFa mode", mode, MODES)

    def forward(self, x: Tensor) -> Tensor:
        return dorefa(x, self.k_bit, self.mode)

    def extra_repr(self) -> str:
        return f"k_bit={self.k_bit}, mode={self.mode}"


class PerChannel(nn.Module):
    """Base of modules with parameters [channels] along dimension ``dim`` of their input."""

    channels_argument: ClassVar[str] = "channels"
    """What the constructor calls the number of channels."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.channels = check_positive(self.channels_argument, channels)
        self.dim = dim

    def _along(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``parameter`` in the dtype of ``x``, shaped to broadcast along its channels."""
        there = -check_float(x).dim() <= self.dim < x.dim()
        if not there or x.shape[self.dim] != self.channels:
            reason = "" if there else f": dim={self.dim} is not a dimension of it"
            raise ValueError(
                f"the input must have {self.channels_argument} = {self.channels} channels in dimension "
                f"{self.dim}, got shape {tuple(x.shape)}{reason}"
            )
        return parameter.to(x.dtype).view(-1, *[1] * (x.dim() - self.dim % x.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.channels}, dim={self.dim}"


class RSign(PerChannel):
    """Sign with a trainable threshold per channel (ReActNet, Liu et al., arXiv 2003.03488).

    y = +1 where x + ``bias`` >= 0, else -1: the threshold is -bias. ``bias`` [channels] starts at zero
    and learns, as x does, by the gradient of :func:`~impl.quantizers.sign.approx_sign`. ``dim`` is the
    dimension of the channels: 1 for [batch, channels, ...], -1 for [..., channels]. x is float32,
    bfloat16 or float16, or float64; y has its dtype.
    """

    def __init__(
        self,
        channels: int,
        dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, dim)
        self.bias = nn.Parameter(torch.zeros(self.channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return approx_sign(x + self._along(self.bias, x))


class RPReLU(PerChannel):
    """PReLU between two trainable shifts per channel (ReActNet, arXiv 2003.03488).

    With u = x + ``input_bias``: y = u where u > 0, else ``weight`` u; plus ``output_bias``. The shifts
    start at zero, the slope ``weight`` at ``init``, all of them [channels]. ``dim`` as for
    :class:`RSign`; y has the dtype of x.
    """

    def __init__(
        self,
        channels: int,
        init: float = 0.25,
        dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, dim)
        self.input_bias = nn.Parameter(torch.zeros(self.channels, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.full((self.channels,), init, device=device, dtype=dtype))
        self.output_bias = nn.Parameter(torch.zeros(self.channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        shifted = x + self._along(self.input_bias, x)
        bent = torch.where(shifted > 0, shifted, self._along(self.weight, x) * shifted)
        return bent + self._along(self.output_bias, x)
