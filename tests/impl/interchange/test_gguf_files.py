"""GGUF files: what is written, what the gguf package reads of it, and the way back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from hook_kinds import KINDS, hook
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, convert_linear_to_bitlinear
from impl.compat.bitorch_engine import BinaryLinearCPP
from impl.interchange import load_gguf, read_gguf, save_gguf
from impl.layers.binary_conv import BinaryConv2d
from impl.layers.embedding import TernaryEmbedding
from impl.layers.embedding_bag import BinaryEmbeddingBag
from impl.quantizers import Quantized

TYPES = ["TQ1_0", "TQ2_0"]


class Network(nn.Module):
    def __init__(self, tie=False):
        super().__init__()
        self.embedding = nn.Embedding(40, 256)
        self.norm = nn.BatchNorm1d(256)
        self.up = nn.Linear(256, 512)
        self.down = nn.Linear(512, 256, bias=False)
        self.head = nn.Linear(256, 40, bias=False)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.norm(self.embedding(ids))
        return self.head(x + self.down(torch.relu(self.up(x))))


IDS = torch.arange(16)


def converted(tie=False, **options):
    torch.manual_seed(0)
    model = Network(tie).eval()
    options = {"scale_dtype": torch.float16, **options}
    return convert_linear_to_bitlinear(model, skip=["head"], **options)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", ["row", "tensor"])
def test_round_trip_gives_the_same_numbers(tmp_path, kind, scale):
    model = converted(scale=scale)
    save_gguf(model, tmp_path / "m.gguf", type=kind)
    loaded = load_gguf(Network().eval(), tmp_path / "m.gguf")
    assert isinstance(loaded.up, BitLinear)
    assert (loaded.up.scale, loaded.up.scale_dtype) == (scale, torch.float16)
    assert type(loaded.head) is nn.Linear
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))


@pytest.mark.parametrize("kind", TYPES)
def test_the_gguf_package_reads_the_same_values(tmp_path, kind):
    model = converted(group_size=256)
    save_gguf(
        model,
        tmp_path / "m.gguf",
        type=kind,
        architecture="llama",
        metadata={"llama.block_count": 1, "x.rate": 0.5, "x.on": True, "x.name": "n", "x.list": [1, 2]},
    )
    reader = GGUFReader(tmp_path / "m.gguf")
    tensors = {item.name: item for item in reader.tensors}
    assert set(tensors) == set(Network().state_dict())
    up = tensors["up.weight"]
    assert up.tensor_type == GGMLQuantizationType[kind]
    assert up.shape.tolist() == [256, 512]
    assert np.array_equal(dequantize(up.data, up.tensor_type), model.up.dequantize().numpy())
    assert np.array_equal(tensors["head.weight"].data, model.head.weight.detach().numpy())
    values = {key: reader.fields[key].contents() for key in reader.fields if not key.startswith("GGUF.")}
    assert values["general.architecture"] == "llama"
    assert values["general.file_type"] == {"TQ1_0": 36, "TQ2_0": 37}[kind]
    assert [values[f"x.{key}"] for key in ("rate", "on", "name", "list")] == [0.5, True, "n", [1, 2]]
    assert read_gguf(tmp_path / "m.gguf").metadata == values


def test_latent_layers_are_written_as_they_compute(tmp_path):
    layer = BitLinear(256, 8)
    save_gguf(layer, tmp_path / "m.gguf")
    assert not layer.is_packed
    loaded = load_gguf(nn.Linear(256, 8), tmp_path / "m.gguf")
    assert isinstance(loaded, BitLinear)
    torch.testing.assert_close(loaded.dequantize(), layer.dequantize(), rtol=1e-3, atol=0)
    assert torch.equal(loaded.W_ternary, layer.W_ternary)
    assert torch.equal(loaded.bias, layer.bias)


def test_binary_layers_are_ternary_ones_without_zeros(tmp_path):
    layer = BinaryLinear(512, 6, scale_dtype=torch.float16).pack()
    save_gguf(layer, tmp_path / "m.gguf", type="TQ1_0")
    loaded = load_gguf(nn.Linear(512, 6), tmp_path / "m.gguf", activation_bits=8, format="two_bit")
    assert torch.equal(loaded.dequantize(), layer.dequantize())
    assert (loaded.activation_bits, loaded.format) == (8, "two_bit")


def test_tied_tensors_are_written_once_and_stay_tied(tmp_path):
    model = converted(tie=True)
    save_gguf(model, tmp_path / "m.gguf")
    assert "head.weight" not in read_gguf(tmp_path / "m.gguf").tensors
    for build in (Network(tie=True).eval(), Network(tie=True).to("meta").eval()):
        if build.embedding.weight.is_meta:
            build.head.weight = build.embedding.weight
        loaded = load_gguf(build, tmp_path / "m.gguf")
        assert loaded.head.weight is loaded.embedding.weight
        with torch.no_grad():
            assert torch.equal(loaded(IDS), model(IDS))


def test_names_are_mapped_both_ways(tmp_path):
    model = converted()
    names = {"up.weight": "blk.0.ffn_up.weight", "up.bias": "blk.0.ffn_up.bias"}
    save_gguf(model, tmp_path / "m.gguf", rename=lambda name: names.get(name, name))
    held = read_gguf(tmp_path / "m.gguf").tensors
    assert isinstance(held["blk.0.ffn_up.weight"], Quantized)
    back = {new: old for old, new in names.items()}
    loaded = load_gguf(Network().eval(), tmp_path / "m.gguf", rename=lambda name: back.get(name, name))
    assert torch.equal(loaded.up.dequantize(), model.up.dequantize())
    save_gguf(model, tmp_path / "part.gguf", rename=lambda name: None if name.startswith("norm") else name)
    assert not [name for name in read_gguf(tmp_path / "part.gguf").tensors if name.startswith("norm")]
    with pytest.raises(ValueError, match=r"ggml keeps 63 bytes"):
        save_gguf(model, tmp_path / "long.gguf", rename=lambda name: name + "x" * 60)
    assert not list(tmp_path.glob("*long*"))


def test_other_dtypes_and_other_quantised_types_are_read(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "test")
    values = np.arange(512, dtype=np.float32).reshape(2, 256)
    writer.add_tensor("half", values.astype(np.float16))
    writer.add_tensor("whole", np.arange(6, dtype=np.int32))
    for name, kind in (("q8", GGMLQuantizationType.Q8_0), ("bf16", GGMLQuantizationType.BF16)):
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = read_gguf(tmp_path / "m.gguf").tensors
    assert torch.equal(tensors["half"], torch.from_numpy(values).half())
    assert torch.equal(tensors["whole"], torch.arange(6, dtype=torch.int32))
    assert torch.equal(tensors["bf16"], torch.from_numpy(values).bfloat16())
    torch.testing.assert_close(tensors["q8"], torch.from_numpy(values), rtol=0.01, atol=1.1)
    assert tensors["q8"].dtype == torch.float32


def test_bfloat16_and_integers_survive(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()
    save_gguf(model, tmp_path / "m.gguf")
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).bfloat16()
    load_gguf(target, tmp_path / "m.gguf")
    for name, tensor in model.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_an_embedding_of_ternary_blocks_is_decoded(tmp_path):
    model = nn.Linear(256, 30, bias=False)
    save_gguf(convert_linear_to_bitlinear(model), tmp_path / "m.gguf")
    ternary = read_gguf(tmp_path / "m.gguf").tensors["weight"]
    table = load_gguf(nn.Embedding(30, 256), tmp_path / "m.gguf")
    assert torch.equal(table.weight, ternary.dequantize())


@pytest.mark.parametrize("packed", [False, True])
def test_other_layers_of_this_package_are_written_as_they_compute(tmp_path, packed):
    """Their latent weights, or their bytes, would mean something else to a reader."""
    table, bag, conv = TernaryEmbedding(9, 24), BinaryEmbeddingBag(5, 7).bfloat16(), BinaryConv2d(4, 6, 3)
    model = nn.ModuleDict({"table": table, "bag": bag, "conv": conv, "up": BitLinear(256, 4)})
    model["again"] = table
    if packed:
        for layer in (table, bag, conv):
            layer.pack()
    save_gguf(model, tmp_path / "m.gguf")
    held = read_gguf(tmp_path / "m.gguf").tensors
    assert set(held) == {"table.weight", "bag.weight", "conv.weight", "conv.bias", "up.weight", "up.bias"}
    assert torch.equal(held["table.weight"], table.dequantize())
    assert torch.equal(held["bag.weight"], bag.dequantize(dtype=torch.bfloat16))
    assert torch.equal(held["conv.weight"], conv.dequantize())
    plain = nn.ModuleDict({"table": nn.Embedding(9, 24), "bag": nn.EmbeddingBag(5, 7)})
    plain.update({"conv": nn.Conv2d(4, 6, 3), "up": nn.Linear(256, 4), "again": plain["table"]})
    load_gguf(plain, tmp_path / "m.gguf")
    assert torch.equal(plain["table"](torch.arange(9)), table(torch.arange(9)).detach())


def test_layers_that_compute_with_other_values_are_refused(tmp_path):
    model = nn.ModuleDict({"odd": BinaryLinearCPP(256, 4), "up": BitLinear(256, 4)})
    with pytest.raises(ValueError, match=r"odd\.weight belongs to a BinaryLinearCPP"):
        save_gguf(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_misfits_are_an_error_or_decoded(tmp_path):
    cases = [
        (BitLinear(250, 4), "in_features=250 is no multiple of 256"),
        (BitLinear(256, 4, group_size=64), "group_size=64 is no multiple of 256"),
        (MultiTernaryLinear(256, 4), "holds one component, the layer has 2"),
    ]
    for layer, message in cases:
        model = nn.Sequential(layer)
        with pytest.raises(ValueError, match=rf"^0: .*{message}.*misfits='decode'"):
            save_gguf(model, tmp_path / "m.gguf")
        assert not list(tmp_path.iterdir())
        save_gguf(model, tmp_path / "m.gguf", misfits="decode")
        plain = load_gguf(nn.Sequential(nn.Linear(layer.in_features, 4)), tmp_path / "m.gguf")
        assert torch.equal(plain[0].weight, layer.dequantize())
        (tmp_path / "m.gguf").unlink()
    with pytest.raises(ValueError, match="unknown misfits 'skip'"):
        save_gguf(BitLinear(256, 4), tmp_path / "m.gguf", misfits="skip")


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    layer = BitLinear(256, 4)
    layer.weight.data[0, 0] = float("nan")
    for misfits in ("error", "decode"):
        with pytest.raises(ValueError, match="the root module: its weight holds NaN"):
            save_gguf(layer, tmp_path / "m.gguf", misfits=misfits)
    with pytest.raises(ValueError, match="meta device"):
        save_gguf(BitLinear(256, 4).to("meta"), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_leave_the_model_alone(tmp_path):
    save_gguf(converted(), tmp_path / "m.gguf")
    wide = Network()
    wide.up = nn.Linear(256, 300)
    extra = Network()
    extra.more = nn.Linear(2, 2)
    bare = Network()
    bare.up = nn.Linear(256, 512, bias=False)
    poor = Network()
    del poor.norm
    for model, message in [
        (wide, r"up: the file has a weight of \[512, 256\] for it, the model one of \[300, 256\]"),
        (extra, r"lacks more\.weight, more\.bias"),
        (bare, "up: the file has a bias for it, the model has none"),
        (poor, r"has norm\.weight, .*which the model does not have"),
    ]:
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            load_gguf(model, tmp_path / "m.gguf")
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_hooks_are_not_replaced(tmp_path, kind):
    save_gguf(converted(), tmp_path / "m.gguf")
    hooked = Network()
    hook(hooked.up, kind)
    up = hooked.up
    with pytest.raises(ValueError, match="up: it has hooks"):
        load_gguf(hooked, tmp_path / "m.gguf")
    assert hooked.up is up


def test_absent_and_damaged_files_are_told_apart(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(FileNotFoundError, match="no GGUF file at"):
        read_gguf(path)
    save_gguf(BitLinear(256, 64), path)
    whole = path.read_bytes()
    for damaged in (whole[:-4000], whole[:100], whole[:5], b"", b"GGML" + whole[4:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a whole GGUF file"):
            read_gguf(path)


def test_a_converted_layer_is_replaced_in_place_dtype_and_mode(tmp_path):
    source = BitLinear(256, 8, scale_dtype=torch.float16).pack()
    target = nn.Sequential(BitLinear(256, 8)).bfloat16().eval()
    save_gguf(nn.Sequential(source), tmp_path / "s.gguf")
    load_gguf(target, tmp_path / "s.gguf")
    assert torch.equal(target[0].dequantize(), source.dequantize())
    assert (target[0].weight_dtype, target[0].bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert not target[0].training
