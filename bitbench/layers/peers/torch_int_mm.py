"""torch's int8 matrix product, ``torch._int_mm``, as a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bitbench.layers.base import LayerCost, LayerSpec
from bitbench.layers.peers.peer import Peer, kept_bias, random_bias

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.layers.peers.modules.torch_int_mm import IntMM

SCALE_BYTES = 4

MAX_IN_FEATURES = (2**31 - 1) // (127 * 127)
"""Products of 127 x 127 that an int32 holds."""
CUDA_MULTIPLE = 8
"""On a GPU ``torch._int_mm`` takes sides of the weight in multiples of this."""


class IntMMSpec(LayerSpec):
    """int8 weights with a scale per row, int8 activations with a scale per token, multiplied by
    ``torch._int_mm`` (oneDNN; on a GPU cuBLASLt)."""

    kind: Literal["torch_int_mm"]


class TorchIntMM(Peer):
    """``torch._int_mm`` between eager activation quantisation and scaling, all inside the call."""

    name = "torch_int_mm"
    spec = IntMMSpec
    backends = ("torch",)
    draws_in_place = True
    fixed_numerics: ClassVar[dict[str, Any]] = {"weights": "int8 per row", "activations": "int8 per token"}
    roundings = 5  # the activation scale, two products, the conversion of an int32, the bias
    kernel_prefix = "torch/int_mm"
    kernel_parts = ("operator", "dtype", "device")

    def unsupported(self, spec: IntMMSpec, device: str) -> str | None:
        return None if device == "cuda" else super().unsupported(spec, device)

    def cost(self, spec: IntMMSpec, in_features: int, out_features: int) -> LayerCost:  # noqa: ARG002 - the kind has no options
        weights = in_features * out_features
        return LayerCost(weights, SCALE_BYTES * out_features, 8.0, weights, "int8")

    def random(
        self,
        spec: IntMMSpec,  # noqa: ARG002 - the kind has no options
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        seed: int,
    ) -> nn.Module:
        import torch

        generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
        codes = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8, generator=generator)
        scales = torch.empty(out_features).uniform_(0.5, 1.5, generator=generator) * (in_features**-0.5 / 64)
        return _made(codes, scales, random_bias(out_features, bias, generator))

    def convert(self, spec: IntMMSpec, linear: nn.Linear) -> nn.Module:  # noqa: ARG002 - the kind has no options
        import torch

        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / 127
        codes = (weight / scales[:, None]).round().clamp_(-127, 127).to(torch.int8)
        return _made(codes, scales, kept_bias(linear))

    def activations(self, spec: IntMMSpec, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the kind has no options
        import torch

        amax = x.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-5)
        # torch computes a number over a tensor as a reciprocal and a product, each rounded.
        q = torch.round(x.float() * (amax.reciprocal() * 127)).double()
        return q * (amax.double() / 127)

    def decoded(self, spec: IntMMSpec, module: Any, rows: slice) -> torch.Tensor:  # noqa: ARG002 - the kind has no options
        decoded: torch.Tensor = module.codes[rows].double() * module.scales[rows].double()[:, None]
        return decoded


def _made(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> IntMM:
    from bitbench.layers.peers.modules.torch_int_mm import IntMM
    from bitbench.workloads.base import Unsupported

    if codes.shape[1] > MAX_IN_FEATURES:
        raise Unsupported(
            f"torch._int_mm sums in int32, which {codes.shape[1]} products of 127 x 127 can leave; "
            f"the limit is in_features={MAX_IN_FEATURES}"
        )
    if codes.is_cuda and any(side % CUDA_MULTIPLE for side in codes.shape):
        raise Unsupported(
            f"torch._int_mm takes weights with sides in multiples of {CUDA_MULTIPLE} on CUDA, this one is "
            f"{list(codes.shape)}: measure it on the CPU, or another shape"
        )
    return IntMM(codes, scales, bias).eval()
