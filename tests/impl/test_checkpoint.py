"""Saving and loading modules as safetensors."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, checkpoint, prepare
from impl.convert_tools import load_checkpoint, save_checkpoint
from impl.interchange import save_gguf, save_huggingface
from impl.packing import damage


def model(packed=True):
    torch.manual_seed(0)
    layers = [nn.Linear(12, 16), BitLinear(16, 20, activation_bits=8), BinaryLinear(20, 9, bias=False)]
    layers.append(MultiTernaryLinear(9, 4, k=2))
    built = nn.Sequential(*layers)
    if packed:
        for layer in built[1:]:
            layer.pack()
    return built


def same(one, other):
    x = torch.randn(3, 12)
    with torch.no_grad():
        return torch.equal(one(x), other(x))


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_round_trip_in_any_form(tmp_path, saved, loaded, assign):
    source, target = model(saved), model(loaded)
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    checkpoint.save(source, tmp_path / "m.safetensors", {"note": "hello"})
    metadata = checkpoint.load(target, tmp_path / "m.safetensors", assign=assign)
    assert metadata["note"] == "hello"
    assert same(source, target)
    assert target[1].is_packed is saved


def test_the_file_is_plain_safetensors_with_packed_bytes(tmp_path):
    path = tmp_path / "m.safetensors"
    layer = BitLinear(100, 50).pack()
    checkpoint.save(layer, path)
    tensors = load_file(path)
    assert set(tensors) == {"codes", "scales", "packing", "bias"}
    assert tensors["codes"].numel() == 10 * 100
    assert path.stat().st_size < 10 * 100 + 4 + 64 + 4 * 50 + 600
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    target = BitLinear(100, 50)
    target.load_state_dict(tensors)
    assert torch.equal(target.dequantize(), layer.dequantize())


def test_meta_modules_are_filled_by_assignment(tmp_path):
    source = model()
    checkpoint.save(source, tmp_path / "m.safetensors")
    with torch.device("meta"):
        target = model(packed=False)
    checkpoint.load(target, tmp_path / "m.safetensors", assign=True)
    assert same(source, target)
    with pytest.raises(ValueError, match="meta device"):
        checkpoint.save(model().to("meta"), tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_tied_tensors_are_stored_once(tmp_path):
    tied = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30, bias=False))
    tied[1].weight = tied[0].weight
    path = tmp_path / "m.safetensors"
    checkpoint.save(tied, path)
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["0.weight"]
        assert json.loads(file.metadata()["bitimpl.aliases"]) == {"1.weight": "0.weight"}
    target = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 30, bias=False))
    target[1].weight = target[0].weight
    checkpoint.load(target, path)
    assert torch.equal(target[1].weight, tied[0].weight)


def test_views_of_one_storage_are_saved_apart(tmp_path):
    layer = nn.Linear(4, 4)
    whole = torch.randn(8, 4)
    layer.weight = nn.Parameter(whole[2:6])
    layer.register_buffer("rest", whole[4:].t())
    path = tmp_path / "m.safetensors"
    checkpoint.save(layer, path)
    loaded, _ = checkpoint.read_state(path)
    assert torch.equal(loaded["weight"], whole[2:6])
    assert torch.equal(loaded["rest"], whole[4:].t())
    assert path.stat().st_size < 4 * (16 + 16 + 4) + 400


@pytest.mark.parametrize(
    ("index", "value", "message"), [(0, 2, "version 2"), (2, 5, "layout 5"), (1, 7, "format number 7")]
)
def test_foreign_and_newer_packed_headers_are_refused(tmp_path, index, value, message):
    state = model().state_dict()
    state["1.packing"][index] = value
    path = tmp_path / "m.safetensors"
    save_file(state, path)
    target = model(packed=False)
    with pytest.raises(ValueError, match=rf"m\.safetensors, 1\.packing: .*{message}"):
        checkpoint.load(target, path, strict=False)
    assert not target[1].is_packed


@pytest.mark.parametrize("version", ["2", "next"])
def test_newer_files_are_refused(tmp_path, version):
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"bitimpl.version": version})
    with pytest.raises(ValueError, match=f"file version {version}, this build reads up to 1"):
        checkpoint.read_state(path)


def test_plain_float_files_load(tmp_path):
    path = tmp_path / "m.safetensors"
    float_model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    save_file(float_model.state_dict(), path)
    target = prepare(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)))
    assert checkpoint.load(target, path) == {}
    assert torch.equal(target[0].weight, float_model[0].weight)


def test_damage_and_absence_are_told_apart(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(model(), path)
    checkpoint.save(model(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load(model(), path)
    save_file({"a": torch.zeros(1)}, path, {"bitimpl.aliases": '{"b": "c"}'})
    with pytest.raises(ValueError, match="names c as the data of b"):
        checkpoint.read_state(path)


def test_strictness_is_that_of_load_state_dict(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(BitLinear(8, 4, bias=False).pack(), path)
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        checkpoint.load(BitLinear(8, 4), path)
    checkpoint.load(BitLinear(8, 4), path, strict=False)
    with pytest.raises(RuntimeError, match="out_features 4, this layer has 5"):
        checkpoint.load(BitLinear(8, 5), path, strict=False)


def test_a_saved_file_has_the_permissions_of_a_new_file(tmp_path):
    checkpoint.save(BitLinear(8, 4), tmp_path / "m.safetensors")
    (tmp_path / "plain").write_bytes(b"")
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.safetensors"
    checkpoint.save(BitLinear(8, 4), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="reserved prefix"):
        checkpoint.save(BitLinear(8, 4), path, {"bitimpl.version": "9"})
    with pytest.raises(Exception, match="str"):
        checkpoint.save(BitLinear(8, 4), path, {"note": 3})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.fixture
def scanned(monkeypatch):
    """The layout and size of all codes whose bytes are looked at, and the sizes of such scales."""
    seen = {"codes": [], "scales": []}
    bytes_outside, check_scales = damage._bytes_outside, damage.check_scales

    def look_at_codes(header, codes):
        seen["codes"].append((header.format, codes.numel()))
        return bytes_outside(header, codes)

    def look_at_scales(scales):
        seen["scales"].append(scales.numel())
        check_scales(scales)

    monkeypatch.setattr(damage, "_bytes_outside", look_at_codes)
    monkeypatch.setattr(damage, "check_scales", look_at_scales)
    return seen


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("road", ["load", "load_checkpoint", "load_state_dict", "read_state"])
def test_one_load_looks_at_the_bytes_of_each_weight_once(tmp_path, scanned, road, packed):
    """Also where no layer takes them, as for the caller of read_state()."""
    path = tmp_path / "m.safetensors"
    source = model()
    checkpoint.save(source, path)
    target = model(packed)
    {
        "load": lambda: checkpoint.load(target, path),
        "load_checkpoint": lambda: load_checkpoint(target, path),
        "load_state_dict": lambda: target.load_state_dict(source.state_dict()),
        "read_state": lambda: checkpoint.read_state(path),
    }[road]()
    assert sorted(scanned["codes"]) == sorted((layer.format, layer.codes.numel()) for layer in source[1:])
    assert sorted(scanned["scales"]) == sorted(layer.scales.numel() for layer in source[1:])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("codes", 255, r"codes hold bytes"), ("scales", float("nan"), "scales hold 1")],
)
def test_damage_is_a_value_error_on_every_road(tmp_path, name, value, message):
    """It names file and tensor, also where nothing takes the weight or more is wrong with the file."""
    path = tmp_path / "m.safetensors"
    source = model()
    source[1].get_buffer(name).view(-1)[3 if name == "codes" else 0] = value
    checkpoint.save(source, path)
    smaller = model()
    smaller[2] = nn.Identity()
    untouched = model(packed=False)
    nn.init.zeros_(untouched[0].weight)
    for road in (
        lambda: checkpoint.load(model(), path),
        lambda: checkpoint.load(model(packed=False), path, strict=False),
        lambda: checkpoint.load(untouched, path),
        lambda: checkpoint.load(smaller, path),
        lambda: checkpoint.load(nn.Linear(2, 2), path, strict=False),
        lambda: load_checkpoint(untouched, path),
        lambda: checkpoint.read_state(path),
    ):
        with pytest.raises(ValueError, match=rf"m\.safetensors, 1\.{message}"):
            road()
    assert not untouched[0].weight.any()  # nothing of a damaged file is taken
    assert not any(layer.is_packed for layer in untouched[1:])


@pytest.mark.parametrize("name", ["codes", "scales"])
def test_damage_is_seen_by_the_next_load_too(tmp_path, name):
    """Weights pass without a second look within one load alone."""
    path = tmp_path / "m.safetensors"
    source = model()
    checkpoint.save(source, path)
    target = model()
    checkpoint.load(target, path, assign=True)
    state = target.state_dict(keep_vars=True)  # the very tensors that were checked
    state[f"1.{name}"].view(torch.uint8).fill_(255)
    with pytest.raises(RuntimeError, match=rf"1\.{name} hold"):
        target.load_state_dict(state)


def test_a_replaced_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file"

    def fail(partial):
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.replace_file(path, fail)
    assert not list(tmp_path.iterdir())
    checkpoint.replace_file(path, lambda partial: partial.write_bytes(b"old"))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.replace_file(path, fail)
    assert path.read_bytes() == b"old"
    checkpoint.replace_file(str(path), lambda partial: partial.write_bytes(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replaced_file_is_on_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    events = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_size, path.read_bytes()))
        fsync(descriptor)

    def note_replace(*names):
        events.append("replace")
        replace(*names)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    checkpoint.replace_file(path, lambda partial: partial.write_bytes(b"newer"))
    assert events == [("fsync", 5, b"old"), "replace"]


SAVERS = {
    "m.safetensors": checkpoint.save,
    "m.pth": save_checkpoint,
    "m.gguf": save_gguf,
    "folder": save_huggingface,
}


@pytest.mark.parametrize("name", SAVERS)
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, name):
    def written():
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(_):
        raise OSError(errno.ENOSPC, "no space left on device")

    torch.manual_seed(0)
    SAVERS[name](BitLinear(256, 4, bias=False, scale="tensor", activation_bits=8), tmp_path / name)
    before = written()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        SAVERS[name](BitLinear(256, 4, bias=False, scale="tensor", activation_bits=8), tmp_path / name)
    assert written() == before
    monkeypatch.undo()
    SAVERS[name](BitLinear(256, 4, bias=False, scale="tensor", activation_bits=8), tmp_path / name)
    assert written().keys() == before.keys()
    assert written() != before


def test_pickles_are_told_from_safetensors_by_their_beginning(tmp_path):
    """A length may begin as a pickle or a zip archive does: 0x80 is that of a short header."""
    path = tmp_path / "file"
    for beginning, pickled in (
        (b"PK\x03\x04 and so on", True),
        (b"PK", True),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", True),
        (b"\x80" + bytes(7) + b'{"a": 1}', False),
        (b"PK" + bytes(6) + b'{"a": 1}', False),
        (b"", False),
    ):
        path.write_bytes(beginning)
        assert checkpoint.is_pickled(path) is pickled
