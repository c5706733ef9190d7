"""Two-dimensional convolutions of the layer kinds: how one is made, and its exact output.

Worker side: imports torch when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.suite.convolutions import ConvShape


def random_float(shape: ConvShape, *, bias: bool, seed: int, dtype: str) -> nn.Conv2d:
    """An ``nn.Conv2d`` with the deviation of a trained one, for inference."""
    import torch
    from torch import nn

    made: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d,
        shape.in_channels,
        shape.out_channels,
        shape.kernel,
        shape.stride,
        shape.padding,
        bias=bias,
        dtype=getattr(torch, dtype),
    )
    fill(made, shape, seed)
    return made.requires_grad_(False).eval()


def fill(module: nn.Module, shape: ConvShape, seed: int) -> None:
    """Give the float parameters of ``module`` random values: uniform, with a trained layer's deviation."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    bound = (3 / shape.columns) ** 0.5
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-bound, bound, generator=generator)


def random_packed(
    layer: Any,
    shape: ConvShape,
    *,
    components: int,
    format: str,
    scale_rows: int,
    scale_dtype: torch.dtype,
    activation_bits: int | None,
    bias: bool,
    seed: int,
) -> nn.Module:
    """A packed convolution of the class ``layer`` (:mod:`impl.layers`) with random codes."""
    import torch

    from bitbench.layers.quantized import random_codes

    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(format, components, shape.out_channels, shape.columns, generator)
    codes = codes.view(components, *shape.shape, shape.kernel, shape.kernel)
    scales = torch.empty(components, scale_rows, 1).uniform_(0.5, 1.5, generator=generator)
    scales *= shape.columns**-0.5
    offset = torch.empty(shape.out_channels).uniform_(-1, 1, generator=generator) if bias else None
    made: nn.Module = layer.from_codes(
        codes,
        scales.to(scale_dtype),
        offset,
        stride=shape.stride,
        padding=shape.padding,
        format=format,
        activation_bits=activation_bits,
    )
    return made.requires_grad_(False).eval()


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
