"""save_checkpoint() and load_checkpoint(): round trips, strictness, and files that are not whole."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from mixed_model import mixed, outputs
from torch import nn

from impl import BinaryLinear, BitLinear, checkpoint
from impl.compat.bitorch_engine import BinaryLinearCuda, BinaryLinearParameter
from impl.convert_tools import load_checkpoint, prepare_bie_layers, save_checkpoint
from impl.layers.embedding import BinaryEmbedding


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


def test_weights_without_a_float_copy_are_saved_to_train_on(tmp_path):
    model = nn.Sequential(BinaryLinearCuda(16, 8))
    prepare_bie_layers(model)
    for name in ("m.pth", "m.safetensors"):
        target = nn.Sequential(BinaryLinearCuda(16, 8))
        save_checkpoint(model, tmp_path / name, qweight_only=False)
        load_checkpoint(target, tmp_path / name, qweight_only=False)
        assert isinstance(target[0].weight, BinaryLinearParameter)
        assert torch.equal(target[0].weight.codes, model[0].weight.codes)
    save_checkpoint(model, tmp_path / "m.safetensors")
    load_checkpoint(target, tmp_path / "m.safetensors")
    x = torch.randn(3, 16)
    assert torch.equal(target.eval()(x), model.eval()(x))


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
    with pytest.raises((ValueError, RuntimeError), match=f"codes hold bytes that no {format} code gives"):
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
        with pytest.raises((ValueError, RuntimeError), match="header version 2"):
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
