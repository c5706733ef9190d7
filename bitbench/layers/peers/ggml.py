"""llama.cpp's ternary formats ``TQ1_0`` and ``TQ2_0`` as a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bitbench.layers.base import LayerCost, LayerSpec
from bitbench.layers.cost import ceil_div
from bitbench.layers.peers.peer import Package, Peer, install, kept_bias, random_bias

if TYPE_CHECKING:
    import torch
    from torch import nn

SOURCES = (Package("llama_cpp", "llama-cpp-python"), Package("pywhispercpp", "pywhispercpp"))
"""Packages that ship ggml's CPU backend as a shared library, the better one first: llama-cpp-python
is compiled for the machine it is installed on; pywhispercpp is a wheel, compiled for AVX2."""

BLOCK = 256
"""Weights that share a scale."""
CODE_BYTES = {"tq1_0": 52, "tq2_0": 64}
SCALE_BYTES = 2


class GgmlSpec(LayerSpec):
    """llama.cpp's ternary weights: blocks of 256 with a float16 scale. Activations become int8 with a
    float32 scale per 256 (``Q8_K``) in each call."""

    kind: Literal["ggml"]
    type: Literal["tq1_0", "tq2_0"] = "tq2_0"
    """tq1_0: five trits to a byte, 1.6875 bits a weight. tq2_0: 2.0625 bits."""


class Ggml(Peer):
    """``ggml_mul_mat`` of llama.cpp's CPU backend."""

    name = "ggml"
    spec = GgmlSpec
    backends = ("ggml",)
    packages = SOURCES
    # Both types hold the same weights.
    fixed_numerics: ClassVar[dict[str, Any]] = {
        "rule": "optimal",
        "group_size": BLOCK,
        "scale_dtype": "float16",
        "activations": "q8_K",
    }
    kernel_prefix = "ggml"
    kernel_parts = ("operator", "format", "activations", "isa", "version", "package")

    def missing(self) -> str | None:
        if any(package.installed() for package in self.packages):
            return None
        wheel = f"pip install {SOURCES[1].distribution}"
        return (
            f"no package with ggml's CPU backend is installed: {install([SOURCES[0]])} "
            f"(compiles for minutes; {wheel} is a wheel with the same kernels)"
        )

    def cost(self, spec: GgmlSpec, in_features: int, out_features: int) -> LayerCost:
        blocks = out_features * ceil_div(in_features, BLOCK)
        codes = CODE_BYTES[spec.type]
        macs = in_features * out_features
        return LayerCost(codes * blocks, SCALE_BYTES * blocks, 8 * codes / BLOCK, macs, "int8")

    def random(
        self, spec: GgmlSpec, in_features: int, out_features: int, *, bias: bool, seed: int
    ) -> nn.Module:
        import torch

        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-1, 2, (out_features, in_features), dtype=torch.int8, generator=generator)
        scales = torch.empty(out_features, 1).uniform_(0.5, 1.5, generator=generator) * in_features**-0.5
        return self._made(spec, codes * scales, random_bias(out_features, bias, generator))

    def convert(self, spec: GgmlSpec, linear: nn.Linear) -> nn.Module:
        """The least-squares ternary weights of each block, which the format holds but for the rounding
        of scales to float16. (ggml's own rounding is made for weights that are ternary already: it
        takes the largest |w| for the scale.)"""
        from impl.quantizers import quantize_ternary

        self._check(linear.in_features)
        weight = linear.weight.detach().float()
        ternary = quantize_ternary(weight, rule="optimal", group_size=BLOCK).dequantize()
        return self._made(spec, ternary, kept_bias(linear))

    def activations(self, spec: GgmlSpec, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - alike for both
        # Q8_K: the value of largest magnitude goes to -127 (with equal ones of both signs either may:
        # integers and scale then change sign together), in float32.
        import torch

        parts = x.float().view(x.shape[0], -1, BLOCK)
        largest = parts.gather(-1, parts.abs().argmax(dim=-1, keepdim=True))
        inverse = torch.full_like(largest, -127) / torch.where(largest == 0, 1, largest)
        q = torch.round(parts * inverse).clamp(max=127)
        scale = torch.where(largest == 0, 0, torch.ones_like(inverse) / inverse)
        return (q.double() * scale.double()).view(x.shape)

    def decoded(self, spec: GgmlSpec, module: Any, rows: slice) -> torch.Tensor:
        import torch

        blocks = module.codes[rows].unflatten(1, (-1, CODE_BYTES[spec.type] + SCALE_BYTES))
        codes, scales = blocks[..., :-SCALE_BYTES], blocks[..., -SCALE_BYTES:]
        digits = _tq1_digits(codes) if spec.type == "tq1_0" else _tq2_digits(codes)
        scale = scales.contiguous().view(torch.float16).double()
        weights: torch.Tensor = ((digits.double() - 1) * scale).flatten(1)
        return weights

    def _check(self, in_features: int) -> None:
        from bitbench.workloads.base import Unsupported

        if in_features % BLOCK:
            raise Unsupported(
                f"ggml's ternary rows are whole blocks of {BLOCK} weights, and in_features={in_features} "
                f"is not a multiple of {BLOCK}"
            )

    def _made(self, spec: GgmlSpec, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
        from bitbench.layers.peers.modules.ggml import GgmlLinear, encode
        from bitbench.workloads.base import Unsupported

        self._check(weight.shape[1])
        try:
            codes = encode(weight, spec.type, self.packages)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise Unsupported(f"ggml cannot be loaded ({reason}): {install([SOURCES[0]])}") from error
        return GgmlLinear(weight.shape[1], codes, bias, spec.type, self.packages).eval()


def _tq1_digits(codes: torch.Tensor) -> torch.Tensor:
    """0, 1, 2 ``[out, blocks, 256]`` of uint8 ``[out, blocks, 52]``.

    A byte is the fraction of five trits, v * 256 / 243 rounded up: times 3**n modulo 256 it begins
    with trit n. 32 bytes hold 160 weights, 16 hold 80, the last 4 hold four trits each.
    """
    import torch

    powers = torch.tensor([1, 3, 9, 27, 81])
    spread = (codes[..., None, :].long() * powers[:, None]) % 256 * 3 // 256
    return torch.cat(
        [spread[..., :32].flatten(-2), spread[..., 32:48].flatten(-2), spread[..., :4, 48:].flatten(-2)], -1
    )


def _tq2_digits(codes: torch.Tensor) -> torch.Tensor:
    """0, 1, 2 ``[out, blocks, 256]`` of uint8 ``[out, blocks, 64]``: each 32 bytes hold 128 weights,
    weight 32 n + m in bits 2 n of byte m."""
    import torch

    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    halves = codes.unflatten(-1, (2, 1, 32))
    return ((halves >> shifts) & 3).flatten(-3)
