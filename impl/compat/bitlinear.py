"""``bitlinear`` (krisaujla/BitLinear): its layers, functions, rules and checkpoints.

The rule is the row's largest magnitude as scale and half of it as threshold, and k-ternary weights
are greedy. It keeps little of trained weights (relative error 0.84 on normally distributed ones,
where :class:`impl.BitLinear` reaches 0.44): take this module to reproduce, ``impl`` for quality.

Against the original: layers really are small once packed; the optimizer moves a latent weight, so
weights stay ternary; ``device`` and ``dtype`` are honoured; :func:`convert_linear_to_bitlinear`
converts a bare ``nn.Linear`` too, leaves modules alone that read their linear layer's weight, and
keeps ties. ``load_state_dict`` takes the original's states (``W_ternary`` with ``gamma`` or
``gammas``), too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

import impl.convert
from impl.convert import ConversionReport
from impl.functional import (
    absmax_scale,
    activation_quant,
    bitlinear_python,
    dequantize_scale,
    greedy_ternary_decomposition,
    multi_ternary_linear_python,
    quantize_activations_absmax,
    ternary_quantize,
    weight_to_ternary,
)
from impl.layers import BitLinear as _BitLinear
from impl.layers import MultiTernaryLinear as _MultiTernaryLinear
from impl.layers import QuantizedLinear
from impl.packing import (
    PackedWeight,
    compression_ratio,
    estimate_memory_savings,
    pack_ternary_base3,
    unpack_ternary_base3,
)

__all__ = [
    "BitLinear",
    "MultiTernaryLinear",
    "absmax_scale",
    "activation_quant",
    "bitlinear_python",
    "compression_ratio",
    "convert_linear_to_bitlinear",
    "dequantize_scale",
    "estimate_memory_savings",
    "greedy_ternary_decomposition",
    "multi_ternary_linear_python",
    "pack_ternary_base3",
    "quantize_activations_absmax",
    "ternary_quantize",
    "unpack_ternary_base3",
    "weight_to_ternary",
]


class _OriginalStates(QuantizedLinear):
    """Takes states that hold the ternary weight as float tensors, as the original saves them."""

    _scales_key: ClassVar[str]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = (prefix + "W_ternary", prefix + self._scales_key)
        if all(key in state_dict for key in keys):
            name = prefix.rstrip(".") or type(self).__name__
            try:
                packed = self._packed_from(*(state_dict[key] for key in keys))
            except ValueError as error:
                error_msgs.append(f"{name}: {error}")
                return
            for key in keys:  # load_state_dict hands over a copy of the caller's dictionary
                del state_dict[key]
            state_dict[prefix + "codes"] = packed.codes
            state_dict[prefix + "scales"] = packed.scales
            state_dict[prefix + "packing"] = packed.header.to_tensor()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _packed_from(self, ternary: Tensor, gammas: Tensor) -> PackedWeight:
        """The packed weight of float ``ternary`` [(k,) out, in] and ``gammas`` [(k,) out]."""
        if self.group_size is not None:
            raise ValueError(f"the state has a scale per row, this layer has group_size={self.group_size}")
        shape = (self.components, self.out_features, self.in_features)
        if ternary.numel() != shape[0] * shape[1] * shape[2] or tuple(ternary.shape[-2:]) != shape[-2:]:
            raise ValueError(f"W_ternary has shape {list(ternary.shape)}, this layer needs {list(shape)}")
        if gammas.numel() != shape[0] * shape[1]:
            raise ValueError(
                f"{self._scales_key} has shape {list(gammas.shape)}, this layer needs {list(shape[:2])}"
            )
        codes = ternary.detach().reshape(shape)
        rounded = codes.round().clamp(-1, 1).to(torch.int8)
        if not torch.equal(rounded.to(codes.dtype), codes):
            worst = float((codes - rounded).abs().max())
            raise ValueError(
                f"W_ternary is up to {worst:.3g} away from -1, 0 and +1: an optimizer has moved it since "
                "it was quantised. Multiply it by its scales and use from_linear to quantise it again"
            )
        scales = gammas.detach().to(torch.float32).reshape(self.components, self.out_features, 1)
        if not bool(torch.isfinite(scales).all()):
            raise ValueError(f"{self._scales_key} holds NaN or infinite scales: repair the checkpoint")
        stored = scales.to(self.scale_dtype)
        if not bool(torch.isfinite(stored).all()) or bool(((stored == 0) & (scales != 0)).any()):
            raise ValueError(
                f"{self._scales_key} holds scales that {self.scale_dtype} cannot: build the layer with "
                "scale_dtype=torch.float32"
            )
        return PackedWeight.from_codes(rounded, stored, self.format)


class BitLinear(_OriginalStates, _BitLinear):
    """Ternary linear layer with the original's rule (``absmax``), one scale ``gamma`` per output.

    A new layer holds a latent weight [out_features, in_features], quantised in each forward with a
    straight-through gradient; :meth:`from_linear` gives a packed one. ``W_ternary`` [out, in] and
    ``gamma`` [out] answer in either form, as float32. ``options``: those of :class:`impl.BitLinear`.
    """

    _scales_key = "gamma"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        options = {"rule": "absmax", "scale": "row", **options}
        super().__init__(in_features, out_features, bias, device, dtype, **options)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, pack: bool = True, rule: str | None = None, **options: Any
    ) -> Self:
        """The layer that replaces ``linear``, packed unless ``pack=False``: see
        :meth:`impl.QuantizedLinear.from_linear`. ``rule`` None is ``absmax``."""
        return super().from_linear(linear, pack=pack, rule=rule or "absmax", **options)


class MultiTernaryLinear(_OriginalStates, _MultiTernaryLinear):
    """Linear layer with a sum of ``k`` ternary components, found greedily with the rule ``absmax``.

    ``W_ternary`` [k, out, in] and ``gammas`` [k, out] answer in either form, as float32.
    ``options``: those of :class:`impl.MultiTernaryLinear`.
    """

    _scales_key = "gammas"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        k: int = 2,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        options = {"rule": "absmax", "refit": False, **options}
        super().__init__(in_features, out_features, k, bias, device, dtype, **options)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, k: int = 2, *, pack: bool = True, rule: str | None = None, **options: Any
    ) -> Self:
        """The layer that replaces ``linear``, packed unless ``pack=False``: see
        :meth:`impl.QuantizedLinear.from_linear`. ``rule`` None is ``absmax``."""
        return super().from_linear(linear, k, pack=pack, rule=rule or "absmax", **options)


def convert_linear_to_bitlinear(
    module: nn.Module,
    inplace: bool = True,
    *,
    skip: Sequence[str] = (),
    report: ConversionReport | None = None,
    **options: Any,
) -> nn.Module:
    """Replace every ``nn.Linear`` in ``module`` by this module's :class:`BitLinear`.

    As :func:`impl.convert_linear_to_bitlinear`, which says what is kept, skipped and raised.
    """
    return impl.convert.convert_linear_to_bitlinear(
        module, inplace, skip=skip, layer=BitLinear, report=report, **options
    )
