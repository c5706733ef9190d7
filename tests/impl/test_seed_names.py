"""The names, signatures and attributes of the seeds answer, in every state of a layer."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import impl


@pytest.mark.parametrize(
    ("function", "leading"),
    [
        (impl.BitLinear, ["in_features", "out_features", "bias", "device", "dtype"]),
        (impl.MultiTernaryLinear, ["in_features", "out_features", "k", "bias", "device", "dtype"]),
        (impl.BinaryLinear, ["in_features", "out_features", "bias", "device", "dtype"]),
        (impl.BitLinear.from_linear, ["linear"]),
        (impl.MultiTernaryLinear.from_linear, ["linear", "k"]),
        (impl.convert_linear_to_bitlinear, ["module", "inplace"]),
        (impl.bitlinear_python, ["x", "W_ternary", "gamma", "bias"]),
        (impl.multi_ternary_linear_python, ["x", "W_ternary", "gammas", "bias"]),
        (impl.greedy_ternary_decomposition, ["W", "k"]),
        (impl.weight_to_ternary, ["W", "per_channel"]),
    ],
)
def test_positional_parameters_are_those_of_the_seed(function, leading):
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == leading


def test_every_public_name_exists():
    for name in impl.__all__:
        assert getattr(impl, name) is not None


def test_defaults_are_those_of_the_seed():
    layer = impl.BitLinear(12, 5)
    assert layer.bias is not None
    assert layer.activation_bits is None
    assert impl.MultiTernaryLinear(12, 5).k == 2
    assert impl.MultiTernaryLinear(12, 5, 3, False).bias is None


@pytest.mark.parametrize("options", [{}, {"rule": "optimal"}, {"scale": "row"}, {"format": "two_bit"}])
def test_ternary_attributes_describe_the_function_in_either_form(options):
    torch.manual_seed(0)
    layer = impl.BitLinear(30, 22, **options)
    x = torch.randn(4, 30)
    for _ in range(2):
        W, gamma = layer.W_ternary, layer.gamma
        assert W.shape == (22, 30)
        assert gamma.shape == (22,)
        assert W.dtype == gamma.dtype == torch.float32
        assert set(W.unique().tolist()) <= {-1.0, 0.0, 1.0}
        torch.testing.assert_close(
            impl.bitlinear_python(x, W, gamma, layer.bias), layer(x), rtol=1e-4, atol=1e-5
        )
        layer.pack()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_k_ternary_attributes_describe_the_function_in_either_form(k):
    torch.manual_seed(0)
    layer = impl.MultiTernaryLinear(30, 22, k=k)
    x = torch.randn(4, 30)
    for _ in range(2):
        W, gammas = layer.W_ternary, layer.gammas
        assert W.shape == (k, 22, 30)
        assert gammas.shape == (k, 22)
        expected = impl.multi_ternary_linear_python(x, W, gammas, layer.bias)
        torch.testing.assert_close(expected, layer(x), rtol=1e-4, atol=1e-5)
        layer.pack()


def test_binary_attributes_describe_the_weight_in_either_form():
    layer = impl.BinaryLinear(30, 22)
    for _ in range(2):
        torch.testing.assert_close(layer.W_binary * layer.gamma[:, None], layer.dequantize())
        layer.pack()
    grouped = impl.BinaryLinear(30, 22, group_size=8).pack()
    assert grouped.gamma.shape == (22, 4)
    assert impl.BitLinear(30, 22, group_size=8).gamma.shape == (22, 4)
    assert impl.MultiTernaryLinear(30, 22, group_size=8).gammas.shape == (2, 22, 4)


def test_the_seeds_codes_make_a_packed_layer():
    linear = nn.Linear(30, 22)
    W, gamma = impl.weight_to_ternary(linear.weight)
    layer = impl.BitLinear.from_codes(W.to(torch.int8), gamma.view(1, -1, 1), linear.bias)
    assert torch.equal(layer.W_ternary, W)
    assert torch.equal(layer.gamma, gamma)
    same = impl.BitLinear.from_linear(linear, rule="absmax")
    assert torch.equal(same.codes, layer.codes)
    assert torch.equal(same.gamma, gamma)


def test_greedy_decomposition_makes_a_packed_layer():
    weight = torch.randn(22, 30)
    W, gammas = impl.greedy_ternary_decomposition(weight, 3)
    layer = impl.MultiTernaryLinear.from_codes(W.to(torch.int8), gammas.unsqueeze(-1))
    torch.testing.assert_close(layer.dequantize(), (W * gammas.unsqueeze(-1)).sum(0))
    assert torch.equal(layer.W_ternary, W)
