"""Linear layer whose weight is a sum of ternary components."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from impl.checks import check_choice, check_components
from impl.layers.base import QuantizedLinear
from impl.layers.int8_training import Int8Training
from impl.layers.rules import MultiTernaryWeight
from impl.quantizers import RULES


class MultiTernaryLinear(Int8Training, MultiTernaryWeight, QuantizedLinear):
    """Linear layer whose weight is the sum of ``k`` ternary matrices, each with its own scales.

    All components are applied in one pass over the activations. In training form the components
    are found greedily with ``rule``, by default the cheap ``twn``; :meth:`pack` then fits codes
    and scales jointly (``refit``), which never increases the squared error of a row but does
    change the values: with ``refit=False`` packing keeps exactly what training used.
    ``activation_bits``: None (float), 16, 8,
    2 (ternary values) or 1 (signs), as :func:`impl.quantizers.quantize_activations` has them.

    ``int8_training`` trains with int8 products, in the forward pass and towards the input, in place of
    float ones: see :class:`~impl.layers.int8_training.Int8Training`. It goes with ``k=1``,
    ``activation_bits=8``, the rules ``absmean``, ``absmax`` and ``twn``, and ``ste`` "identity" or "clip";
    ValueError for others.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int = 2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation_bits: int | None = None,
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "identity",
        format: str = "base3",
        rule: str = "twn",
        refit: bool = True,
        int8_training: bool = False,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            dtype,
            format=format,
            components=check_components(k),
            activation_bits=activation_bits,
            scale="row",
            group_size=group_size,
            scale_dtype=scale_dtype,
            ste=ste,
        )
        self.rule = check_choice("rule", rule, RULES)
        self.refit = refit
        self.int8_training = int8_training

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, k: int = 2, *, pack: bool = True, rule: str | None = None, **options: Any
    ) -> Self:
        """As :meth:`QuantizedLinear.from_linear`; ``rule`` None is ``optimal`` when packing, else,
        and with ``int8_training``, ``twn``."""
        exact = pack and not options.get("int8_training")
        return super().from_linear(linear, pack=pack, k=k, rule=rule or cls._rule_for(exact), **options)
