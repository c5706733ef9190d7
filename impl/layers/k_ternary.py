"""Linear layer whose weight is a sum of ternary components."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.checks import check_choice, check_components
from impl.layers.base import QuantizedLinear
from impl.quantizers import RULES, Quantized, quantize_k_ternary


class MultiTernaryLinear(QuantizedLinear):
    """Linear layer whose weight is the sum of ``k`` ternary matrices, each with its own scales.

    All components are applied in one pass over the activations. In training form the components
    are found greedily with ``rule``, by default the cheap ``twn``; :meth:`pack` then fits codes
    and scales jointly (``refit``), which never increases the squared error of a row but does
    change the values: with ``refit=False`` packing keeps exactly what training used.
    ``activation_bits``: None (float), 8 or 16.
    """

    formats: ClassVar[tuple[str, ...]] = ("base3", "two_bit")
    activations: ClassVar[tuple[int | None, ...]] = (None, 8, 16)

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

    @property
    def k(self) -> int:
        """Number of ternary components."""
        return self.components

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, k: int = 2, *, pack: bool = True, rule: str | None = None, **options: Any
    ) -> Self:
        """As :meth:`QuantizedLinear.from_linear`; ``rule`` None is ``optimal`` when packing, else
        ``twn``."""
        return super().from_linear(
            linear, pack=pack, k=k, rule=rule or ("optimal" if pack else "twn"), **options
        )

    @classmethod
    def _options_for(cls, components: int) -> dict[str, Any]:
        return {"k": components}

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        return quantize_k_ternary(
            weight,
            self.components,
            group_size=self.group_size,
            rule=self.rule,
            refit=final and self.refit,
            check_finite=final,
        )

    @property
    def W_ternary(self) -> Tensor:
        """Codes -1, 0 and +1 as float32 [k, out_features, in_features], decoded on demand."""
        return self._codes_and_scales()[0].to(torch.float32)

    @property
    def gammas(self) -> Tensor:
        """Scales, float32 [k, out_features] ([k, out_features, groups] with groups)."""
        scales = self._codes_and_scales()[1]
        return scales if self.group_size is not None else scales[..., 0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"
