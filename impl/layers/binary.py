"""Linear layer with binary weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from impl.checks import check_choice
from impl.layers.base import SCALES, QuantizedLinear
from impl.quantizers import Quantized, quantize_binary


class BinaryLinear(QuantizedLinear):
    """Linear layer with weights -1 and +1 times a scale: 1 bit per weight once packed.

    The scale mean|w| is the least-squares one (Rastegari et al., 2016). ``activation_bits``: None
    (float), 16, 8, or 1 (signs; the scale mean|x| of each row). ``ste`` names the gradient of the
    weight's sign (:data:`impl.quantizers.STE`).
    """

    formats: ClassVar[tuple[str, ...]] = ("binary",)
    activations: ClassVar[tuple[int | None, ...]] = (None, 1, 8, 16)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation_bits: int | None = None,
        scale: str = "row",
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "clip",
        format: str = "binary",
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            dtype,
            format=format,
            components=1,
            activation_bits=activation_bits,
            scale=check_choice("scale", scale, SCALES),
            group_size=group_size,
            scale_dtype=scale_dtype,
            ste=ste,
        )

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        assert self.scale is not None
        return quantize_binary(weight, scale=self.scale, group_size=self.group_size, check_finite=final)

    @property
    def W_binary(self) -> Tensor:
        """Signs -1 and +1 as float32 [out_features, in_features], decoded on demand."""
        return self._codes_and_scales()[0][0].to(torch.float32)

    @property
    def gamma(self) -> Tensor:
        """Scale of each output channel, float32 [out_features] ([out_features, groups] with groups)."""
        scales = self._codes_and_scales()[1][0]
        return scales if self.group_size is not None else scales[:, 0]
