"""Activation quantisation for convolutions: one scale a sample, and what the border holds."""

from __future__ import annotations

from torch import Tensor

from impl.convolution import pad
from impl.geometry import ConvGeometry
from impl.quantizers.activations import (
    WINDOWS,
    carrier,
    fake_quantize_activations,
    quantize_activations,
)


def quantize_samples(x: Tensor, bits: int, geometry: ConvGeometry) -> tuple[Tensor, Tensor]:
    """Integer activations and their scale, for each sample of ``x`` [batch, channels, *spatial].

    The rules of :func:`impl.quantizers.quantize_activations` over channels and space together: a
    position's own scale could not leave the sum over the positions that a kernel reads. The border
    holds ``geometry.padding_value``: with 8 and 16 bits a value of the sample, quantised with it, with
    1 and 2 bits -1, 0 or +1, which no mean sees.

    Returns q, padded by :func:`impl.convolution.pad`, and scale float32 [batch, 1, ...].
    """
    dims = tuple(range(1, x.dim()))
    if bits not in WINDOWS:
        return quantize_activations(pad(x, geometry), bits, dims)
    q, scale = quantize_activations(x, bits, dims)
    return pad(q, geometry), scale


def fake_quantize_samples(x: Tensor, bits: int | None, geometry: ConvGeometry) -> Tensor:
    """The values that :func:`quantize_samples` rounds to, padded, in the dtype of ``x``, with the
    gradient of :func:`impl.quantizers.fake_quantize_activations`. ``bits`` None only pads."""
    dims = tuple(range(1, x.dim()))
    if bits is None:
        return pad(x, geometry)
    if bits not in WINDOWS:
        return fake_quantize_activations(pad(x, geometry), bits, dims)
    q, scale = quantize_activations(x, bits, dims)
    return (pad(q, geometry) * scale).to(x.dtype) + pad(carrier(x, scale, bits), geometry, value=0.0)
