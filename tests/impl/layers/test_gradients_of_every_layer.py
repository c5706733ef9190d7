"""Gradients of every layer, in both forms, against autograd of the same formula in plain torch.

The formulas below take the quantised values from the layer (other tests say what those are) and
state, in ordinary differentiable torch, which way gradients go: through which window to a latent
weight, to the bias, and through quantised activations to the input.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.layers import (
    BinaryMultiheadAttention,
    LearnableBias,
    NormedLinear,
    QuantizedLinear,
    RMSNorm,
    RPReLU,
    RSign,
)
from impl.layers.activations import (
    ApproxSign,
    DoReFa,
    MagnitudeAwareSign,
    SteHeaviside,
    SteSign,
    SteTern,
    SwishSign,
)
from impl.layers.conv import QuantizedConv
from impl.layers.embedding import Lookup
from impl.layers.embedding_bag import BagReduction
from impl.layers.nbit import GroupwiseLinear, NBitConv2d, NBitLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def through(value, carrier):
    """``value`` with the gradient of ``carrier``."""
    return carrier + (value - carrier).detach()


def clipped(x, low=-1.0, high=1.0):
    return x.clamp(low, high)


def parabola(x):
    """Its slope is 2 - 2|x| within -1 .. 1."""
    inside = x.clamp(-1, 1)
    return 2 * inside - inside * inside.abs()


def weight_of(layer):
    value = layer.dequantize()
    if layer.weight is None:
        return value
    return through(
        value, clipped(layer.weight) if getattr(layer, "ste", "identity") == "clip" else layer.weight
    )


def activations_of(x, bits, dims=(-1,)):
    if bits is None:
        return x
    if bits == 1:
        scale = x.detach().abs().mean(dim=dims, keepdim=True)
        inside = x.detach().abs() <= 2 * scale
        return through(torch.where(x >= 0, 1.0, -1.0) * scale, x * inside)
    if bits == 2:
        magnitudes = x.detach().abs()
        kept = magnitudes > 0.75 * magnitudes.mean(dim=dims, keepdim=True)
        scale = (magnitudes * kept).sum(dim=dims, keepdim=True) / kept.sum(dim=dims, keepdim=True)
        return through(x.detach().sign() * kept * scale, x * (magnitudes <= 1.5 * scale))
    levels = {4: 7, 8: 127, 16: 32512}[bits]
    scale = x.detach().abs().amax(dim=dims, keepdim=True) / levels
    return through((x / scale).round() * scale, x)


def linear(layer, x):
    return F.linear(activations_of(x, layer.activation_bits), weight_of(layer), layer.bias)


def convolution(layer, x):
    bits, sides = layer.activation_bits, layer.geometry.torch_padding()
    dims = tuple(range(1, x.dim()))
    if bits == 1:  # the border holds a sign, times the scale of the sample
        scale = x.detach().abs().mean(dim=dims, keepdim=True)
        border = F.pad(torch.zeros_like(x), sides, value=layer.padding_value) * scale
        values = F.pad(activations_of(x, 1, dims), sides) + border
    else:
        values = activations_of(F.pad(x, sides, value=layer.padding_value), bits, dims)
    product = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[x.dim()]
    return product(values, weight_of(layer), layer.bias, layer.stride, 0, layer.dilation, layer.groups)


def nbit_convolution(layer, x):
    values = activations_of(x, layer.activation_bits, (1, 2, 3))
    return F.conv2d(values, weight_of(layer), layer.bias, layer.stride, layer.padding, layer.dilation)


def groupwise(layer, x):
    return F.linear(x, (layer.weight + 0)[: layer.in_features].t(), layer.bias)


def lookup(layer, index):
    return F.embedding(index, weight_of(layer), layer.padding_idx)


def bag(layer, index):
    if layer.mode != "majority":
        return F.embedding_bag(index, weight_of(layer), mode=layer.mode, padding_idx=layer.padding_idx)
    if layer.weight is None:
        return layer(index)  # nothing to differentiate
    signs = through(torch.where(layer.weight >= 0, 1.0, -1.0), layer.weight)
    votes = F.embedding_bag(index, signs, mode="sum")
    return through(torch.where(votes >= 0, 1.0, -1.0), votes)


def attention(layer, x):
    query, key, value = (
        linear(part, x).unflatten(-1, (layer.num_heads, layer.head_dim)).transpose(1, 2)
        for part in (layer.q_linear, layer.k_linear, layer.v_linear)
    )
    scores = (query @ key.transpose(-2, -1) / layer.head_dim**0.5).softmax(-1)
    return linear(layer.out, (scores @ value).transpose(1, 2).flatten(2)), scores


def rms_norm(layer, x):
    y = x / (x.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    return y if layer.weight is None else y * layer.weight


def rsign(layer, x):
    shifted = x + layer.bias.view(-1, 1)
    return through(torch.where(shifted >= 0, 1.0, -1.0), parabola(shifted))


def rprelu(layer, x):
    first, slope, last = (p.view(-1, 1) for p in (layer.input_bias, layer.weight, layer.output_bias))
    return (
        torch.maximum(x + first, torch.zeros(())) + slope * torch.minimum(x + first, torch.zeros(())) + last
    )


def swish(layer, x):
    """2 sigmoid(bx) (1 + bx (1 - sigmoid(bx))) - 1, whose slope BNN+ (Darabi et al., 2018) uses."""
    scaled = layer.beta * x
    gate = torch.sigmoid(scaled)
    return through(torch.where(x >= 0, 1.0, -1.0), 2 * gate * (1 + scaled * (1 - gate)) - 1)


def magnitude_aware(layer, x):
    return through(layer(x), clipped(x) * x.detach().abs().mean(1, keepdim=True))


def dorefa(layer, x):
    if layer.mode == "activations":
        return through(layer(x), clipped(x, 0.0))
    return through(layer(x), torch.tanh(x) / torch.tanh(x.detach()).abs().max())


REFERENCES = {
    QuantizedLinear: linear,
    QuantizedConv: convolution,
    NBitLinear: linear,
    NBitConv2d: nbit_convolution,
    GroupwiseLinear: groupwise,
    Lookup: lookup,
    BagReduction: bag,
    BinaryMultiheadAttention: attention,
    LearnableBias: lambda layer, x: x + layer.bias,
    NormedLinear: lambda layer, x: linear(layer.linear, rms_norm(layer.norm, x)),
    RMSNorm: rms_norm,
    RSign: rsign,
    RPReLU: rprelu,
    SteSign: lambda layer, x: through(layer(x), clipped(x)),
    ApproxSign: lambda layer, x: through(layer(x), parabola(x)),
    SwishSign: swish,
    SteHeaviside: lambda layer, x: through(layer(x), clipped(x)),
    MagnitudeAwareSign: magnitude_aware,
    SteTern: lambda layer, x: through(layer(x), clipped(x)),
    DoReFa: dorefa,
}


def reference_of(layer):
    kind = next(kind for kind in REFERENCES if isinstance(layer, kind))
    return functools.partial(REFERENCES[kind], layer)


def widened(every_layer, layer_case, packed):
    """The layer with weights on both sides of every window."""
    layer = layer_case.build()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if type(parameter) is nn.Parameter:
                generator = torch.Generator().manual_seed(len(name))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.8)
    for form in every_layer.two_forms(layer) if packed else ():
        form.pack()
    return layer


def test_gradients_are_those_of_the_formula(every_layer, layer_case, packed):
    """D14: forward and backward agree about the sign of zero and use one window."""
    layer, x = widened(every_layer, layer_case, packed), layer_case.inputs()
    if x.is_floating_point():
        x.view(-1)[::7] = 0.0
    y, found = every_layer.run(layer, x, layer)
    values, expected = every_layer.run(reference_of(layer), x, layer)
    for a, b in zip(y, values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert found.keys() == expected.keys()
    trained = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert found.keys() - {"input"} == trained
    # Of all: that of an attention's key bias is zero but for rounding.
    largest = max((gradient.abs().max().item() for gradient in expected.values()), default=0.0)
    # Products of int8 gradients: test_int8_training.py has their exact values.
    rounded = {"input"} if getattr(layer, "int8_training", False) and not packed else set()
    for name, gradient in expected.items():
        atol = (2e-2 if name in rounded else 1e-6) * largest
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.parametrize("needs", ["input", "bias"])
def test_gradients_asked_for_alone(every_layer, layer_case, packed, needs):
    """Frozen parts neither receive gradients nor stop those of others."""
    layer, x = widened(every_layer, layer_case, packed), layer_case.inputs()
    everything = every_layer.gradients(layer, x)
    asked = {name for name in everything if name.split(".")[-1] == needs}
    if not asked:
        return
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in asked)
    layer.zero_grad()
    leaf = x.clone().requires_grad_(needs == "input")
    loss = sum(
        (part * torch.arange(1.0, part.numel() + 1).view(part.shape)).sum()
        for part in every_layer.outputs(layer, leaf)
    )
    loss.backward()
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    found |= {} if leaf.grad is None else {"input": leaf.grad}
    assert found.keys() == asked
    for name in asked:
        torch.testing.assert_close(found[name], everything[name], rtol=1e-5, atol=1e-5)
