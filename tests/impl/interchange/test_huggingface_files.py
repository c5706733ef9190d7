"""Folders of BitNet models: config.json, safetensors in one file or in shards."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from impl import BitLinear, convert_linear_to_bitlinear, prepare
from impl.interchange import load_huggingface, read_huggingface, save_huggingface


def network(tie=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 16), nn.Linear(16, 12, bias=False))
    if tie:
        model[2].weight = model[0].weight
    return model


def converted(tie=False):
    return convert_linear_to_bitlinear(network(tie), skip=["2"], scale="tensor", activation_bits=8)


IDS = torch.arange(12)


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
@pytest.mark.parametrize("tie", [False, True])
def test_a_folder_round_trip(tmp_path, linear_class, tie):
    model = converted(tie)
    config = save_huggingface(model, tmp_path / "new" / "folder", linear_class=linear_class)
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    described = json.loads((folder / "config.json").read_text())
    assert described == {"quantization_config": config.to_dict()}
    assert described["quantization_config"]["modules_to_not_convert"] == ["2"]
    assert load_file(folder / "model.safetensors")["1.weight"].shape == (4, 16)
    loaded = load_huggingface(network(tie), folder, format="two_bit")
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), model(IDS), rtol=1e-6, atol=1e-6)


def test_the_architecture_in_config_json_is_kept_or_given(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"old": 1}}')
    save_huggingface(converted(), tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["model_type"] == "llama"
    assert described["quantization_config"]["quant_method"] == "bitnet"
    save_huggingface(converted(), tmp_path, model_config={"model_type": "bitnet"})
    assert read_huggingface(tmp_path)[2]["model_type"] == "bitnet"


def test_shards_are_joined(tmp_path):
    save_huggingface(converted(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(state)
    files = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    joined, _, _ = read_huggingface(tmp_path)
    assert joined.keys() == state.keys()
    assert all(torch.equal(joined[name], state[name]) for name in names)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        read_huggingface(tmp_path)
    for mapping in ({"1.weight": "../outside.safetensors"}, {}, ["x"]):
        index.write_text(json.dumps({"weight_map": mapping}))
        with pytest.raises(ValueError, match="must map tensors to files beside it"):
            read_huggingface(tmp_path)


def test_a_new_file_is_read_before_the_shards_it_replaces(tmp_path):
    """An index from before would bring back the old weights."""
    save_huggingface(converted(), tmp_path)
    old = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = converted()
    with torch.no_grad():
        model[2].weight.fill_(7)
    save_huggingface(model, tmp_path)
    assert read_huggingface(tmp_path)[0]["2.weight"].unique().tolist() == [7]


def test_latent_layers_that_share_a_weight_are_stored(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    model = prepare(model, activation_bits=8)
    save_huggingface(model, tmp_path, storage="master")
    loaded = load_huggingface(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), tmp_path)
    assert all(isinstance(layer, BitLinear) for layer in loaded)
    for old, new in zip(model, loaded, strict=True):
        assert torch.equal(new.weight, old.weight)


def test_absent_damaged_and_pickled_files_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_huggingface(tmp_path)
    save_huggingface(converted(), tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_huggingface(network(), tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model\.safetensors"):
        load_huggingface(network(), tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match="pickled weights"):
        load_huggingface(network(), tmp_path)
    for text, message in (("{", "not valid JSON"), ("[]", "must hold a JSON object, got a list")):
        config.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_huggingface(tmp_path)


def test_a_failed_save_leaves_the_old_files(tmp_path):
    save_huggingface(converted(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds no BitLinear"):
        save_huggingface(network(), tmp_path)
    with pytest.raises(TypeError):
        save_huggingface(converted(), tmp_path, model_config={"x": object()})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
