"""Linear layer with integer weights and activations of 2 to 8 bits: Q4, Q8 and what lies between."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import check_activations, check_positive
from impl.layers.nbit.base import IntegerLayer
from impl.layers.nbit.integers import exact_dtype, exact_matmul

ROWS_AT_A_TIME = 1024
"""Output features whose codes are widened together: bounds the memory of large layers."""


class NBitLinear(IntegerLayer):
    """y = x W^T + bias with integer weights [out_features, in_features] and integer activations.

    x [..., in_features], any leading dimensions; a dynamic activation scale is that of a row (token).
    Everything else as :class:`impl.layers.nbit.base.IntegerLayer` says.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        weight_bits: int = 4,
        activation_bits: int | None = 8,
        activation_scale: str = "dynamic",
        scale: str = "row",
    ) -> None:
        self.in_features = check_positive("in_features", in_features)
        self.out_features = check_positive("out_features", out_features)
        super().__init__(
            (self.out_features, self.in_features),
            bias,
            device,
            dtype,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            activation_scale=activation_scale,
            scale=scale,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, pack: bool = True, **options: Any) -> Self:
        """The layer that replaces a trained ``linear``: weight, bias, device, dtype and mode are kept.

        ``options`` are keyword arguments of the class. ``linear`` is not changed. ValueError where
        the weight holds NaN or infinity and is packed.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes an nn.Linear, got {type(linear).__name__}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            "meta",  # nothing is drawn: the numbers come from `linear`
            linear.weight.dtype,
            **options,
        )
        return layer._taken_from(linear, pack)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {super().extra_repr()}"

    def _check_input(self, x: Tensor) -> None:
        check_activations(x, self.in_features)

    def _sample_dims(self, _x: Tensor) -> tuple[int, ...]:
        return (-1,)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _integer_product(self, codes: Tensor, weight: Tensor) -> Tensor:
        assert self.activation_bits is not None
        bits = (self.activation_bits, self.weight_bits)
        codes = codes.to(exact_dtype(self.in_features, *bits))  # once, not for every tile
        return torch.cat([exact_matmul(codes, tile, *bits) for tile in weight.split(ROWS_AT_A_TIME)], dim=-1)

    def _over_outputs(self, values: Tensor) -> Tensor:
        return values
