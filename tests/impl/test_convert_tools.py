"""Whole models by bitorch_engine's names: finding, replacing, preparing, packing."""

from __future__ import annotations

import copy

import pytest
import torch
from hook_kinds import KINDS, hook
from mixed_model import mixed, outputs
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear
from impl.compat.bitorch_engine import BinaryLinearBase, BinaryLinearCPP, BinaryLinearCuda
from impl.compat.bitorch_engine.utils.convert import quantize_linear_with_binary_linear_cuda
from impl.convert_tools import (
    collect_layers,
    pack_bie_layers,
    prepare_bie_layers,
    quantize_linear_with,
    quantize_linear_with_binary_linear,
    quantize_linear_with_k_ternary_linear,
    quantize_linear_with_ternary_linear,
    replace_layers,
)
from impl.layers.binary_conv import BinaryConv1d
from impl.layers.nbit import NBitLinear

CONVERTERS = {
    quantize_linear_with_binary_linear: BinaryLinear,
    quantize_linear_with_ternary_linear: BitLinear,
    quantize_linear_with_k_ternary_linear: MultiTernaryLinear,
    quantize_linear_with_binary_linear_cuda: BinaryLinearCuda,
}


class Network(nn.Module):
    """Linear layers in every kind of container."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        inner = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.list = nn.ModuleList([nn.Linear(16, 16, bias=False), inner])
        self.dict = nn.ModuleDict({"a": nn.Linear(16, 4)})

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.dict["a"](self.list[1](self.list[0](x)))


NAMES = ["first", "list.0", "list.1.0", "dict.a"]


# ---- finding and replacing ------------------------------------------------------------------------


def test_collecting_finds_layers_of_exactly_these_types_root_included():
    model = Network()
    assert list(collect_layers(model)) == NAMES
    assert list(collect_layers(model, [nn.ReLU, nn.ModuleDict])) == ["list.1.1", "dict"]
    assert list(collect_layers(model, parent_name="net")) == [f"net.{name}" for name in NAMES]
    linear = nn.Linear(2, 2)
    assert collect_layers(linear) == {"": linear}
    assert collect_layers(nn.MultiheadAttention(4, 2)) == {}
    model.again = model.first
    assert list(collect_layers(model)) == [*NAMES, "again"]


def test_replacing_reaches_every_container():
    model = Network()
    new = replace_layers(model, NAMES, nn.Identity, lambda old: nn.Identity())
    assert len(new) == 4
    assert list(collect_layers(model, [nn.Identity])) == NAMES
    assert collect_layers(model) == {}
    assert replace_layers(model, NAMES, nn.Identity, lambda old: pytest.fail("replaced twice")) == []


def test_replacing_takes_names_below_a_parent_name():
    model = Network()
    new = replace_layers(model.list, ["net.list.0"], nn.Identity, lambda old: nn.Identity(), "net.list")
    assert new == [model.list[0]]
    with pytest.raises(ValueError, match=r"'first' does not begin with parent_name='net'"):
        replace_layers(model, ["first"], nn.Identity, lambda old: nn.Identity(), "net")


def test_a_layer_under_two_names_stays_one():
    model = Network()
    model.again = model.first
    new = replace_layers(model, ["first", "again"], nn.Identity, lambda old: nn.Identity())
    assert new == [model.first]
    assert model.again is model.first


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["frist"], ValueError, "no such layer to replace: 'frist'; did you mean 'first'"),
        ("first", TypeError, "takes a list"),
        ([""], ValueError, "the Network given cannot be replaced in place"),
        (["list", "list.0"], ValueError, "'list.0' is inside 'list'"),
        (["first", "list.0"], TypeError, "list.0: replace_fn returned a ReLU, not a Identity"),
    ],
)
def test_names_that_cannot_be_replaced_change_nothing(names, error, message):
    model = Network()
    before = dict(model.named_modules())

    def make(old):
        return nn.Identity() if old is model.first else nn.ReLU()

    with pytest.raises(error, match=message):
        replace_layers(model, names, nn.Identity, make)
    assert dict(model.named_modules()) == before


@pytest.mark.parametrize("convert", CONVERTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_converters_keep_weight_bias_dtype_and_mode(convert, dtype):
    """D17; kyegomez: conversion throws pretrained weights, biases and dtypes away."""
    torch.manual_seed(0)
    model = Network().to(dtype).eval()
    original = copy.deepcopy(model)
    new = convert(model, NAMES[:3])
    assert new == [model.first, model.list[0], model.list[1][0]]
    assert type(model.dict["a"]) is nn.Linear
    for name in NAMES[:3]:
        old, layer = original.get_submodule(name), model.get_submodule(name)
        assert type(layer) is CONVERTERS[convert]
        assert not layer.training
        assert (layer.bias is None) == (old.bias is None)
        if old.bias is not None:
            assert torch.equal(layer.bias, old.bias)
        assert decoded(layer).shape == old.weight.shape
        pairs = torch.stack([decoded(layer).flatten(), old.weight.detach().float().flatten()])
        assert torch.corrcoef(pairs)[0, 1] > 0.7
        assert layer(torch.randn(2, old.in_features, dtype=dtype)).dtype == dtype


def decoded(layer):
    if isinstance(layer, BinaryLinearBase):
        return torch.where(layer.weight.detach() >= 0, 1.0, -1.0)
    return layer.dequantize()


def test_conversion_options_and_ties_are_kept():
    model = Network()
    model.list[1][0].weight = model.list[0].weight
    new = quantize_linear_with(model, ["list.0", "list.1.0"], BitLinear, pack=False, activation_bits=8)
    assert [layer.activation_bits for layer in new] == [8, 8]
    assert model.list[1][0].weight is model.list[0].weight


@pytest.mark.parametrize("convert", CONVERTERS)
def test_layers_that_cannot_be_converted_are_named(convert):
    model = Network()
    model.again = model.first
    with pytest.raises(ValueError, match="'first' is also called 'again': name both"):
        convert(model, ["first"])
    assert len(convert(model, ["first", "again"])) == 1
    assert model.again is model.first
    with pytest.raises(ValueError, match=r"no such layer to replace: 'list\.2'"):
        convert(model, ["list.2"])
    with pytest.raises(ValueError, match="the Linear given cannot be replaced in place"):
        convert(nn.Linear(2, 2), [""])
    assert convert(model, []) == []


@pytest.mark.parametrize("convert", CONVERTERS)
def test_layers_that_something_relies_on_are_left_alone(convert):
    """Attention reads its projection's weight; ties to other layers would be lost."""
    attention = nn.MultiheadAttention(16, 2)
    with pytest.warns(UserWarning, match="unconverted: out_proj: .* is a subclass of nn.Linear"):
        assert convert(attention, ["out_proj"]) == []
    model = Network()
    model.list[1][0].weight = model.list[0].weight
    with pytest.warns(UserWarning, match=r"unconverted: list\.0: its weight is shared with a Linear"):
        assert convert(model, ["list.0"]) == []
    model.table = nn.Embedding(16, 16)
    model.table.weight = model.list[0].weight
    with pytest.warns(UserWarning, match=r"list\.1\.0: its weight is shared with a[n ]*\w+, which is not"):
        assert convert(model, ["list.0", "list.1.0"]) == []
    assert type(model.list[0]) is nn.Linear


