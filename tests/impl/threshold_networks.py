"""Networks of binary layers with batch norms and signs between them, and the check of fused ones."""

from __future__ import annotations

import copy

import torch
from torch import nn

import impl
from impl.layers.activations import ApproxSign, RSign, SteSign, SwishSign
from impl.layers.threshold import ThresholdLayer
from impl.thresholds import fuse_thresholds

NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {
    "binary": {1: impl.BinaryConv1d, 2: impl.BinaryConv2d, 3: impl.BinaryConv3d},
    "ternary": {1: impl.TernaryConv1d, 2: impl.TernaryConv2d, 3: impl.TernaryConv3d},
    "k_ternary": {1: impl.MultiTernaryConv1d, 2: impl.MultiTernaryConv2d, 3: impl.MultiTernaryConv3d},
}
LINEAR = {"binary": impl.BinaryLinear, "ternary": impl.BitLinear, "k_ternary": impl.MultiTernaryLinear}


def choice(generator, values, *shape):
    return torch.tensor(values)[torch.randint(len(values), shape, generator=generator)]


def layer_of(dims, kind, inputs, outputs, bits, generator, bias=True, ties=False, **options):
    """A packed layer of random codes. ``ties``: scales and bias that keep its results on a coarse grid."""
    groups = options.get("groups", 1)
    kernel = options.pop("kernel", (3,) * dims)
    values = [-1, 1] if kind == "binary" else [-1, 0, 1]
    components = 2 if kind == "k_ternary" else 1
    codes = choice(generator, values, components, outputs, inputs // groups, *kernel).to(torch.int8)
    scales = torch.randn(components, outputs, 1, generator=generator)
    offset = torch.randn(outputs, generator=generator)
    if ties:
        scales = choice(generator, [0.5, 1.0, -1.0, 2.0], components, outputs, 1)
        offset = choice(generator, [0.0, 1.0, -2.5], outputs)
    cls = CONVOLUTIONS[kind][dims] if dims else LINEAR[kind]
    return cls.from_codes(codes, scales, offset if bias else None, activation_bits=bits, **options)


def norm_of(dims, channels, generator, ties=False):
    """A batch norm in evaluation form, gammas of every sign and 0 among them. ``ties``: often 0."""
    norm = NORMS[dims](channels, eps=0.0 if ties else 1e-5).eval()
    norm.running_mean.copy_(torch.randn(channels, generator=generator) * 3)
    norm.running_var.copy_(torch.rand(channels, generator=generator) * 4 + 0.01)
    gammas = torch.randn(channels, generator=generator)
    betas = torch.randn(channels, generator=generator)
    if ties:
        norm.running_mean.copy_(choice(generator, [0.0, 1.0, -2.0, 0.5], channels))
        norm.running_var.copy_(choice(generator, [1.0, 4.0, 0.25], channels))
        gammas = choice(generator, [1.0, -1.0, 2.0, 0.0], channels)
        betas = choice(generator, [0.0, 0.5, -0.0], channels)
    with torch.no_grad():
        norm.weight.copy_(gammas)
        norm.bias.copy_(betas)
    norm.weight.data[0] = 0.0
    return norm


def sign_of(name, channels, generator):
    made = {"ste": SteSign, "approx": ApproxSign, "swish": SwishSign}
    if name != "rsign":
        return made[name]()
    sign = RSign(channels)
    sign.bias.data.copy_(torch.randn(channels, generator=generator))
    return sign


def same(actual, expected):
    return (
        actual.dtype == expected.dtype
        and torch.equal(actual.isnan(), expected.isnan())
        and torch.equal(actual.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))
    )


def assert_fused(net, x, dtype=torch.float32, layers=3):
    """The fused network against ``net``, with the native kernels and with torch."""
    fused = fuse_thresholds(copy.deepcopy(net), dtype)
    assert sum(isinstance(module, ThresholdLayer) for module in fused.modules()) == layers
    with torch.no_grad():
        expected = net(x)
        assert same(fused(x), expected)
        with impl.backend("torch"):
            assert same(fused(x), expected)
    return fused
