"""Linear layer with binary weights."""

from __future__ import annotations

from typing import ClassVar

import torch

from impl.checks import SCALES, check_choice
from impl.layers.base import QuantizedLinear
from impl.layers.int8_training import Int8Training
from impl.layers.rules import BinaryWeight


class BinaryLinear(Int8Training, BinaryWeight, QuantizedLinear):
    """Linear layer with weights -1 and +1 times a scale: 1 bit per weight once packed.

    The scale mean|w| is the least-squares one (Rastegari et al., 2016). ``activation_bits``: None
    (float), 16, 8, 2 (ternary values) or 1 (signs; the scale mean|x| of each row). ``ste`` names the
    gradient of the weight's sign (:data:`impl.quantizers.STE`).

    ``int8_training`` trains with int8 products, in the forward pass and towards the input, in place of
    float ones: see :class:`~impl.layers.int8_training.Int8Training`. It goes with ``activation_bits`` 8
    or 1, and ``ste`` "identity" or "clip"; ValueError for others.
    """

    int8_rules: ClassVar[tuple[str, ...]] = ("sign",)
    int8_activation_bits: ClassVar[tuple[int, ...]] = (8, 1)
    rule = "sign"

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
        int8_training: bool = False,
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
        self.int8_training = int8_training
