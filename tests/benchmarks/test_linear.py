"""The linear kernels: every weight format with every kind of activations, one token to many."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import pytest
import torch

import impl
from impl.functional import binary_linear_python, ternary_linear_python
from impl.packing import PackedWeight

TOKENS = (1, 16, 64)
ACTIVATIONS = {"float": None, "sign": 1, "ternary": 2, "int8": 8, "int16": 16}


@dataclass(frozen=True)
class Kernel:
    format: str
    activation: str
    components: int = 1
    group_size: int | None = None

    @property
    def id(self) -> str:
        components = f"-k{self.components}" if self.components > 1 else ""
        groups = f"-g{self.group_size}" if self.group_size else ""
        return f"{self.format}{components}{groups}-{self.activation}"

    @property
    def bits(self) -> int | None:
        return ACTIVATIONS[self.activation]

    def layer(self, codes: torch.Tensor, scales: torch.Tensor) -> impl.QuantizedLinear:
        kind = impl.BinaryLinear if self.format == "binary" else impl.BitLinear
        if self.components > 1:
            kind = impl.MultiTernaryLinear
        return kind.from_codes(
            codes, scales, format=self.format, activation_bits=self.bits, group_size=self.group_size
        )


PLAIN = [
    Kernel(format, activation) for format in ("binary", "two_bit", "base3") for activation in ACTIVATIONS
]
COMPONENTS = [Kernel("base3", activation, components=2) for activation in ("float", "int8", "int16")] + [
    Kernel("two_bit", "int8", components=2),
    Kernel("base3", "int8", components=3),
]
GROUPS = [
    Kernel(format, activation, group_size=64)
    for format in ("binary", "two_bit", "base3")
    for activation in ("float", "int8")
] + [Kernel("base3", "int8", components=2, group_size=128)]


def reference(x: torch.Tensor, weight: PackedWeight, bits: int | None) -> torch.Tensor:
    function = binary_linear_python if weight.format == "binary" else ternary_linear_python
    return function(x, weight, None, bits)


def agrees(y: torch.Tensor, x: torch.Tensor, weight: PackedWeight, bits: int | None) -> bool:
    """Integer activations: to the bit. Float ones: sums of float32 in any order, whose error grows as a
    random walk over the columns, and one rounding to the output's type."""
    if bits is not None:
        return torch.equal(y, reference(x, weight, bits))
    expected = reference(x.float(), weight, None).double()
    size = weight.unpack().abs().sum(0).double() * weight.scales.abs().amax().double()
    bound = x.abs().double() @ size.T * 2.0**-24 * (8 + 2 * weight.cols**0.5)
    bound += expected.abs() * torch.finfo(y.dtype).eps
    return bool(((y.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("tokens", TOKENS, ids=lambda m: f"M{m}")
@pytest.mark.parametrize("kernel", [*PLAIN, *COMPONENTS, *GROUPS], ids=operator.attrgetter("id"))
def test_layer(kernel, tokens, beside_linear, weight_codes, activations):
    """A packed layer as a model calls it."""
    codes, scales = weight_codes(kernel.format, kernel.components, kernel.group_size)
    x = activations(tokens)
    weight = PackedWeight.from_codes(codes, scales, kernel.format, kernel.group_size)
    beside_linear(
        lambda: kernel.layer(codes, scales),
        lambda layer: layer(x),
        tokens=tokens,
        check=lambda y: agrees(y, x, weight, kernel.bits),
        extra=lambda layer: {
            "kernel": layer.last_kernel,
            "exact": {
                "memory.codes_bytes": layer.codes.untyped_storage().nbytes(),
                "memory.scales_bytes": layer.scales.untyped_storage().nbytes(),
            },
        },
    )


def test_every_kernel_has_a_benchmark():
    kernels = {(kernel.format, kernel.activation) for kernel in impl.capabilities().kernels}
    assert kernels == {(kernel.format, kernel.activation) for kernel in PLAIN}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "kernel",
    [Kernel("binary", "int8"), Kernel("base3", "int8"), Kernel("base3", "float")],
    ids=operator.attrgetter("id"),
)
def test_half_activations(kernel, dtype, beside_linear, weight_codes, activations):
    """Inputs and outputs of half width."""
    codes, scales = weight_codes(kernel.format)
    x = activations(16).to(dtype)
    weight = PackedWeight.from_codes(codes, scales, kernel.format)
    beside_linear(
        lambda: kernel.layer(codes, scales),
        lambda layer: layer(x),
        tokens=16,
        check=lambda y: y.dtype == dtype and agrees(y, x, weight, kernel.bits),
        extra=lambda layer: {"kernel": layer.last_kernel},
    )


@pytest.mark.parametrize("format", ["binary", "base3"])
def test_operator(format, beside_linear, weight_codes, activations):
    """The registered operator, which autograd and torch.compile use: its way through the dispatcher."""
    function = impl.binary_linear if format == "binary" else impl.ternary_linear
    codes, scales = weight_codes(format)
    x = activations(1)
    beside_linear(
        lambda: PackedWeight.from_codes(codes, scales, format),
        lambda weight: function(x, weight, None, 8),
        check=lambda y: torch.equal(y, reference(x, PackedWeight.from_codes(codes, scales, format), 8)),
        extra=lambda weight: {"kernel": impl.native.last_kernel()},
    )
