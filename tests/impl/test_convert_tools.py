"""Whole models by bitorch_engine's names: finding, replacing, preparing, packing, saving, loading."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import torch
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, checkpoint
from impl.compat.bitorch_engine import BinaryLinearBase, BinaryLinearCPP, BinaryLinearCuda
from impl.convert_tools import (
    collect_layers,
    load_checkpoint,
    pack_bie_layers,
    prepare_bie_layers,
    quantize_linear_with,
    quantize_linear_with_binary_linear,
    quantize_linear_with_binary_linear_cuda,
    quantize_linear_with_k_ternary_linear,
    quantize_linear_with_ternary_linear,
    replace_layers,
    save_checkpoint,
)
from impl.layers.embedding import BinaryEmbedding

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


def mixed(packed=False):
    """A float layer, layers of this package, an embedding, and layers of bitorch_engine."""
    torch.manual_seed(0)
    model = nn.Sequential(
        BinaryEmbedding(10, 8),
        nn.Linear(8, 16),
        BitLinear(16, 16),
        BinaryLinearCPP(16, 8),
        BinaryLinearCuda(8, 4),
    )
    model.eval()
    if packed:
        pack_bie_layers(model)
    return model


INDEX = torch.arange(10)


def outputs(model):
    with torch.no_grad():
        return model(INDEX)


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
    """D17, and kyegomez's replace_linears: pretrained weights, biases and dtypes were thrown away."""
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
    assert quantize_linear_with_ternary_linear(model, []) == []


def test_layers_that_cannot_be_converted_are_named():
    model = Network()
    model.again = model.first
    with pytest.raises(ValueError, match="'first' is also called 'again': name both"):
        quantize_linear_with_ternary_linear(model, ["first"])
    assert len(quantize_linear_with_ternary_linear(model, ["first", "again"])) == 1
    assert model.again is model.first
    with pytest.raises(ValueError, match=r"no such layer to replace: 'list\.2'"):
        quantize_linear_with_ternary_linear(model, ["list.2"])
    with pytest.raises(ValueError, match="the Linear given cannot be replaced in place"):
        quantize_linear_with_ternary_linear(nn.Linear(2, 2), [""])
    model.list[1][0].weight = model.list[0].weight
    with pytest.warns(UserWarning, match=r"unconverted: list\.0: its weight is shared with a Linear"):
        assert quantize_linear_with_binary_linear(model, ["list.0"]) == []


# ---- preparing and packing ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BinaryLinearCuda, BinaryLinearCPP, BitLinear, MultiTernaryLinear])
def test_a_bare_layer_is_prepared_and_packed(kind):
    """D12: the root module was skipped."""
    layer = kind(8, 4)
    before = layer.weight
    assert prepare_bie_layers(layer) == [""]
    assert (layer.weight is not before) == (kind is BinaryLinearCuda)  # one byte a weight from here on
    assert pack_bie_layers(layer) == [""]
    assert layer.weight is None
    packed = "qweight" if isinstance(layer, BinaryLinearBase) else "codes"
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


