"""Binary layers trained without a float copy of the weight. Torch and impl are imported in the worker's
methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from bitbench.layers.base import LayerCost, LayerSpec
from bitbench.layers.cost import codes_bytes, scales_bytes
from bitbench.layers.quantized import Binary
from bitbench.layers.specs import LatentFreeSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.suite.convolutions import ConvShape


class LatentFree(Binary):
    """``impl.BinaryLinear`` once packed; in training form the same weights as
    ``impl.parameters.BinaryLinearParameter``, which ``impl.optim.DiodeMix`` flips."""

    name = "latent_free"
    spec: ClassVar[type[LayerSpec]] = LatentFreeSpec

    def cost(self, spec: LatentFreeSpec, in_features: int, out_features: int) -> LayerCost:
        if spec.form == "packed":
            return super().cost(spec, in_features, out_features)
        weights = in_features * out_features
        packed = spec.storage == "bit"
        codes = codes_bytes("binary", 1, out_features, in_features) if packed else weights
        scales = scales_bytes(1, out_features, in_features, per=spec.scale, group_size=None, dtype="float32")
        # Decoded in each call and multiplied as floats.
        return LayerCost(codes, scales, 1.0 if packed else 8.0, weights, "fp32")

    def numerics(self, spec: LatentFreeSpec) -> dict[str, Any]:
        return {key: value for key, value in super().numerics(spec).items() if key != "storage"}

    def convert(self, spec: LatentFreeSpec, linear: nn.Linear) -> nn.Module:
        if spec.form == "packed":
            return super().convert(spec, linear)
        return self._made(spec, linear).requires_grad_(False).eval()

    def trainable(
        self, spec: LatentFreeSpec, in_features: int, out_features: int, *, bias: bool
    ) -> nn.Module:
        from torch import nn

        return self._made(spec, nn.Linear(in_features, out_features, bias=bias))

    def reference(self, spec: LatentFreeSpec, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:
        if spec.form == "packed":
            return super().reference(spec, module, x, rows)
        from bitbench.layers.reference import product

        decoded = module.weight.dequantize()[rows].double()
        return product(x, decoded, None if module.bias is None else module.bias[rows], spec.activation_bits)

    def trainable_conv2d(self, spec: LatentFreeSpec, shape: ConvShape, *, bias: bool) -> nn.Module:
        from impl.parameters import BinaryConvParameter

        layer = super().trainable_conv2d(spec, shape, bias=bias)
        return self._without_float_copy(spec, layer, BinaryConvParameter)

    def random_conv2d(self, spec: LatentFreeSpec, shape: ConvShape, *, bias: bool, seed: int) -> nn.Module:
        _refuse_training(spec)
        return super().random_conv2d(spec, shape, bias=bias, seed=seed)

    def convert_conv2d(self, spec: LatentFreeSpec, conv: nn.Conv2d) -> nn.Module:
        _refuse_training(spec)
        return super().convert_conv2d(spec, conv)

    def _made(self, spec: LatentFreeSpec, linear: nn.Linear) -> nn.Module:
        from impl import BinaryLinear
        from impl.parameters import BinaryLinearParameter

        layer = BinaryLinear.from_linear(
            linear, pack=False, activation_bits=spec.activation_bits, scale=spec.scale
        )
        return self._without_float_copy(spec, layer, BinaryLinearParameter)

    def _without_float_copy(self, spec: LatentFreeSpec, layer: Any, parameter: Any) -> nn.Module:
        """``layer`` with the weight that it has, as ``parameter`` keeps it."""
        weight = parameter(layer.weight.detach(), scale=spec.scale, packed=spec.storage == "bit")
        layer.weight = cast("nn.Parameter", weight)
        return cast("nn.Module", layer)


def _refuse_training(spec: LatentFreeSpec) -> None:
    from bitbench.workloads.base import Unsupported

    if spec.form == "training":
        raise Unsupported("a convolution has no latent-free training form; measure `form: packed`")
