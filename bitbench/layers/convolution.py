"""Two-dimensional convolutions of the layer kinds: their exact output.

Worker side: imports torch when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def decoded(module: Any) -> torch.Tensor:
    """Float64 weights ``[out, in, kernel, kernel]`` of a low-bit convolution in either form."""
    import torch

    from bitbench.layers.reference import decode_rows
    from impl.geometry import from_matrix

    if not module.is_packed:
        latent: torch.Tensor = module.dequantize(dtype=torch.float64)
        return latent
    return from_matrix(decode_rows(module.packed_weight, slice(None)), module.geometry)


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    module: Any,
    activation_bits: int | None,
) -> torch.Tensor:
    """``x [batch, in, size, size]`` convolved with ``weight [out, in, kernel, kernel]`` in float64, after
    the activation quantisation, one scale a sample, that belongs to the layer's numerics. ``module``
    says stride and padding, which is by zeros."""
    import torch
    from torch.nn.functional import conv2d

    q, scale = x, torch.ones(())
    if activation_bits is not None:
        from impl.quantizers import quantize_activations

        q, scale = quantize_activations(x, activation_bits, (1, 2, 3))
    y = conv2d(q.to(torch.float64), weight, None, module.stride, module.padding) * scale.to(torch.float64)
    return y if bias is None else y + bias.to(torch.float64)[:, None, None]
