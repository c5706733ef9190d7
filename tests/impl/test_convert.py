"""Converting, packing and unpacking whole models."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hook_kinds import KINDS, hook
from torch import nn

from impl import (
    BinaryLinear,
    BitLinear,
    ConversionReport,
    MultiTernaryLinear,
    QuantizedLinear,
    TernaryEmbedding,
    convert_linear_to_bitlinear,
    pack,
    prepare,
    unpack,
)
from impl.convert import has_hooks
from impl.layers.nbit import NBitLinear


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self, tie=False):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(16, 50, bias=False)
        if tie:
            self.lm_head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


TOKENS = torch.arange(12).view(2, 6)


def kinds(model):
    return {name: type(m) for name, m in model.named_modules() if isinstance(m, (nn.Linear, QuantizedLinear))}


@pytest.mark.parametrize("layer", [BitLinear, BinaryLinear, MultiTernaryLinear])
def test_converts_every_linear_and_keeps_what_it_knew(layer):
    torch.manual_seed(0)
    model = Model()
    original = copy.deepcopy(model)
    converted = convert_linear_to_bitlinear(model, layer=layer)
    assert converted is model
    assert set(kinds(model).values()) == {layer}
    for name, old in original.named_modules():
        if not isinstance(old, nn.Linear):
            continue
        new = model.get_submodule(name)
        assert new.is_packed
        assert (new.bias is None) == (old.bias is None)
        if old.bias is not None:
            assert torch.equal(new.bias, old.bias)
        correlation = torch.corrcoef(torch.stack([new.dequantize().flatten(), old.weight.flatten()]))[0, 1]
        assert correlation > 0.7
    assert model(TOKENS).shape == (2, 6, 50)


def test_the_root_is_converted():
    linear = nn.Linear(8, 4)
    converted = convert_linear_to_bitlinear(linear)
    assert isinstance(converted, BitLinear)
    assert isinstance(linear, nn.Linear)
    assert convert_linear_to_bitlinear(converted) is converted


def test_a_copy_leaves_the_model_alone():
    model = Model()
    state = copy.deepcopy(model.state_dict())
    converted = convert_linear_to_bitlinear(model, inplace=False)
    assert converted is not model
    assert set(kinds(model).values()) == {nn.Linear}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert set(kinds(converted).values()) == {BitLinear}


def test_options_dtype_and_device_reach_the_layers():
    model = convert_linear_to_bitlinear(
        Model().bfloat16(), layer=MultiTernaryLinear, k=3, group_size=8, activation_bits=8, format="two_bit"
    )
    layer = model.blocks[0].up
    assert (layer.k, layer.group_size, layer.activation_bits, layer.format) == (3, 8, 8, "two_bit")
    assert layer.bias.dtype == layer.weight_dtype == torch.bfloat16
    meta = convert_linear_to_bitlinear(Model().to("meta"))
    assert meta.blocks[0].up.codes.is_meta
    assert meta.state_dict().keys() == convert_linear_to_bitlinear(Model()).state_dict().keys()


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["lm_head"], {"lm_head"}),
        (["*head"], {"lm_head"}),
        (["blocks.0"], {"blocks.0.up", "blocks.0.down"}),
        (["blocks.*.up", "lm_head"], {"blocks.0.up", "blocks.1.up", "lm_head"}),
        (["blocks"], {"blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"}),
    ],
)
def test_skip_takes_names_and_globs(skip, left):
    """seed 004: no skip list, no exemption for an output head."""
    report = ConversionReport()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was asked for is not warned of
        model = convert_linear_to_bitlinear(Model(), skip=skip)
    convert_linear_to_bitlinear(Model(), skip=skip, report=report)
    assert {name for name, kind in kinds(model).items() if kind is nn.Linear} == left == set(report.skipped)
    assert set(report.converted) == {name for name, kind in kinds(model).items() if kind is BitLinear}


def test_skip_that_matches_nothing_or_is_a_string_is_refused():
    model = Model()
    with pytest.raises(ValueError, match=r"'head'.*'lm_head'"):
        convert_linear_to_bitlinear(model, skip=["head"])
    with pytest.raises(TypeError, match="list of names"):
        convert_linear_to_bitlinear(model, skip="lm_head")
    assert set(kinds(model).values()) == {nn.Linear}


def test_subclasses_are_left_alone_and_reported():
    model = nn.Sequential(nn.Linear(16, 16), nn.MultiheadAttention(16, 2))
    with pytest.warns(UserWarning, match=r"1\.out_proj: NonDynamicallyQuantizableLinear is a subclass"):
        convert_linear_to_bitlinear(model)
    assert isinstance(model[0], BitLinear)
    x = torch.randn(3, 1, 16)
    assert model[1](x, x, x)[0].shape == (3, 1, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_linear_to_bitlinear(nn.MultiheadAttention(16, 2), skip=["out_proj"])


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_hooks_are_left_alone_and_reported(kind):
    model = nn.Sequential(nn.Linear(4, 4))
    assert not has_hooks(model[0])
    hook(model[0], kind)
    assert has_hooks(model[0])
    with pytest.warns(UserWarning, match="unconverted: 0: it has hooks, which would be lost"):
        convert_linear_to_bitlinear(model)
    assert type(model[0]) is nn.Linear


def test_hooks_on_calls_and_gradients_of_every_kind_are_known():
    """Those that torch has today, before and after calls and gradients, are among the kinds tested."""
    assert {
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    } <= set(KINDS)


def test_a_head_tied_to_the_embedding_stays_tied():
    model = Model(tie=True)
    with pytest.warns(UserWarning, match="lm_head: its weight is shared with a Embedding"):
        convert_linear_to_bitlinear(model)
    assert model.lm_head.weight is model.embedding.weight
    assert isinstance(model.blocks[0].up, BitLinear)


def test_one_module_under_two_names_stays_one():
    model = nn.Module()
    model.a = model.b = nn.Linear(8, 8)
    convert_linear_to_bitlinear(model)
    assert isinstance(model.a, BitLinear)
    assert model.a is model.b


def test_tied_layers_stay_tied():
    """seed 004: tied weights come apart."""

    def tied(bias):
        model = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.Linear(8, 8, bias=bias))
        model[1].weight = model[0].weight
        return model

    with_bias = convert_linear_to_bitlinear(tied(bias=True))
    assert with_bias[0].codes is with_bias[1].codes
    assert with_bias[0].bias is not with_bias[1].bias
    without = convert_linear_to_bitlinear(tied(bias=False))
    assert without[0] is without[1]

    latent = prepare(tied(bias=True))
    assert latent[0].weight is latent[1].weight
    assert len(list(latent.parameters())) == 3
    pack(latent)
    assert latent[0].codes is latent[1].codes
    unpack(latent)
    assert latent[0].weight is latent[1].weight


def test_layers_tied_but_quantised_differently_are_packed_apart():
    model = nn.Sequential(BitLinear(8, 8), BitLinear(8, 8, rule="optimal"), BitLinear(8, 8))
    model[2].weight = model[1].weight = model[0].weight
    expected = [layer.dequantize() for layer in model]
    pack(model)
    assert model[0].codes is model[2].codes
    assert model[0].codes is not model[1].codes
    for layer, values in zip(model, expected, strict=True):
        assert torch.equal(layer.dequantize(), values)


def test_a_tie_with_a_skipped_layer_is_kept():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    report = ConversionReport()
    convert_linear_to_bitlinear(model, skip=["0"], report=report)
    assert model[1].weight is model[0].weight
    assert report.converted == ["2"]
    assert "shared with a Linear" in report.skipped["1"]


def test_nan_weights_are_named_and_nothing_is_replaced():
    model = Model()
    model.blocks[1].down.weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.down: weight holds 1 NaN"):
        convert_linear_to_bitlinear(model)
    assert set(kinds(model).values()) == {nn.Linear}


def test_prepare_trains_pack_serves_unpack_returns():
    torch.manual_seed(0)
    model = Model()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = prepare(model, skip=["lm_head"], activation_bits=8)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    # An optimizer built before keeps working: the Parameters are the same objects.
    assert all(p is parameters[name] for name, p in model.named_parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(TOKENS).logsumexp(-1).sum().backward()
    optimizer.step()
    assert not torch.equal(model.blocks[0].up.weight, before["blocks.0.up.weight"])
    with torch.no_grad():
        expected = model(TOKENS)
        assert pack(model) is model
        assert all(layer.is_packed for layer in model.modules() if isinstance(layer, QuantizedLinear))
        torch.testing.assert_close(model(TOKENS), expected, rtol=1e-4, atol=1e-4)
    unpack(model)
    assert dict(model.named_parameters()).keys() == parameters.keys()
    root = BitLinear(4, 4)
    assert pack(root) is root
    assert root.is_packed


def test_memory_falls_by_the_ratio_of_the_format():
    """kyegomez: size unchanged after conversion (#40)."""
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    before = sum(p.untyped_storage().nbytes() for p in model.parameters())
    convert_linear_to_bitlinear(model)
    tensors = [*model.parameters(), *model.buffers()]
    after = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
    assert before / after == pytest.approx(4e6 / (200_000 + 4_000 + 64), rel=1e-9)


def test_what_cannot_be_converted_is_named_and_nothing_is_replaced():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).double())
    with pytest.raises(TypeError, match=r"^1: dtype must be .* got torch\.float64"):
        convert_linear_to_bitlinear(model)
    with pytest.raises(TypeError, match=r"^0: .*unexpected keyword argument 'rul'"):
        convert_linear_to_bitlinear(model, rul="twn")
    with pytest.raises(TypeError, match=r"layer must be a class such as impl\.BitLinear"):
        convert_linear_to_bitlinear(model, layer="binary")
    with pytest.raises(TypeError, match=r"module must be an nn\.Module, got Tensor"):
        convert_linear_to_bitlinear(torch.ones(2))
    assert all(type(layer) is nn.Linear for layer in model)


def test_embeddings_and_n_bit_layers_are_packed_and_unpacked_with_the_rest():
    model = nn.Sequential(TernaryEmbedding(9, 8), nn.Sequential(BitLinear(8, 4)), NBitLinear(4, 4))
    model.again = TernaryEmbedding(9, 8)
    model.again.weight = model[0].weight
    table = model[0].dequantize()
    assert pack(model) is model
    assert all(layer.is_packed for layer in (model[0], model.again, model[1][0], model[2]))
    assert model.again.codes is model[0].codes
    assert torch.equal(model[0].dequantize(), table)
    unpack(model)
    assert model.again.weight is model[0].weight
    assert not model[1][0].is_packed
    assert not model[2].is_packed
