"""Linear layer with ternary weights."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from impl.checks import check_choice
from impl.layers.base import QuantizedLinear
from impl.layers.int8_training import Int8Training
from impl.layers.rules import TernaryWeight
from impl.quantizers import RULES


class BitLinear(Int8Training, TernaryWeight, QuantizedLinear):
    """Linear layer with weights -1, 0 and +1 times a scale: 1.6 (``base3``) or 2 (``two_bit``)
    bits per weight once packed.

    ``rule`` says which weights become zero (:data:`impl.quantizers.RULES`): ``absmean`` (b1.58) is
    cheap enough for every training step, ``optimal`` (exact least squares) suits trained weights
    and is what :meth:`from_linear` uses when it packs. ``scale``: "row", "tensor", or None for the
    rule's own (``absmean``: per tensor). ``activation_bits``: None (float), 16, 8,
    2 (ternary values) or 1 (signs), as :func:`impl.quantizers.quantize_activations` has them.

    ``int8_training`` trains with int8 products, in the forward pass and towards the input, in place of
    float ones: see :class:`~impl.layers.int8_training.Int8Training`. It goes with
    ``activation_bits=8``, the rules ``absmean``, ``absmax`` and ``twn``, and ``ste`` "identity" or "clip";
    ValueError for others.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation_bits: int | None = None,
        scale: str | None = None,
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "identity",
        format: str = "base3",
        rule: str = "absmean",
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
            scale=scale,
            group_size=group_size,
            scale_dtype=scale_dtype,
            ste=ste,
        )
        self.rule = check_choice("rule", rule, RULES)
        self.int8_training = int8_training

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, pack: bool = True, rule: str | None = None, **options: Any
    ) -> Self:
        """As :meth:`QuantizedLinear.from_linear`; ``rule`` None is ``optimal`` when packing, else,
        and with ``int8_training``, ``absmean``."""
        exact = pack and not options.get("int8_training")
        return super().from_linear(linear, pack=pack, rule=rule or cls._rule_for(exact), **options)
