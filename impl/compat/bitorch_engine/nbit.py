"""Linear layers of bitorch_engine with 4 and 8 bits, and its product of two 4-bit activations."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.compat.bitorch_engine.clipped_matmul import ClippedMatMul
from impl.layers.nbit import NBitLinear
from impl.layers.nbit.activations import LearnedStep, quantize_learned
from impl.layers.nbit.base import IntegerLayer
from impl.layers.nbit.integers import (
    ExactValue,
    bytes_per_row,
    exact_matmul,
    largest_code,
    mean_scales,
    pack_codes,
)

MEAN_DIVISORS = {4: 5.6345, 8: 11.269}
"""A scale starts at 2 mean|x| over this, by the width of the codes."""


class QuantizedForms(IntegerLayer):
    """The names and rules of bitorch_engine on an :class:`impl.layers.nbit.base.IntegerLayer`.

    ``scale_w`` is max(2 mean|w| / 5.6345, ``eps``) for 4 bits and 2 mean|w| / 11.269 for 8, of the whole
    weight, and codes go down to -2^(bits-1). It follows the weight until :meth:`generate_quantized_weight`
    with ``qweight_only=True`` leaves the codes alone. ``scale_a`` is learned by LSQ; the first batch in
    training mode sets it by the same rule. ``bias_a`` [in_channels] shifts the input, and is learned.

    ``qweight`` is uint8 [out_channels, bytes]: two 4-bit codes a byte, the first in the low nibble.
    While ``weight`` is there, it is what forward uses and ``state_dict`` holds. ``device`` and ``dtype``
    are those the layer has now.
    """

    eps: ClassVar[float] = 1e-5
    widths: ClassVar[tuple[int, ...]] = (4, 8)
    bias_a: nn.Parameter

    def _set_up(self, channels: int) -> None:
        """What comes after the constructor of the layer."""
        self.bias_a = nn.Parameter(torch.zeros(channels, device=self.device, dtype=self.dtype))

    @classmethod
    def _check_widths(cls, a_bit: int, w_bit: int) -> None:
        for name, value in (("a_bit", a_bit), ("w_bit", w_bit)):
            if value not in cls.widths:
                raise ValueError(
                    f"{name} must be {' or '.join(map(str, cls.widths))} for {cls.__name__}, got {value!r}"
                )

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch's layers do; the shift of the input and its scale start again."""
        super().reset_parameters()
        nn.init.zeros_(self.bias_a)

    def _taken_from(self, old: nn.Module, pack: bool) -> Self:
        layer = super()._taken_from(old, pack)
        nn.init.zeros_(layer.bias_a)
        return layer

    # ---- what the layer is ------------------------------------------------------------------

    @property
    def a_bit(self) -> int:
        """Bits of an activation's code."""
        assert self.activation_bits is not None
        return self.activation_bits

    @property
    def w_bit(self) -> int:
        """Bits of a weight's code."""
        return self.weight_bits

    @property
    def device(self) -> torch.device:
        """Device of the layer's weight, packed or not."""
        return self.weight_device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the layer's float tensors."""
        return self.weight_dtype

    @property
    def scale_w(self) -> Tensor:
        """Scale of the weight as it is now: float32 scalar."""
        with torch.no_grad():
            return self._codes_and_scales()[1].squeeze(0)

    # ---- weights ----------------------------------------------------------------------------

    def prepare_params(self) -> None:
        """Make the parameters ready for training. They are: ``scale_w`` follows the weight by itself."""

    def set_weight_data(self, x: Tensor) -> None:
        """Take a copy of ``x`` as float weight; packed codes are dropped.

        TypeError where ``x`` is not of the layer's dtype, ValueError where it has another shape.
        """
        if x.dtype != self.dtype:
            raise TypeError(
                f"the weight must be {self.dtype} as the layer is, got {x.dtype}: convert one with .to()"
            )
        if tuple(x.shape) != self.weight_shape:
            raise ValueError(f"the weight must have shape {list(self.weight_shape)}, got {list(x.shape)}")
        self._become_latent(x.detach().to(self.device, copy=True))

    def generate_quantized_weight(self, qweight_only: bool = False) -> None:
        """Pack the codes of the weight into ``qweight``; with ``qweight_only`` drop the weight.

        No-op where only the codes are left. ValueError where the weight holds NaN or infinity.
        """
        if qweight_only:
            self.pack()
        elif self.weight is not None:
            with torch.no_grad():
                codes, _ = self._codes_and_scales(final=True)
            self.register_buffer("qweight", pack_codes(codes, self.weight_bits), persistent=False)

    def set_quantized_weight_data(self, x: Tensor) -> None:
        """Take the packed codes ``x``, as ``qweight`` has them; the weight goes, ``scale_w`` stays.

        TypeError or ValueError where ``x`` does not fit.
        """
        shape = (self.weight_shape[0], self._row_bytes)
        if x.dtype != torch.uint8:
            raise TypeError(f"packed weights must be uint8, got {x.dtype}: use set_weight_data for others")
        if tuple(x.shape) != shape:
            raise ValueError(f"packed weights must have shape {list(shape)}, got {list(x.shape)}")
        scales = self._codes_and_scales()[1]
        self._become_packed(x.detach().to(self.device, copy=True), scales.detach().clone())

    @property
    def opt_weight(self) -> Tensor:
        """The weight in training mode, the packed codes in eval mode, packed from it as it is now.

        Where only the packed codes are left: those, in either mode.
        """
        if self.weight is not None and self.training:
            return self.weight
        self.generate_quantized_weight()
        assert self.qweight is not None
        return self.qweight

    @property
    def _row_bytes(self) -> int:
        return bytes_per_row(math.prod(self.weight_shape[1:]), self.weight_bits)

    # ---- forward ----------------------------------------------------------------------------

    def set_activation(self, x: Tensor) -> Tensor:
        """x + ``bias_a``; in training mode the first call sets ``scale_a`` from x.

        ValueError where that first x holds NaN or infinity.
        """
        if self.training and self.scale_a is not None and not self._learned_scale.is_set(self.scale_a):
            self._learned_scale.calibrate(self.scale_a, x)
        return x + self._over_inputs(self.bias_a)

    def _check_forward(self, x: Tensor) -> None:
        self._check_input(x)

    def _over_inputs(self, values: Tensor) -> Tensor:
        """[in_channels] shaped so that it broadcasts over the input channels of x."""
        return values

    def _shifted(self, x: Tensor) -> Tensor:
        return self.set_activation(x)

    def _weight_scales(self, weight: Tensor) -> Tensor:
        return mean_scales(weight, MEAN_DIVISORS[self.weight_bits], self.scale)

    def _code_range(self) -> tuple[int, int]:
        high = largest_code(self.weight_bits)
        return -high - 1, high

    def _scale_factor(self) -> float:
        return 2 / MEAN_DIVISORS[self.a_bit]


