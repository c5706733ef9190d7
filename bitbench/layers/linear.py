"""The baseline: ``torch.nn.Linear`` in a float type. Torch is imported in the worker's methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bitbench.layers.base import LayerCost, LayerKind
from bitbench.layers.cost import FLOAT_BYTES
from bitbench.layers.specs import LinearSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.suite.convolutions import ConvShape

_COMPUTE = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16"}
"""float16 is bounded by the same peak as bfloat16 wherever both are native."""


class Linear(LayerKind):
    """``nn.Linear``, and ``nn.Conv2d`` where convolutions are measured."""

    name = "linear"
    spec = LinearSpec
    backends = ("torch",)
    draws_in_place = True

    def cost(self, spec: LinearSpec, in_features: int, out_features: int) -> LayerCost:
        weights = in_features * out_features
        width = FLOAT_BYTES[spec.dtype]
        return LayerCost(width * weights, 0, 8.0 * width, weights, _COMPUTE[spec.dtype])

    def numerics(self, spec: LinearSpec) -> dict[str, Any]:
        return {"dtype": spec.dtype}

    def input_dtype(self, spec: LinearSpec) -> str:
        return spec.dtype

    def random(
        self, spec: LinearSpec, in_features: int, out_features: int, *, bias: bool, seed: int
    ) -> nn.Module:
        from torch import nn

        return drawn(_empty(nn.Linear, in_features, out_features, bias=bias, spec=spec), in_features, seed)

    def convert(self, spec: LinearSpec, linear: nn.Linear) -> nn.Module:
        from torch import nn

        from bitbench.layers.cast import CastLinear

        converted = _empty(
            nn.Linear, linear.in_features, linear.out_features, bias=linear.bias is not None, spec=spec
        )
        return _filled(converted, linear, CastLinear)

    def trainable(self, spec: LinearSpec, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        import torch
        from torch import nn

        return nn.Linear(in_features, out_features, bias=bias, dtype=getattr(torch, spec.dtype))

    def reference(self, spec: LinearSpec, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:  # noqa: ARG002
        from bitbench.layers.reference import product

        bias = module.bias[rows] if module.bias is not None else None
        return product(x, module.weight[rows].double(), bias, None)

    def tolerance(self, spec: LinearSpec, in_features: int) -> float:
        return float_tolerance(in_features) + ROUNDING[spec.dtype]

    def random_conv2d(self, spec: LinearSpec, shape: ConvShape, *, bias: bool, seed: int) -> nn.Module:
        from torch import nn

        return drawn(_empty(nn.Conv2d, *shape.sides, bias=bias, spec=spec), shape.columns, seed)

    def trainable_conv2d(self, spec: LinearSpec, shape: ConvShape, *, bias: bool) -> nn.Module:
        import torch
        from torch import nn

        return nn.Conv2d(*shape.sides, bias=bias, dtype=getattr(torch, spec.dtype))

    def convert_conv2d(self, spec: LinearSpec, conv: nn.Conv2d) -> nn.Module:
        from torch import nn

        from bitbench.layers.cast import CastConv2d

        converted = _empty(
            nn.Conv2d,
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding),
            bias=conv.bias is not None,
            spec=spec,
        )
        return _filled(converted, conv, CastConv2d)

    def conv2d_reference(self, spec: LinearSpec, module: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the module holds its dtype
        from bitbench.layers.convolution import product

        return product(x, module.weight.double(), module.bias, module, None)

    def kernel(self, module: Any) -> str:
        weight = module.weight
        operator = "conv2d" if weight.dim() == 4 else "linear"
        return f"torch/{operator}/{str(weight.dtype).removeprefix('torch.')}/{weight.device.type}"

    def dispatch(self, spec: LinearSpec, kernel: str) -> dict[str, str]:  # noqa: ARG002
        parts = kernel.split("/")
        if len(parts) != 4 or parts[0] != "torch" or parts[1] not in ("linear", "conv2d"):
            return {}
        return {"backend": "torch", "packed": "no", "dtype": parts[2], "device": parts[3]}


ROUNDING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""One unit in the last place of the largest output: the result is rounded once to its type, and
libraries may round half a unit wrong on the way."""


def float_tolerance(in_features: int) -> float:
    """Error of a float32 sum of ``in_features`` products, relative to the largest output.

    Rounding errors of a sum in any order grow like sqrt(K) when they are independent, as the
    outputs do themselves; 4 standard deviations and a floor for short sums.
    """
    return float(2.0**-24 * (16 + 4 * in_features**0.5))


def drawn(module: nn.Module, columns: int, seed: int) -> nn.Module:
    """``module`` for inference, its float parameters random: uniform with the deviation of a trained layer
    that sums up ``columns`` products; four times faster to draw than normal."""
    import torch

    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    bound = (3 / columns) ** 0.5
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return module.requires_grad_(False).eval()


def _filled(converted: Any, old: Any, cast: Any) -> nn.Module:
    """``converted`` with the numbers of ``old``, for inference, inside ``cast`` where its type is another: a
    model around it keeps its own."""
    import torch

    with torch.no_grad():
        converted.weight.copy_(old.weight)
        if old.bias is not None:
            converted.bias.copy_(old.bias)
    converted.requires_grad_(False)
    module: nn.Module = converted if converted.weight.dtype == old.weight.dtype else cast(converted)
    return module.eval()


def _empty(layer: Any, *sides: Any, bias: bool, spec: LinearSpec) -> Any:
    """An uninitialised ``nn.Linear`` or ``nn.Conv2d``: initialising one of 16 M weights takes a tenth of a
    second."""
    import torch
    from torch import nn

    device = torch.get_default_device()
    return nn.utils.skip_init(layer, *sides, bias=bias, dtype=getattr(torch, spec.dtype), device=device)
