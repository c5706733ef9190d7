"""litespark-inference's ternary linear layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bitbench.layers.base import LayerCost, LayerSpec
from bitbench.layers.cost import ceil_div
from bitbench.layers.peers.peer import Package, Peer, install, kept_bias, random_bias

if TYPE_CHECKING:
    import torch
    from torch import nn

LITESPARK = Package("litespark_inference", "litespark-inference")

FLOOR = 1e-5
"""Least amax of its activation quantisation."""


class LitesparkSpec(LayerSpec):
    """Ternary weights, four to a byte, with one scale per tensor, and int8 activations with a scale
    per token, as litespark-inference runs BitNet b1.58 models."""

    kind: Literal["litespark"]


class Litespark(Peer):
    """The C kernels of litespark-inference (arXiv 2605.06485) through its own Python bindings."""

    name = "litespark"
    spec = LitesparkSpec
    backends = ("litespark",)
    packages = (LITESPARK,)
    fixed_numerics: ClassVar[dict[str, Any]] = {"rule": "absmean", "scale": "tensor", "activation_bits": 8}
    roundings = 4  # the product of the scales, the conversion of an int32, a product, the bias
    kernel_prefix = "litespark"
    kernel_parts = ("operator", "format", "activations", "isa", "version")

    def cost(self, spec: LitesparkSpec, in_features: int, out_features: int) -> LayerCost:  # noqa: ARG002 - the kind has no options
        macs = in_features * out_features
        return LayerCost(out_features * ceil_div(in_features, 4), 4, 2.0, macs, "int8")

    def random(
        self,
        spec: LitesparkSpec,  # noqa: ARG002 - the kind has no options
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        seed: int,
    ) -> nn.Module:
        import torch

        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-1, 2, (out_features, in_features), dtype=torch.int8, generator=generator)
        scales = torch.empty(1).uniform_(0.5, 1.5, generator=generator) * in_features**-0.5
        return _made(codes, scales, random_bias(out_features, bias, generator))

    def convert(self, spec: LitesparkSpec, linear: nn.Linear) -> nn.Module:  # noqa: ARG002 - the kind has no options
        from impl.quantizers import quantize_ternary

        quantized = quantize_ternary(linear.weight.detach().float(), rule="absmean", scale="tensor")
        return _made(quantized.codes[0], quantized.scales.reshape(1), kept_bias(linear))

    def activations(self, spec: LitesparkSpec, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the kind has no options
        import torch

        amax = x.float().abs().amax(dim=1, keepdim=True).clamp_min(FLOOR)
        scale = amax / torch.full_like(amax, 127)
        return torch.round(x.float() * scale.reciprocal()).clamp(-127, 127).double() * scale.double()

    def decoded(self, spec: LitesparkSpec, module: Any, rows: slice) -> torch.Tensor:  # noqa: ARG002 - the kind has no options
        import torch

        shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
        digits = ((module.codes[rows, :, None] >> shifts) & 3).flatten(1)[:, : module.in_features]
        weights: torch.Tensor = (digits.double() - 1) * module.scales.double()
        return weights


def _made(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    import torch

    from bitbench.workloads.base import Unsupported

    LITESPARK.load()
    from bitbench.layers.peers.modules import litespark

    try:
        litespark.kernels()
    except (ImportError, OSError, RuntimeError) as error:  # not built, or not for this machine
        reason = str(error).splitlines()[0]
        raise Unsupported(
            f"litespark's kernels cannot be loaded ({reason}): install a C++ compiler with OpenMP, then "
            f"{install([LITESPARK])}"
        ) from error
    from litespark_inference.torchless.pack import pack_ternary_4_per_byte

    packed = torch.from_numpy(pack_ternary_4_per_byte(codes.contiguous().numpy()))
    return litespark.LitesparkLinear(codes.shape[1], packed, scales, bias).eval()
