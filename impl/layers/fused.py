"""Modules of torch that read the weight of a linear layer past its ``forward``."""

from __future__ import annotations

from torch import nn


def leave_fused_paths(module: nn.Module) -> None:
    """Have the ``nn.TransformerEncoderLayer`` modules in ``module`` call their linear layers, where those
    have been replaced.

    In evaluation they hand ``linear1.weight`` and ``linear2.weight`` to one fused operator: it would compute
    with a latent weight as if it were not quantised, and packed layers have none. An
    ``nn.TransformerEncoder`` feeds that operator with nested tensors, which goes with it.
    """
    encoders = [m for m in module.modules() if isinstance(m, nn.TransformerEncoder)]
    for layer in module.modules():
        if not isinstance(layer, nn.TransformerEncoderLayer):
            continue
        if type(layer.linear1) is nn.Linear and type(layer.linear2) is nn.Linear:
            continue
        layer.activation_relu_or_gelu = 0  # the fused operator knows these two activations only
        for encoder in encoders:
            if any(layer is own for own in encoder.layers):
                encoder.use_nested_tensor = False
