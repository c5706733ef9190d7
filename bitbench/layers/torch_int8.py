"""torch's own dynamic int8 linear: the quantised baseline to respect.

Torch is imported in the worker's methods.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bitbench.layers.base import LayerCost, LayerKind
from bitbench.layers.specs import TorchInt8Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

LEVELS = {"qnnpack": 255}
"""Steps of the activation grid by engine; all others reduce the range to 7 bits, so that sums of
two uint8 x int8 products fit 16 bits on CPUs without VNNI."""

REDUCED_LEVELS = 127

DOUBLE_BYTES = 8
"""torch keeps the scales of a quantised tensor in double precision."""


class TorchInt8(LayerKind):
    """``torch.ao.quantization.quantize_dynamic`` of an ``nn.Linear``: int8 weights with a scale per
    row or one for all, activations quantised per tensor (asymmetric) inside each call."""

    name = "torch_int8"
    spec = TorchInt8Spec
    backends = ("torch", "x86", "fbgemm", "onednn", "qnnpack")

    def cost(self, spec: TorchInt8Spec, in_features: int, out_features: int) -> LayerCost:
        weights = in_features * out_features
        scales = out_features if spec.scale == "row" else 1
        return LayerCost(weights, DOUBLE_BYTES * scales, 8.0, weights, "int8")

    def numerics(self, spec: TorchInt8Spec) -> dict[str, Any]:
        return {"scale": spec.scale}

    def unsupported(self, spec: TorchInt8Spec, device: str) -> str | None:  # noqa: ARG002
        if device != "cpu":
            return f"torch's dynamic int8 linear runs on the CPU only, not on {device}"
        return None

    def random(
        self,
        spec: TorchInt8Spec,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        seed: int,
    ) -> nn.Module:
        from bitbench.layers.linear import Linear
        from bitbench.layers.specs import LinearSpec

        linear = Linear().random(LinearSpec(kind="linear"), in_features, out_features, bias=bias, seed=seed)
        return _quantize(linear, spec.scale)

    def convert(self, spec: TorchInt8Spec, linear: nn.Linear) -> nn.Module:
        import copy

        return _quantize(copy.deepcopy(linear).float(), spec.scale)

    def copies(self, module: Any, count: int) -> list[nn.Module]:
        # A deep copy would unpack and pack the weights each time; unpacking once is three times faster.
        import copy

        import torch

        packed = module._packed_params._packed_params
        weight, bias = module._weight_bias()
        made: list[nn.Module] = []
        for _ in range(count):
            twin = copy.deepcopy(module, {id(packed): packed})
            twin._packed_params._packed_params = torch.ops.quantized.linear_prepack(weight, bias)
            made.append(twin)
        return made

    def trainable(
        self,
        spec: TorchInt8Spec,  # noqa: ARG002
        in_features: int,  # noqa: ARG002
        out_features: int,  # noqa: ARG002
        *,
        bias: bool,  # noqa: ARG002
    ) -> nn.Module:
        from bitbench.workloads.base import Unsupported

        raise Unsupported("torch's dynamic int8 linear is for inference; train `kind: linear` instead")

    def reference(
        self,
        spec: TorchInt8Spec,  # noqa: ARG002
        module: Any,
        x: torch.Tensor,
        rows: slice,
    ) -> torch.Tensor:
        import torch

        all_codes, all_scales, bias = _unpacked(module)
        codes = all_codes[rows].double()
        levels = LEVELS.get(torch.backends.quantized.engine, REDUCED_LEVELS)
        # The grid spans the data and zero, and zero lies on it.
        low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        step = (high - low) / levels or 1.0
        zero = min(max(round(-low / step), 0), levels)
        q = (torch.round(x.float() / step) + zero).clamp(0, levels) - zero
        scale = all_scales[rows] if all_scales.dim() else all_scales
        y = (q.double() @ codes.T) * (step * scale)
        return y if bias is None else y + bias[rows].double()

    def tolerance(self, spec: TorchInt8Spec, in_features: int) -> float:  # noqa: ARG002
        # The engine multiplies by a rounded reciprocal where the reference divides, so about one
        # activation in 10^4 lands on the neighbouring step. One such flip moves an output by
        # (8 sigma / 127) x 1.7 sigma_w against a largest output of 3.5 sqrt(K) sigma sigma_w, that is by
        # 0.03 / sqrt(K); allow for two.
        return float(0.06 / in_features**0.5)

    def kernel(self, module: nn.Module) -> str:  # noqa: ARG002
        import torch

        return f"torch/quantized_linear_dynamic/{torch.backends.quantized.engine}"

    def dispatch(self, spec: TorchInt8Spec, kernel: str) -> dict[str, str]:  # noqa: ARG002
        parts = kernel.split("/")
        if parts[:2] != ["torch", "quantized_linear_dynamic"] or len(parts) != 3:
            return {}
        return {"backend": "torch", "engine": parts[2], "packed": "yes", "dtype": "int8", "device": "cpu"}


@lru_cache(maxsize=1)
def _unpacked(module: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes int8 ``[out, in]``, scales float64 ``[out]`` or ``[]``, and bias ``[out]`` of a module.

    The engine keeps weights in an order of its own and takes a tenth of a second to undo it for 16 M
    of them; a check asks for several ranges of rows, so the last answer is kept.
    """
    import torch

    weight, bias = module._weight_bias()
    per_row = weight.qscheme() == torch.per_channel_affine
    scales = weight.q_per_channel_scales() if per_row else torch.tensor(weight.q_scale())
    return weight.int_repr(), scales.double(), bias


def _quantize(linear: nn.Module, scale: str) -> nn.Module:
    import warnings

    import torch
    from torch import nn

    from bitbench.workloads.base import Unsupported

    engine = torch.backends.quantized.engine
    if engine == "none":
        raise Unsupported("this torch build has no quantised engine (torch.backends.quantized.engine)")
    with warnings.catch_warnings():
        # torch announces torchao as the successor of this interface; here it is the thing measured.
        warnings.simplefilter("ignore")
        quantization = torch.ao.quantization
        config = (
            quantization.per_channel_dynamic_qconfig
            if scale == "row"
            else quantization.default_dynamic_qconfig
        )
        converted = quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear: config}, inplace=True)
    module: nn.Module = converted[0].eval()
    return module
