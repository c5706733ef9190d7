"""How the latent weight of a layer becomes codes and scales: binary, ternary, k-ternary.

Each class is one half of a layer; the other says what is done with the weight
(:class:`~impl.layers.QuantizedLinear`, :class:`~impl.layers.QuantizedConv`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from impl.layers.quantized import QuantizedLayer
from impl.parameters import BinaryParameter
from impl.quantizers import Quantized, quantize_binary, quantize_k_ternary, quantize_ternary


class BinaryWeight(QuantizedLayer):
    """A weight of -1 and +1 times a scale.

    ``layer.weight = impl.parameters.BinaryLinearParameter(layer.weight.detach())`` trains it without a
    float copy (``BinaryConvParameter`` for convolutions): such a weight is quantised already and used
    as it is, its gradient that of the product, whatever ``ste`` says.
    """

    formats: ClassVar[tuple[str, ...]] = ("binary",)

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        assert self.scale is not None
        return quantize_binary(weight, scale=self.scale, group_size=self.group_size, check_finite=final)

    def _fake_quantized_weight(self) -> Tensor:
        weight = self._latent("the latent weight")
        return weight if isinstance(weight, BinaryParameter) else super()._fake_quantized_weight()

    @property
    def W_binary(self) -> Tensor:
        """Signs -1 and +1 as float32 in the shape of the weight, decoded on demand."""
        return self._codes_and_scales()[0][0].to(torch.float32)

    @property
    def gamma(self) -> Tensor:
        """Scale of each output, float32 [outputs] ([outputs, groups] with groups)."""
        scales = self._codes_and_scales()[1][0]
        return scales if self.group_size is not None else scales[:, 0]


class TernaryWeight(QuantizedLayer):
    """A weight of -1, 0 and +1 times a scale, by ``rule``."""

    formats: ClassVar[tuple[str, ...]] = ("base3", "two_bit")
    rule: str

    @staticmethod
    def _rule_for(pack: bool) -> str:
        """The rule of a layer made from a trained one: exact where it packs, else cheap."""
        return "optimal" if pack else "absmean"

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        return quantize_ternary(
            weight, rule=self.rule, scale=self.scale, group_size=self.group_size, check_finite=final
        )

    def _scale_rows(self) -> int:
        own = self.scale or ("tensor" if self.rule == "absmean" and self.group_size is None else "row")
        return 1 if own == "tensor" else self.out_features

    @property
    def W_ternary(self) -> Tensor:
        """Codes -1, 0 and +1 as float32 in the shape of the weight, decoded on demand."""
        return self._codes_and_scales()[0][0].to(torch.float32)

    @property
    def gamma(self) -> Tensor:
        """Scale of each output, float32 [outputs] ([outputs, groups] with groups)."""
        scales = self._codes_and_scales()[1][0]
        return scales if self.group_size is not None else scales[:, 0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"


class MultiTernaryWeight(QuantizedLayer):
    """A weight that is the sum of ``k`` ternary components, each with its own scales."""

    formats: ClassVar[tuple[str, ...]] = ("base3", "two_bit")
    rule: str
    refit: bool

    @property
    def k(self) -> int:
        """Number of ternary components."""
        return self.components

    @classmethod
    def _options_for(cls, components: int) -> dict[str, Any]:
        return {"k": components}

    @staticmethod
    def _rule_for(pack: bool) -> str:
        """The rule of a layer made from a trained one: exact where it packs, else cheap."""
        return "optimal" if pack else "twn"

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
        """Codes -1, 0 and +1 as float32 [k, ...] in the shape of the weight, decoded on demand."""
        return self._codes_and_scales()[0].to(torch.float32)

    @property
    def gammas(self) -> Tensor:
        """Scales, float32 [k, outputs] ([k, outputs, groups] with groups)."""
        scales = self._codes_and_scales()[1]
        return scales if self.group_size is not None else scales[..., 0]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"