class nBitLinearBase(QuantizedForms, NBitLinear):
    """y = scale_a scale_w code(x + bias_a) code(W)^T + bias, weight [out_channels, in_channels].

    Any number of channels and leading dimensions. See :class:`QuantizedForms` for the scales, and
    :class:`impl.layers.nbit.base.IntegerLayer` for the arithmetic: exact, the same in training and eval.
    ``bias`` is new against the original.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        a_bit: int = 4,
        w_bit: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        *,
        bias: bool = False,
    ) -> None:
        self._check_widths(a_bit, w_bit)
        NBitLinear.__init__(
            self,
            in_channels,
            out_channels,
            bias,
            device,
            dtype,
            weight_bits=w_bit,
            activation_bits=a_bit,
            activation_scale="learned",
            scale="tensor",
        )
        self._set_up(in_channels)

    @property
    def in_channels(self) -> int:
        """``in_features`` by the name of bitorch_engine."""
        return self.in_features

    @property
    def out_channels(self) -> int:
        """``out_features`` by the name of bitorch_engine."""
        return self.out_features

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, pack: bool = False, **options: Any) -> Self:
        """A layer with the weight, bias, device, dtype and mode of ``linear``, which is not changed.

        ``options``: further keyword arguments of the class.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes an nn.Linear, got {type(linear).__name__}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            device="meta",  # nothing is drawn: the numbers come from `linear`
            dtype=linear.weight.dtype,
            bias=linear.bias is not None,
            **options,
        )
        return layer._taken_from(linear, pack)


class Q4LinearCutlass(nBitLinearBase):
    """:class:`nBitLinearBase` with 4-bit weights and activations, on any device."""

    widths = (4,)


class Q8LinearCutlass(nBitLinearBase):
    """:class:`nBitLinearBase` with 8-bit weights and activations, on any device."""

    widths = (8,)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        a_bit: int = 8,
        w_bit: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, a_bit, w_bit, device, dtype, bias=bias)


class Q4MatMul(ClippedMatMul):
    """z = x_clip y_clip code(x) code(y)^T over the last two dimensions, codes of 4 bits (-8 .. 7).

    ``x_clip`` and ``y_clip`` are learned scalars, the step sizes of the operands (LSQ,
    :class:`impl.layers.nbit.activations.LearnedStep`); they start from 2 mean|operand| / 5.6345
    (:class:`impl.compat.bitorch_engine.clipped_matmul.ClippedMatMul`). The product of the codes is exact;
    a NaN or infinity makes its row or column NaN.
    """

    def __init__(self, dtype: torch.dtype = torch.float, device: torch.device | str | None = None) -> None:
        super().__init__(dtype, device, factor=2 / MEAN_DIVISORS[4])

    def _product(self, x: Tensor, y: Tensor, x_clip: Tensor, y_clip: Tensor) -> Tensor:
        z = _exact_product(x, y, x_clip, y_clip)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, y, x_clip, y_clip)):
            x_rounded = LearnedStep.apply(x, x_clip, largest_code(4))
            y_rounded = LearnedStep.apply(y, y_clip, largest_code(4))
            z = ExactValue.apply(x_rounded @ y_rounded.to(x.dtype).transpose(-1, -2), z)
        return z


@torch.no_grad()
def _exact_product(x: Tensor, y: Tensor, x_clip: Tensor, y_clip: Tensor) -> Tensor:
    x_codes, x_step = quantize_learned(x, x_clip, 4, (-1,))
    y_codes, y_step = quantize_learned(y, y_clip, 4, (-1,))
    return exact_matmul(x_codes, y_codes, 4, 4) * x_step * y_step.transpose(-1, -2)