# ---- saving and loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_packed_checkpoint_round_trip(tmp_path, suffix, packed):
    path = tmp_path / f"m.{suffix}"
    model, target = mixed(), mixed(packed)
    for parameter in (*target.parameters(), *target.buffers()):
        if parameter.is_floating_point():
            nn.init.zeros_(parameter)
    expected = outputs(model)
    save_checkpoint(model, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    load_checkpoint(target, path)
    assert all(target[i].weight is None for i in (0, 2, 3, 4))
    torch.testing.assert_close(outputs(target), expected, rtol=1e-5, atol=1e-5)


def test_saving_leaves_a_model_in_training_as_it_is(tmp_path):
    model = mixed()
    parameters = dict(model.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    save_checkpoint(model, tmp_path / "m.safetensors")
    assert dict(model.named_parameters()) == parameters
    assert all(torch.equal(parameters[name], value) for name, value in values.items())
    state, _ = checkpoint.read_state(tmp_path / "m.safetensors")
    assert {"0.codes", "2.codes", "3.qweight", "1.weight"} <= state.keys()
    assert not {"0.weight", "2.weight", "3.weight"} & state.keys()


def test_latent_weights_are_saved_and_loaded_to_train_on(tmp_path):
    path = tmp_path / "m.safetensors"
    model = nn.Sequential(BitLinear(8, 8), BinaryEmbedding(4, 8))
    save_checkpoint(model, path, qweight_only=False)
    target = nn.Sequential(BitLinear(8, 8), BinaryEmbedding(4, 8))
    load_checkpoint(target, path, qweight_only=False)
    assert torch.equal(target[0].weight, model[0].weight)
    assert torch.equal(target[1].weight, model[1].weight)
    load_checkpoint(target, path)  # the file holds float weights: they are packed
    assert target[0].is_packed
    assert target[1].is_packed
    assert torch.equal(target[0].dequantize(), model[0].dequantize())


def test_a_model_on_the_meta_device_is_filled(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), BitLinear(8, 8))
    save_checkpoint(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        target = nn.Sequential(nn.Linear(4, 8), BitLinear(8, 8))
    load_checkpoint(target, tmp_path / "m.safetensors")
    assert torch.equal(target[1].dequantize(), model[1].dequantize())


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_loading_is_strict(tmp_path, suffix):
    """D12: strict=False let keys that did not match pass in silence."""
    path = tmp_path / f"m.{suffix}"
    save_checkpoint(nn.Sequential(BitLinear(8, 8)), path)
    with pytest.raises(RuntimeError, match=r'Missing key.*"1\.weight"'):
        load_checkpoint(nn.Sequential(BitLinear(8, 8), nn.Linear(8, 8)), path)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"0\.codes"'):
        load_checkpoint(nn.Sequential(nn.ReLU()), path)
    with pytest.raises(RuntimeError, match="out_features 8, this layer has 9"):
        load_checkpoint(nn.Sequential(BitLinear(8, 9)), path)


def test_checkpoints_of_the_original_shape_load(tmp_path):
    source = nn.Sequential(nn.Linear(4, 4))
    target = nn.Sequential(nn.Linear(4, 4))
    for content in ({"state_dict": source.state_dict()}, source.state_dict()):
        torch.save(content, tmp_path / "m.pth")
        nn.init.zeros_(target[0].weight)
        load_checkpoint(target, tmp_path / "m.pth")
        assert torch.equal(target[0].weight, source[0].weight)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_pickled_objects_are_refused_and_not_run(tmp_path):
    bomb = Bomb()
    Bomb.path = str(tmp_path / "ran")
    for old_format in (False, True):
        path = tmp_path / "m.pth"
        torch.save({"state_dict": {"x": bomb}}, path, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(ValueError, match="holds more than tensors"):
            load_checkpoint(nn.Linear(2, 2), path)
    assert not (tmp_path / "ran").exists()


def test_absent_and_damaged_files_are_told_apart(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(model, tmp_path / "none.pth")
    for suffix, message in (("pth", "a whole torch file"), ("safetensors", "a whole safetensors file")):
        path = tmp_path / f"m.{suffix}"
        save_checkpoint(model, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=message):
            load_checkpoint(model, path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_checkpoint(model, path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state_dict, but a list"):
        load_checkpoint(model, tmp_path / "list.pth")


@pytest.mark.parametrize(("format", "byte"), [("base3", 243), ("two_bit", 0b00110000)])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_bytes_that_no_code_gives_are_refused(tmp_path, format, byte, suffix):
    model = BitLinear(8, 8, format=format).pack()
    path = tmp_path / f"m.{suffix}"
    model.codes[3] = byte
    save_checkpoint(model, path)
    target = BitLinear(8, 8, format=format)
    with pytest.raises(ValueError, match=f"codes hold bytes that no {format} code gives"):
        load_checkpoint(target, path)
    assert not target.is_packed
    # Any byte is eight signs.
    signs = BinaryLinear(8, 8).pack()
    signs.codes.fill_(255)
    save_checkpoint(signs, path)
    load_checkpoint(BinaryLinear(8, 8), path)


def test_a_header_of_a_newer_version_is_refused(tmp_path):
    model = BitLinear(8, 8).pack()
    model.packing[0] = 2
    for suffix in ("safetensors", "pth"):
        save_checkpoint(model, tmp_path / f"m.{suffix}")
        with pytest.raises(ValueError, match=r"packing: .*version 2"):
            load_checkpoint(BitLinear(8, 8), tmp_path / f"m.{suffix}")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.pth"
    save_checkpoint(nn.Linear(2, 2), path)
    before = path.read_bytes()
    broken = nn.Sequential(BitLinear(8, 8))
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        save_checkpoint(broken, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.pth"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_checkpoint(broken, path, qweight_only=False)
