"""The layer kinds of this package as suites describe them. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bitbench.layers.base import LayerSpec

FloatType = Literal["float32", "bfloat16", "float16"]
Rule = Literal["optimal", "absmean", "absmax", "twn"]
Isa = Literal["avx512", "avx2", "neon_i8mm", "neon", "portable"]
"""Instruction sets that native kernels are compiled for (csrc/cpu/isa.cpp)."""
ActivationBits = Literal[1, 2, 8, 16] | None
"""1: signs. 2: -1, 0 and +1. 8, 16: integers. One scale per token. null: float activations."""
STE = Literal["identity", "clip", "approx_sign", "swish_sign", "magnitude_aware"]

MAX_COMPONENTS = 16
"""BITIMPL_MAX_COMPONENTS of csrc/include/impl.h."""

GROUP_STEP = 8
"""Scale groups are whole bytes of a 1-bit row."""


def _group(size: int) -> int:
    if size < GROUP_STEP or size % GROUP_STEP:
        below = max(GROUP_STEP, size // GROUP_STEP * GROUP_STEP)
        near = str(below) if below > size else f"{below} or {below + GROUP_STEP}"
        raise PydanticCustomError(
            "group_size",
            "must be a positive multiple of {step}, not {size}; the nearest: {near}",
            {"step": GROUP_STEP, "size": size, "near": near},
        )
    return size


GroupSize = Annotated[int, AfterValidator(_group), Field(json_schema_extra={"minimum": 8, "multipleOf": 8})]


class LinearSpec(LayerSpec):
    """``torch.nn.Linear``."""

    kind: Literal["linear"]
    dtype: FloatType = "float32"
    """Type of weights and activations."""


class TorchInt8Spec(LayerSpec):
    """torch's own dynamic int8: 8-bit weights, activations quantised per tensor in each call."""

    kind: Literal["torch_int8"]
    scale: Literal["row", "tensor"] = "row"
    """Scales of the weights. row is the more accurate one (torch's ``per_channel_dynamic_qconfig``)
    and as fast; tensor is what ``quantize_dynamic`` does when not told otherwise."""


class QuantizedSpec(LayerSpec):
    """What the low-bit kinds of :mod:`impl` have in common."""

    form: Literal["packed", "training"] = "packed"
    """packed: codes and a kernel. training: latent float weights, quantised in every call."""
    group_size: GroupSize | None = None
    """Columns that share a scale; null means the whole row."""
    scale_dtype: Literal["float32", "float16"] = "float32"
    isa: Isa | None = None
    """Instruction set of the kernels, packed form only; null means the best here, or BITIMPL_ISA's.
    Where the machine or the build lacks it, the case is ``unsupported``."""
    dtype: FloatType = "float32"
    """Type of input and output where the layer is measured alone; in a model they have the model's."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A layer that names none is described, and identified, as before there was a choice.
        described: dict[str, Any] = serialise(self)
        if self.isa is None:
            described.pop("isa", None)
        if self.dtype == "float32":
            described.pop("dtype", None)
        if not described.get("signs"):
            described.pop("signs", None)
        return described

    @model_validator(mode="after")
    def _kernels_have_instructions(self) -> QuantizedSpec:
        if self.isa is not None and self.form == "training":
            raise PydanticCustomError(
                "isa", "the training form runs on torch, not on kernels of an instruction set; remove isa"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_rows(self) -> QuantizedSpec:
        if self.group_size is not None and getattr(self, "scale", None) == "tensor":
            raise PydanticCustomError(
                "scale", "group_size gives a scale per row and group; remove it or `scale: tensor`"
            )
        return self


class BinarySpec(QuantizedSpec):
    """Weights -1 and +1."""

    kind: Literal["binary"]
    activation_bits: ActivationBits = 8
    scale: Literal["row", "tensor"] = "row"
    ste: STE = "clip"
    """Straight-through gradient in training."""
    signs: bool = False
    """The layer stands between binary layers: it takes their signs, a bit each, and gives signs, by one
    threshold an output. With ``activation_bits: 1``, packed, for measuring speed and bytes."""

    @model_validator(mode="after")
    def _signs_are_single_bits(self) -> BinarySpec:
        if not self.signs:
            return self
        for name, wanted in (("activation_bits", 1), ("form", "packed"), ("group_size", None)):
            if getattr(self, name) != wanted:
                raise PydanticCustomError(
                    "signs",
                    "a layer with `signs: true` has `{name}: {wanted}`, not {value}",
                    {"name": name, "wanted": wanted or "null", "value": getattr(self, name)},
                )
        return self


class LatentFreeSpec(LayerSpec):
    """Weights -1 and +1 that are trained without a float copy: signs in bits or bytes, and constant
    scales. DiodeMix flips them; other parameters of the network follow AdamW's rule."""

    kind: Literal["latent_free"]
    form: Literal["packed", "training"] = "packed"
    """packed: codes and a kernel, as those of binary. training: decoded in every call."""
    activation_bits: ActivationBits = 8
    scale: Literal["row", "tensor"] = "row"
    storage: Literal["bit", "byte"] = "bit"
    """What training keeps of a weight: the same numbers either way, bytes are quicker to decode."""

    # What a binary layer has besides and this one has not.
    group_size: ClassVar[None] = None
    signs: ClassVar[bool] = False
    scale_dtype: ClassVar[str] = "float32"
    dtype: ClassVar[str] = "float32"
    isa: ClassVar[None] = None
    ste: ClassVar[str] = "clip"


class TernarySpec(QuantizedSpec):
    """Weights -1, 0 and +1."""

    kind: Literal["ternary"]
    activation_bits: ActivationBits = 8
    format: Literal["base3", "two_bit"] = "base3"
    """How packed codes lie in bytes: 1.6 or 2 bits a weight."""
    rule: Rule | None = None
    """How weights become codes; null means optimal when converted, absmean in training."""
    scale: Literal["row", "tensor"] | None = None
    """null means per tensor under absmean, else per row."""
    ste: STE = "identity"
    """Straight-through gradient in training."""


class KTernarySpec(QuantizedSpec):
    """Weights that are a sum of k ternary components, each with its own scale."""

    kind: Literal["k_ternary"]
    k: int = Field(default=2, ge=1, le=MAX_COMPONENTS)
    activation_bits: ActivationBits = 8
    format: Literal["base3", "two_bit"] = "base3"
    rule: Rule | None = None
    """How each component is found; null means optimal when converted, twn in training."""
    refit: bool = True
    """Refit scales and codes of all components together after the greedy pass."""
    ste: STE = "identity"
    """Straight-through gradient in training."""
