"""Linear layer with ternary weights."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.checks import check_choice
from impl.layers.base import QuantizedLinear
from impl.quantizers import RULES, Quantized, quantize_ternary


class BitLinear(QuantizedLinear):
    """Linear layer with weights -1, 0 and +1 times a scale: 1.6 (``base3``) or 2 (``two_bit``)
    bits per weight once packed.

    ``rule`` says which weights become zero (:data:`impl.quantizers.RULES`): ``absmean`` (b1.58) is
    cheap enough for every training step, ``optimal`` (exact least squares) suits trained weights
    and is what :meth:`from_linear` uses when it packs. ``scale``: "row", "tensor", or None for the
    rule's own (``absmean``: per tensor). ``activation_bits``: None (float), 8 or 16.
    """

    formats: ClassVar[tuple[str, ...]] = ("base3", "two_bit")
    activations: ClassVar[tuple[int | None, ...]] = (None, 8, 16)

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

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, pack: bool = True, rule: str | None = None, **options: Any
    ) -> Self:
        """As :meth:`QuantizedLinear.from_linear`; ``rule`` None is ``optimal`` when packing, else
        ``absmean``."""
        return super().from_linear(
            linear, pack=pack, rule=rule or ("optimal" if pack else "absmean"), **options
        )

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        return quantize_ternary(
            weight, rule=self.rule, scale=self.scale, group_size=self.group_size, check_finite=final
        )

    def _scale_rows(self) -> int:
        own = self.scale or ("tensor" if self.rule == "absmean" and self.group_size is None else "row")
        return 1 if own == "tensor" else self.out_features

    @property
    def W_ternary(self) -> Tensor:
        """Codes -1, 0 and +1 as float32 [out_features, in_features], decoded on demand."""
        return self._codes_and_scales()[0][0].to(torch.float32)

    @property
    def gamma(self) -> Tensor:
        """Scale of each output channel, float32 [out_features] ([out_features, groups] with groups)."""
        scales = self._codes_and_scales()[1][0]
        return scales if self.group_size is not None else scales[:, 0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"
