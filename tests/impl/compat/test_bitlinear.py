"""krisaujla's BitLinear: names, rule and states of the original, without its defects."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from impl import ConversionReport
from impl.compat import bitlinear
from impl.compat.bitlinear import BitLinear, MultiTernaryLinear


@pytest.mark.parametrize(
    ("name", "positional"),
    [
        ("BitLinear", ["in_features", "out_features", "bias", "device", "dtype"]),
        ("MultiTernaryLinear", ["in_features", "out_features", "k", "bias", "device", "dtype"]),
        ("convert_linear_to_bitlinear", ["module", "inplace"]),
        ("bitlinear_python", ["x", "W_ternary", "gamma", "bias"]),
        ("multi_ternary_linear_python", ["x", "W_ternary", "gammas", "bias"]),
        ("greedy_ternary_decomposition", ["W", "k"]),
        ("absmax_scale", ["tensor", "dim"]),
        ("ternary_quantize", ["tensor", "scale"]),
        ("weight_to_ternary", ["W", "per_channel"]),
    ],
)
def test_signatures_of_the_original(name, positional):
    parameters = inspect.signature(getattr(bitlinear, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional


def test_the_whole_list_is_there():
    assert set(bitlinear.__all__) >= {
        "activation_quant",
        "compression_ratio",
        "dequantize_scale",
        "estimate_memory_savings",
        "pack_ternary_base3",
        "quantize_activations_absmax",
        "unpack_ternary_base3",
    }
    for name in bitlinear.__all__:
        assert callable(getattr(bitlinear, name))


def test_the_rule_is_the_original_one():
    linear = nn.Linear(30, 22)
    ternary, gamma = bitlinear.weight_to_ternary(linear.weight)
    x = torch.randn(4, 30)
    expected = bitlinear.bitlinear_python(x, ternary, gamma, linear.bias)
    for layer in (BitLinear.from_linear(linear), BitLinear.from_linear(linear, pack=False)):
        assert torch.equal(layer.W_ternary, ternary)
        assert torch.equal(layer.gamma, gamma)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_components_are_the_greedy_ones(k):
    linear = nn.Linear(30, 22)
    ternary, gammas = bitlinear.greedy_ternary_decomposition(linear.weight, k)
    layer = MultiTernaryLinear.from_linear(linear, k)
    assert torch.equal(layer.W_ternary, ternary)
    torch.testing.assert_close(layer.gammas, gammas)
    assert MultiTernaryLinear(30, 22).k == 2


def test_layers_are_small():
    """seed 004: memory is that of the float weight, packed bytes are only an estimate."""
    layer = BitLinear.from_linear(nn.Linear(640, 640, bias=False))
    held = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert held < 640 * 640 * 4 / 18


def test_an_optimizer_keeps_weights_ternary():
    """seed 004: W_ternary is itself the trained parameter, so a step makes it anything."""
    torch.manual_seed(0)
    layer = BitLinear(24, 6)
    before = layer.W_ternary
    optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()
    assert set(layer.W_ternary.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert not torch.equal(layer.W_ternary, before)


def test_device_and_dtype_are_honoured():
    """seed 004: device and dtype are ignored."""
    assert BitLinear(8, 4, device="meta").weight.is_meta
    assert MultiTernaryLinear(8, 4, 2, True, "meta", torch.bfloat16).weight.dtype == torch.bfloat16
    layer = BitLinear.from_linear(nn.Linear(8, 4, dtype=torch.bfloat16))
    assert layer.bias.dtype == layer.weight_dtype == torch.bfloat16


def test_conversion_takes_the_root_and_spares_what_is_read():
    """seed 004: the root is left as it is; seed 004: subclasses that attention reads are replaced."""
    assert isinstance(bitlinear.convert_linear_to_bitlinear(nn.Linear(8, 4)), BitLinear)
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    model[0].weight = model[2].weight
    report = ConversionReport()
    converted = bitlinear.convert_linear_to_bitlinear(model, False, report=report)
    assert isinstance(model[0], nn.Linear)
    assert report.converted == ["0", "2"]
    assert list(report.skipped) == ["1.out_proj"]
    assert converted[0].codes is converted[2].codes
    kept = bitlinear.convert_linear_to_bitlinear(model, False, skip=["2", "0"], report=ConversionReport())
    assert isinstance(kept[0], nn.Linear)


def original_state(linear, k=None):
    if k is None:
        ternary, gamma = bitlinear.weight_to_ternary(linear.weight)
        return {"W_ternary": ternary, "gamma": gamma, "bias": linear.bias.detach()}
    ternary, gammas = bitlinear.greedy_ternary_decomposition(linear.weight, k)
    return {"W_ternary": ternary, "gammas": gammas, "bias": linear.bias.detach()}


@pytest.mark.parametrize("packed", [False, True])
def test_states_of_the_original_load(packed):
    linear = nn.Linear(30, 22)
    state = original_state(linear)
    model = nn.Sequential(BitLinear(30, 22), nn.Tanh())
    if packed:
        model[0].pack()
    model.load_state_dict({f"0.{key}": value for key, value in state.items()}, strict=True)
    assert model[0].is_packed
    assert torch.equal(model[0].W_ternary, state["W_ternary"])
    assert torch.equal(model[0].gamma, state["gamma"])
    assert set(state) == {"W_ternary", "gamma", "bias"}
    several = MultiTernaryLinear(30, 22, 3)
    several.load_state_dict(original_state(linear, 3))
    assert torch.equal(several.W_ternary, original_state(linear, 3)["W_ternary"])


def test_states_of_the_original_are_checked():
    state = original_state(nn.Linear(30, 22))
    layer = BitLinear(30, 22)
    for change, message in (
        ({"W_ternary": state["W_ternary"] + 0.1}, "an optimizer has moved it"),
        ({"W_ternary": state["W_ternary"][:, 1:]}, r"W_ternary has shape \[22, 29\]"),
        ({"W_ternary": state["W_ternary"].expand(2, 22, 30)}, r"W_ternary has shape \[2, 22, 30\]"),
        ({"gamma": state["gamma"][1:]}, r"gamma has shape \[21\]"),
        ({"gamma": state["gamma"] / 0}, "gamma holds NaN or infinite"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, **change})
        assert not layer.is_packed
    for gamma in (1e6, 1e-9):
        small = BitLinear(30, 22, scale_dtype=torch.float16)
        with pytest.raises(RuntimeError, match=r"gamma holds scales that torch\.float16 cannot"):
            small.load_state_dict({**state, "gamma": torch.full((22,), gamma)})
    with pytest.raises(RuntimeError, match="group_size=8"):
        BitLinear(30, 22, group_size=8).load_state_dict(state)
