"""The exact ``memory.*`` figures of one layer, and of a whole network. Worker side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitbench.measure.memory import file_bytes, ledger, peak_on

if TYPE_CHECKING:
    from torch import nn


def byte_figures(module: nn.Module, plain: nn.Module, format_bits: float) -> dict[str, float]:
    """Bytes of ``module``, and what they are to ``plain``, fp32 layers of torch with as many weights.

    ``format_bits``: bits per weight of the format before scales.
    """
    own, fp32 = ledger(module), ledger(plain)
    own_file, fp32_file = file_bytes(module), file_bytes(plain)
    return {
        "memory.codes_bytes": float(own["codes"]),
        "memory.scales_bytes": float(own["scales"]),
        "memory.bias_bytes": float(own["bias"]),
        "memory.buffers_bytes": float(own["buffers"]),
        "memory.slack_bytes": float(own["slack"]),
        "memory.layer_bytes": float(own["layer"]),
        "memory.file_bytes": float(own_file),
        "memory.format_bits": format_bits,
        **weight_figures(own, fp32),
        "memory.layer_ratio": fp32["layer"] / own["layer"],
        "memory.file_ratio": fp32_file / own_file,
    }


def weight_figures(own: Mapping[str, int], fp32: Mapping[str, int]) -> dict[str, float]:
    """Bytes of the weights in ledger ``own``, and what they are to those in ``fp32``, of float32 layers."""
    weight = own["codes"] + own["scales"]
    return {
        "memory.weight_bytes": float(weight),
        "memory.bits_per_weight": 8.0 * weight / (fp32["codes"] / 4),
        "memory.weight_ratio": fp32["codes"] / weight,
        "memory.weight_ratio_bf16": fp32["codes"] / 2 / weight,
    }


def model_figures(model: nn.Module, plain: nn.Module) -> dict[str, float]:
    """Bytes of ``model``, a whole network, and what they are to ``plain``, the same in float32."""
    own, fp32 = ledger(model)["layer"], ledger(plain)["layer"]
    return {"memory.model_bytes": float(own), "memory.model_ratio": fp32 / own}


def peak_figure(module: nn.Module, x: Any, device: str) -> dict[str, float]:
    """``memory.peak_bytes``: rise of the high-water mark over one call, after one that pays for first
    use. Empty where the device does not tell."""
    import torch

    with torch.inference_mode():
        module(x)
        peak = peak_on(device, lambda: module(x))
    return {} if peak is None else {"memory.peak_bytes": float(peak)}
