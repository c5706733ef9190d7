"""The low-bit layers of :mod:`impl`: binary, ternary, k-ternary.

Torch and impl are imported in the worker's methods.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from bitbench.layers.base import CONDITIONS, LayerCost, LayerKind, LayerSpec
from bitbench.layers.cost import FORMAT_BITS, codes_bytes, scales_bytes
from bitbench.layers.linear import ROUNDING, drawn, float_tolerance
from bitbench.layers.specs import BinarySpec, Isa, KTernarySpec, TernarySpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.suite.convolutions import ConvShape

ULP = 2.0**-23

NATIVE_ISAS = get_args(Isa)
"""Instruction sets the native kernels are compiled for (csrc/cpu/isa.cpp)."""


def on_reference() -> bool:
    """Whether the user wants torch's reference in place of kernels."""
    return os.environ.get("BITIMPL_BACKEND") == "torch"


class Quantized(LayerKind):
    """What the three kinds share; each says its format, its components and its options."""

    backends = ("native", "torch", *NATIVE_ISAS)
    draws_in_place = True
    operator: str
    """First part of its kernels' names: ``ternary_linear``."""

    @property
    def convolution(self) -> str:
        """The same of its convolutions: ``ternary_conv``."""
        return self.operator.replace("linear", "conv")

    @abstractmethod
    def layer(self) -> Any:
        """The subclass of ``impl.layers.base.QuantizedLinear``."""

    @abstractmethod
    def conv2d(self) -> Any:
        """The subclass of ``impl.layers.conv.QuantizedConv``."""

    def format(self, spec: Any) -> str:
        """Packing format: ``binary``, ``two_bit`` or ``base3``."""
        return str(spec.format)

    def components(self, spec: Any) -> int:  # noqa: ARG002 - k-ternary looks at it
        """Number of summed code matrices."""
        return 1

    def scale_per(self, spec: Any) -> str:  # noqa: ARG002 - kinds differ
        """What shares a scale once packed: ``row`` or ``tensor``."""
        return "row"

    def options(self, spec: Any) -> dict[str, Any]:
        """Constructor arguments beside sizes and bias."""
        import torch

        return {
            "activation_bits": spec.activation_bits,
            "group_size": spec.group_size,
            "scale_dtype": getattr(torch, spec.scale_dtype),
            "ste": spec.ste,
        }

    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        k = self.components(spec)
        weights = in_features * out_features
        if spec.form == "training":
            # Latent float32 weights; quantised values are computed in each call and multiplied as floats.
            return LayerCost(4 * weights, 0, 32.0, weights, "fp32")
        scales = scales_bytes(
            k,
            out_features,
            in_features,
            per=self.scale_per(spec),
            group_size=spec.group_size,
            dtype=spec.scale_dtype,
        )
        codes = codes_bytes(self.format(spec), k, out_features, in_features)
        compute = {1: "bit", 2: "bit", None: "fp32"}.get(spec.activation_bits, "int8")
        # Two int8 planes; where both sides are ternary, two counts of bits.
        both_ternary = spec.activation_bits == 2 and self.format(spec) != "binary"
        passes = 2 if spec.activation_bits == 16 or both_ternary else 1
        return LayerCost(codes, scales, k * FORMAT_BITS[self.format(spec)], k * passes * weights, compute)

    def input_dtype(self, spec: Any) -> str:
        return str(spec.dtype)

    def unsupported(self, spec: Any, device: str) -> str | None:
        if device == "cpu":
            return None
        if spec.isa is not None:
            return (
                f"isa: {spec.isa} names instructions of a CPU; leave it out for a layer that runs on {device}"
            )
        return None

    def numerics(self, spec: Any) -> dict[str, Any]:
        return spec.model_dump(mode="json", exclude={"kind", "format", "isa", "dtype", *CONDITIONS})

    def random(self, spec: Any, in_features: int, out_features: int, *, bias: bool, seed: int) -> nn.Module:
        if spec.form == "training":
            import torch

            generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
            module = self.trainable(spec, in_features, out_features, bias=bias)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.uniform_(-(in_features**-0.5), in_features**-0.5, generator=generator)
            return module.requires_grad_(False).eval()
        packed = self.layer().from_codes(
            *self._drawn(spec, out_features, in_features, bias, seed),
            format=self.format(spec),
            activation_bits=spec.activation_bits,
            group_size=spec.group_size,
        )
        return packed.requires_grad_(False).eval()

    def _drawn(
        self, spec: Any, rows: int, columns: int, bias: bool, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Random codes int8 ``[components, rows, columns]``, their scales, and a bias where one is wanted."""
        import torch

        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        k = self.components(spec)
        groups = -(-columns // spec.group_size) if spec.group_size else 1
        scale_rows = rows if self.scale_per(spec) == "row" else 1
        # Stored runs were measured on what this order of drawing gives.
        scales = torch.empty(k, scale_rows, groups).uniform_(0.5, 1.5, generator=generator)
        scales *= columns**-0.5
        offset = torch.empty(rows).uniform_(-1, 1, generator=generator) if bias else None
        codes = random_codes(self.format(spec), k, rows, columns, generator)
        return codes, scales.to(getattr(torch, spec.scale_dtype)), offset

    def convert(self, spec: Any, linear: nn.Linear) -> nn.Module:
        packed = spec.form == "packed"
        module = self.layer().from_linear(linear, pack=packed, **self.options(spec))
        return module.requires_grad_(False).eval()

    def trainable(self, spec: Any, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        module: nn.Module = self.layer()(in_features, out_features, bias=bias, **self.options(spec))
        return module

    def in_training(self, spec: Any) -> Any:
        return spec.model_copy(update={"form": "training"})

    def reference(self, spec: Any, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:
        import torch

        from bitbench.layers.reference import decode_rows, product

        if spec.form == "training":
            decoded = module.dequantize(rows, dtype=torch.float64)
        else:
            decoded = decode_rows(module.packed_weight, rows)
        bias = module.bias[rows] if module.bias is not None else None
        return product(x, decoded, bias, spec.activation_bits)

    def tolerance(self, spec: Any, in_features: int) -> float:
        k = self.components(spec)
        # The output is rounded once more to a type shorter than float32.
        last = 0.0 if spec.dtype == "float32" else ROUNDING[spec.dtype]
        if spec.form == "training" or spec.activation_bits is None:
            return k * float_tolerance(in_features) + ROUNDING["float32"] + last
        # Dot products are exact; what is left is the float32 epilogue: a product and a sum per
        # component and group, the activation scale and the bias, half a unit each.
        groups = -(-in_features // spec.group_size) if spec.group_size else 1
        return ULP * (4 + k * groups) + last

    def random_conv2d(self, spec: Any, shape: ConvShape, *, bias: bool, seed: int) -> nn.Module:
        _refuse_groups(spec)
        if spec.form == "training":
            return drawn(self.trainable_conv2d(spec, shape, bias=bias), shape.columns, seed)
        codes, scales, offset = self._drawn(spec, shape.out_channels, shape.columns, bias, seed)
        packed = self.conv2d().from_codes(
            codes.view(len(codes), *shape.shape, shape.kernel, shape.kernel),
            scales,
            offset,
            stride=shape.stride,
            padding=shape.padding,
            format=self.format(spec),
            activation_bits=spec.activation_bits,
        )
        return packed.requires_grad_(False).eval()

    def trainable_conv2d(self, spec: Any, shape: ConvShape, *, bias: bool) -> nn.Module:
        module: nn.Module = self.conv2d()(*shape.sides, bias=bias, **self._conv_options(spec))
        return module

    def _conv_options(self, spec: Any) -> dict[str, Any]:
        """Keyword arguments of the convolution beside sizes and bias.

        Raises :class:`bitbench.workloads.base.Unsupported` for what a convolution has not.
        """
        _refuse_groups(spec)
        return {name: value for name, value in self.options(spec).items() if name != "group_size"}

    def convert_conv2d(self, spec: Any, conv: nn.Conv2d) -> nn.Module:
        packed = spec.form == "packed"
        module = self.conv2d().from_conv(conv, pack=packed, **self._conv_options(spec))
        return module.requires_grad_(False).eval()

    def conv2d_reference(self, spec: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
        from bitbench.layers.convolution import decoded, product

        return product(x, decoded(module), module.bias, module, spec.activation_bits)

    def kernel(self, module: Any) -> str:
        return str(module.last_kernel)

    def dispatch(self, spec: Any, kernel: str) -> dict[str, str]:  # noqa: ARG002
        # operator/latent/torch, or operator/format/activations/road/isa where torch stands for the
        # instruction set of the reference: see impl.native.last_kernel.
        operator, *parts = kernel.split("/")
        if operator not in (self.operator, self.convolution):
            return {}
        if parts == ["latent", "torch"]:
            return {"backend": "torch", "operator": operator, "packed": "no"}
        if len(parts) != 4:
            return {}
        format, activations, road, isa = parts
        by = {"backend": "torch"} if isa == "torch" else {"backend": "native", "isa": isa}
        if isa.startswith("sm_"):
            by["device"] = "cuda"
        said = {"format": format, "activations": activations, "road": road}
        return {**by, "operator": operator, "packed": "yes", **said}

    def fallback(self, spec: Any, kernel: str) -> str | None:
        if spec.form == "training" or on_reference():
            return None
        expected = tuple(f"{name}/{self.format(spec)}/" for name in (self.operator, self.convolution))
        isa = kernel.rpartition("/")[2]
        if kernel.startswith(expected) and isa != "torch" and spec.isa in (None, isa):
            return None
        served = f"{kernel} served the call" if kernel else "the layer does not say what served the call"
        wanted = f"a native {spec.isa or ''}".rstrip()
        return f"{served}, not {wanted} {expected[0]}... kernel; `bitbench doctor` says what is missing"


def _refuse_groups(spec: Any) -> None:
    from bitbench.workloads.base import Unsupported

    if spec.group_size is not None:
        raise Unsupported(
            f"group_size={spec.group_size}: the scales of a convolution are per tensor or row; leave "
            "group_size out for a layer that is measured as a convolution"
        )


class Binary(Quantized):
    """``impl.BinaryLinear``."""

    name = "binary"
    spec: ClassVar[type[LayerSpec]] = BinarySpec
    operator = "binary_linear"

    def layer(self) -> Any:
        from impl.layers.binary import BinaryLinear

        return BinaryLinear

    def conv2d(self) -> Any:
        from impl.layers.binary_conv import BinaryConv2d

        return BinaryConv2d

    def format(self, spec: BinarySpec) -> str:  # noqa: ARG002 - there is one
        return "binary"

    def scale_per(self, spec: BinarySpec) -> str:
        return spec.scale

    def options(self, spec: BinarySpec) -> dict[str, Any]:
        from bitbench.layers.signs import refuse

        refuse(spec)
        return {**super().options(spec), "scale": spec.scale}

    def random(self, spec: Any, in_features: int, out_features: int, *, bias: bool, seed: int) -> nn.Module:
        from bitbench.layers.signs import between_signs

        made = super().random(spec, in_features, out_features, bias=bias, seed=seed)
        return between_signs(made, self.input_dtype(spec), seed) if spec.signs else made

    def random_conv2d(self, spec: Any, shape: ConvShape, *, bias: bool, seed: int) -> nn.Module:
        from bitbench.layers.signs import between_signs

        made = super().random_conv2d(spec, shape, bias=bias, seed=seed)
        return between_signs(made, self.input_dtype(spec), seed) if spec.signs else made

    def given(self, spec: Any, x: torch.Tensor) -> Any:
        from bitbench.layers.signs import signs_of

        return signs_of(x) if spec.signs else x

    def shown(self, spec: Any, y: Any) -> torch.Tensor:
        from bitbench.layers.signs import floats_of

        return floats_of(y) if spec.signs else super().shown(spec, y)

    def reference(self, spec: Any, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:
        from bitbench.layers.signs import plus_minus, reached

        if not spec.signs:
            return super().reference(spec, module, x, rows)
        return reached(super().reference(spec, module.layer, plus_minus(x), rows), module, rows)

    def conv2d_reference(self, spec: Any, module: Any, x: torch.Tensor) -> torch.Tensor:
        from bitbench.layers.signs import plus_minus, reached

        if not spec.signs:
            return super().conv2d_reference(spec, module, x)
        return reached(super().conv2d_reference(spec, module.layer, plus_minus(x)), module, slice(None))

    def kernel(self, module: Any) -> str:
        return super().kernel(getattr(module, "layer", module))


class Ternary(Quantized):
    """``impl.BitLinear``."""

    name = "ternary"
    spec = TernarySpec
    operator = "ternary_linear"

    def layer(self) -> Any:
        from impl.layers.ternary import BitLinear

        return BitLinear

    def conv2d(self) -> Any:
        from impl.layers.ternary_conv import TernaryConv2d

        return TernaryConv2d

    def scale_per(self, spec: TernarySpec) -> str:
        if spec.group_size is not None:
            return "row"
        if spec.scale is not None:
            return spec.scale
        return "tensor" if spec.rule == "absmean" else "row"

    def options(self, spec: TernarySpec) -> dict[str, Any]:
        rule = {"rule": spec.rule} if spec.rule else {}
        return {**super().options(spec), **rule, "format": spec.format, "scale": spec.scale}


class KTernary(Quantized):
    """``impl.MultiTernaryLinear``."""

    name = "k_ternary"
    spec = KTernarySpec
    operator = "ternary_linear"

    def layer(self) -> Any:
        from impl.layers.k_ternary import MultiTernaryLinear

        return MultiTernaryLinear

    def conv2d(self) -> Any:
        from impl.layers.k_ternary_conv import MultiTernaryConv2d

        return MultiTernaryConv2d

    def components(self, spec: KTernarySpec) -> int:
        return spec.k

    def options(self, spec: KTernarySpec) -> dict[str, Any]:
        rule = {"rule": spec.rule} if spec.rule else {}
        return {**super().options(spec), **rule, "k": spec.k, "format": spec.format, "refit": spec.refit}


def random_codes(
    format: str, components: int, rows: int, cols: int, generator: torch.Generator
) -> torch.Tensor:
    """Codes int8 ``[components, rows, cols]``, each value equally likely."""
    import torch

    shape = (components, rows, cols)
    if format == "binary":
        return torch.randint(0, 2, shape, dtype=torch.int8, generator=generator).mul_(2).sub_(1)
    return torch.randint(-1, 2, shape, dtype=torch.int8, generator=generator)