@pytest.mark.parametrize("convert", CONVERTERS)
def test_the_warning_points_at_the_caller(convert):
    """However many functions of the package are between: it named a line of the library."""
    with pytest.warns(UserWarning, match="out_proj") as record:
        convert(nn.MultiheadAttention(16, 2), ["out_proj"])
    assert record[0].filename == __file__


@pytest.mark.parametrize("convert", CONVERTERS)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_hooks_are_left_alone(convert, kind):
    model = Network()
    hook(model.dict["a"], kind)
    with pytest.warns(UserWarning, match=r"unconverted: dict\.a: it has hooks"):
        assert convert(model, ["dict.a", "first"]) == [model.first]
    assert type(model.dict["a"]) is nn.Linear


@pytest.mark.parametrize("convert", CONVERTERS)
def test_linear_layers_that_share_a_weight_share_it_afterwards(convert):
    model = Network()
    model.list[1][0].weight = model.list[0].weight
    one, two = convert(model, ["list.0", "list.1.0"])
    assert (one.bias is None, two.bias is None) == (True, False)
    if isinstance(one, BinaryLinearCuda):
        assert one.weight is two.weight
    else:
        assert one.codes is two.codes


# ---- preparing and packing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [BinaryLinearCuda, BinaryLinearCPP, BitLinear, MultiTernaryLinear, NBitLinear, BinaryConv1d]
)
def test_a_bare_layer_is_prepared_and_packed(kind):
    """D12: the root module was skipped."""
    layer = kind(8, 4, 3) if kind is BinaryConv1d else kind(8, 4)
    before = layer.weight
    assert prepare_bie_layers(layer) == [""]
    assert (layer.weight is not before) == (kind is BinaryLinearCuda)  # one byte a weight from here on
    assert pack_bie_layers(layer) == [""]
    assert layer.weight is None
    packed = "qweight" if isinstance(layer, BinaryLinearBase | NBitLinear) else "codes"
    assert layer.get_buffer(packed).dtype == torch.uint8


def test_packing_reaches_every_layer_and_keeps_the_numbers():
    """D12; the original left embeddings out."""
    model = mixed()
    expected = outputs(model)
    assert pack_bie_layers(model, qweight_only=False) == ["0", "2", "3", "4"]
    assert model[2].weight is not None
    assert model[3].weight is not None
    assert pack_bie_layers(model) == ["0", "2", "3", "4"]
    assert all(model[i].weight is None for i in (0, 2, 3, 4))
    assert model[1].weight is not None
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    assert pack_bie_layers(model) == ["0", "2", "3", "4"]


def test_only_the_layers_asked_for_are_prepared_and_packed():
    model = mixed()
    assert pack_bie_layers(model, layers=[BitLinear]) == ["2"]
    assert model[3].weight is not None
    assert prepare_bie_layers(model, layers=[BinaryLinearBase]) == ["3", "4"]
    with pytest.raises(TypeError, match=r"1 is a Linear, which has no generate_quantized_weight\(\)"):
        pack_bie_layers(model, layers=[nn.Linear])
    with pytest.raises(TypeError, match=r"1 is a Linear, which has no prepare_params\(\)"):
        prepare_bie_layers(model, layers=[nn.Linear])


def test_packing_keeps_ties_between_layers():
    model = nn.Sequential(BitLinear(8, 8), BitLinear(8, 8))
    model[1].weight = model[0].weight
    pack_bie_layers(model)
    assert model[0].codes is model[1].codes
