"""onnxruntime's ``MatMulNBits`` with 2- or 4-bit weights as a layer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from bitbench.layers.base import LayerCost, LayerSpec
from bitbench.layers.cost import ceil_div
from bitbench.layers.peers.peer import Package, Peer, blockwise_int8, kept_bias, random_bias

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.layers.peers.modules.ort_matmul_nbits import MatMulNBits

SCALE_BYTES = 4


class OrtMatMulNBitsSpec(LayerSpec):
    """onnxruntime's ``MatMulNBits`` at accuracy level 4: activations become int8 by block in each
    call. One float32 scale per row and block, no zero points."""

    kind: Literal["ort_matmul_nbits"]
    bits: Literal[2, 4] = 2
    """Bits a weight. 2 holds -2 .. 1, 4 holds -8 .. 7."""
    block_size: Literal[32, 64, 128, 256] = 128
    """Columns that share a scale."""


class OrtMatMulNBits(Peer):
    """A session of onnxruntime with one node."""

    name = "ort_matmul_nbits"
    spec = OrtMatMulNBitsSpec
    backends = ("onnxruntime",)
    packages = (Package("onnxruntime", "onnxruntime"), Package("onnx", "onnx"))
    kernel_prefix = "onnxruntime/matmul_nbits"
    kernel_parts = ("operator", "format", "activations", "version")

    def cost(self, spec: OrtMatMulNBitsSpec, in_features: int, out_features: int) -> LayerCost:
        blocks = out_features * ceil_div(in_features, spec.block_size)
        codes = blocks * spec.block_size * spec.bits // 8
        macs = in_features * out_features
        return LayerCost(codes, SCALE_BYTES * blocks, float(spec.bits), macs, "int8")

    def numerics(self, spec: OrtMatMulNBitsSpec) -> dict[str, Any]:
        return {"bits": spec.bits, "block_size": spec.block_size}

    def random(
        self, spec: OrtMatMulNBitsSpec, in_features: int, out_features: int, *, bias: bool, seed: int
    ) -> nn.Module:
        import torch

        generator = torch.Generator().manual_seed(seed)
        blocks = ceil_div(in_features, spec.block_size)
        shape = (out_features, blocks, spec.block_size * spec.bits // 8)
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        scales = torch.empty(out_features, blocks).uniform_(0.5, 1.5, generator=generator)
        scales *= in_features**-0.5 / 2 ** (spec.bits - 1)
        return self._made(spec, in_features, codes, scales, random_bias(out_features, bias, generator))

    def convert(self, spec: OrtMatMulNBitsSpec, linear: nn.Linear) -> nn.Module:
        """4 bits: rounded to the nearest of -8 .. 7 times a scale that puts the largest weight of the
        block on -8. 2 bits: the least-squares ternary codes of each block; rounding to -2 .. 1 would
        lose most of a trained weight."""
        weight = linear.weight.detach().float()
        levels, scales = _ternary(weight, spec.block_size) if spec.bits == 2 else _nearest(weight, spec)
        codes = _packed(levels + 2 ** (spec.bits - 1), spec.bits)
        return self._made(spec, linear.in_features, codes, scales, kept_bias(linear))

    def copies(self, module: Any, count: int) -> list[nn.Module]:
        # Each session packs the weights into memory of its own, which is what its calls read; what
        # they were made from is shared.
        shared = {id(value): value for value in module.buffers()}
        made: list[MatMulNBits] = [copy.deepcopy(module, dict(shared)) for _ in range(count)]
        for twin in made:
            twin.prepare()
        return [*made]

    def activations(self, spec: OrtMatMulNBitsSpec, x: torch.Tensor) -> torch.Tensor:
        return blockwise_int8(x, spec.block_size)

    def decoded(self, spec: OrtMatMulNBitsSpec, module: Any, rows: slice) -> torch.Tensor:
        import torch

        codes = module.codes[rows]
        shifts = torch.arange(0, 8, spec.bits, dtype=torch.uint8)
        digits = (codes[..., None] >> shifts) & (2**spec.bits - 1)
        levels = digits.flatten(2).double() - 2 ** (spec.bits - 1)
        weights: torch.Tensor = levels * module.scales[rows].double()[..., None]
        return weights.flatten(1)[:, : module.in_features]

    def _made(
        self,
        spec: OrtMatMulNBitsSpec,
        in_features: int,
        codes: torch.Tensor,
        scales: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> nn.Module:
        for package in self.packages:
            package.load()
        from bitbench.layers.peers.modules.ort_matmul_nbits import MatMulNBits

        module = MatMulNBits(in_features, codes, scales, bias, spec.bits, spec.block_size).eval()
        module.prepare()
        return module


def _ternary(weight: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels -1, 0, +1 ``[out, blocks, block]`` and scales ``[out, blocks]``."""
    from impl.quantizers import quantize_ternary

    quantized = quantize_ternary(weight, rule="optimal", group_size=block)
    return _blocks(quantized.codes[0], block), quantized.scales[0].contiguous()


def _nearest(weight: torch.Tensor, spec: OrtMatMulNBitsSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels -8 .. 7 ``[out, blocks, block]`` and scales ``[out, blocks]``."""
    import torch

    lowest = -(2 ** (spec.bits - 1))
    parts = _blocks(weight, spec.block_size)
    largest = parts.gather(-1, parts.abs().argmax(dim=-1, keepdim=True))
    scales = largest / lowest
    levels = torch.where(scales == 0, 0, parts / scales).round().clamp(lowest, -lowest - 1)
    return levels.to(torch.int8), scales.squeeze(-1)


def _blocks(values: torch.Tensor, block: int) -> torch.Tensor:
    """``[out, in]`` as ``[out, blocks, block]``, the last block filled with zeros."""
    import torch

    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % block))
    return padded.view(values.shape[0], -1, block)


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes ``[..., block]`` as bytes ``[..., block * bits / 8]``, low bits first."""
    import torch

    digits = codes.to(torch.uint8).unflatten(-1, (-1, 8 // bits))
    packed = torch.zeros(digits.shape[:-1], dtype=torch.uint8)
    for place in range(8 // bits):
        packed |= digits[..., place] << (bits * place)
    return packed
