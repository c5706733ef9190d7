"""Embeddings as modules: packed and latent form, states, copies, casts, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from embedding_cases import DIM, EMBEDDINGS, FORMS, ROWS, build, indices
from torch import nn

from impl import BinaryLinear, BitLinear, checkpoint, packing
from impl.layers.embedding import BinaryEmbedding, TernaryEmbedding


@pytest.mark.parametrize(("cls", "options"), EMBEDDINGS)
def test_one_copy_of_the_weight_in_either_form(cls, options):
    layer = build(cls, options)
    assert set(layer.state_dict()) == {"weight"}
    layer.pack()
    assert set(layer.state_dict()) == {"codes", "scales", "packing"}
    assert not list(layer.parameters())
    assert layer.codes.numel() == packing.codes_bytes(layer.format, 1, ROWS, DIM)
    assert packing.read_header(layer.packing) == layer.packed_weight.header
    decoded = layer.dequantize()
    assert torch.equal(layer.unpack().weight, decoded)
    assert set(layer.state_dict()) == {"weight"}


@pytest.mark.parametrize(("cls", "options"), EMBEDDINGS)
def test_forms_load_each_other(cls, options, tmp_path):
    source = build(cls, options)
    latent = copy.deepcopy(source.state_dict())
    source.pack()
    checkpoint.save(source, tmp_path / "packed.safetensors")
    expected = source(indices(20))
    for packed in (True, False):
        target = cls(ROWS, DIM, **options)
        target = target.pack() if packed else target
        checkpoint.load(target, tmp_path / "packed.safetensors")
        assert target.is_packed
        assert torch.equal(target(indices(20)), expected)
        target = cls(ROWS, DIM, **options)
        target = target.pack() if packed else target
        target.load_state_dict(latent)
        assert torch.equal(target.weight, latent["weight"])
        assert torch.equal(target.pack()(indices(20)), expected)


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    layer = TernaryEmbedding(10, 32)
    before = layer.weight.clone()
    for other, message in (
        (TernaryEmbedding(10, 32, format="two_bit"), "format 'two_bit', this layer has 'base3'"),
        (TernaryEmbedding(11, 32), "11, this layer has 10"),
        (BinaryEmbedding(10, 32), "format 'binary'"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(other.pack().state_dict())
    state = TernaryEmbedding(10, 32).pack().state_dict()
    with pytest.raises(RuntimeError, match=r"codes are torch\.uint8"):
        layer.load_state_dict({**state, "codes": state["codes"][:-1]})
    del state["scales"]
    with pytest.raises(RuntimeError, match="scales"):
        TernaryEmbedding(10, 32).pack().load_state_dict(state)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("cls", [BinaryEmbedding, TernaryEmbedding])
def test_half_precision_outputs_have_the_dtype_of_the_weight(cls, packed):
    for dtype in (torch.float16, torch.bfloat16):
        layer = build(cls, {}, packed).to(dtype)
        expected = layer.dequantize()
        rows = layer(torch.arange(ROWS))
        assert rows.dtype == dtype
        torch.testing.assert_close(rows.float(), expected, rtol=2e-2, atol=0)
        if packed:
            assert layer.scales.dtype == torch.float32
            assert layer.unpack().weight.dtype == dtype


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("cls", [BinaryEmbedding, TernaryEmbedding])
def test_copies(cls, copied, packed):
    layer = build(cls, {}, packed, padding_idx=1)
    twin = copied(layer)
    assert twin.is_packed is packed
    assert torch.equal(twin(indices(9)), layer(indices(9)))
    (twin.scales if packed else twin.weight).data.mul_(2)
    assert not torch.equal(twin(indices(9)), layer(indices(9)))


@pytest.mark.parametrize(("cls", "options"), EMBEDDINGS)
def test_meta_device(cls, options):
    real = build(cls, options, packed=True)
    with torch.device("meta"):
        layer = cls(ROWS, DIM, **options)
        index = torch.empty(2, 3, dtype=torch.int64)
    assert layer(index).shape == layer.pack()(index).shape == (2, 3, DIM)
    for name in ("codes", "scales", "packing"):
        assert getattr(layer, name).shape == getattr(real, name).shape
        assert getattr(layer, name).dtype == getattr(real, name).dtype
    filled = copy.deepcopy(layer).to_empty(device="cpu")
    assert torch.equal(filled.packing, real.packing)
    filled.load_state_dict(real.state_dict())
    assert torch.equal(filled(indices(9)), real(indices(9)))
    assert layer.unpack().weight.is_meta


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize(("cls", "options"), EMBEDDINGS)
def test_compiles_without_graph_breaks(cls, options, packed):
    torch._dynamo.reset()
    layer = build(cls, options, packed)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    index = indices(3, 4)
    rows = compiled(index)
    torch.testing.assert_close(rows, layer(index))
    if not packed:
        rows.sum().backward()
        gradient, layer.weight.grad = layer.weight.grad, None
        layer(index).sum().backward()
        torch.testing.assert_close(gradient, layer.weight.grad)


def test_packed_embeddings_export():
    layer = build(TernaryEmbedding, {"group_size": 16}, packed=True).eval()
    program = torch.export.export(layer, (indices(3, 4),))
    assert torch.equal(program.module()(indices(3, 4)), layer(indices(3, 4)))


def test_a_head_can_share_the_packed_table():
    embedding = BinaryEmbedding(ROWS, DIM).pack()
    head = BinaryLinear(DIM, ROWS, bias=False).share_packed(embedding)
    assert head.codes is embedding.codes
    hidden = torch.randn(2, DIM)
    with torch.no_grad():
        torch.testing.assert_close(head(hidden), hidden @ embedding(torch.arange(ROWS)).T)


def test_a_model_around_packed_embeddings_still_trains():
    model = nn.Sequential(BinaryEmbedding(9, 8).pack(), BitLinear(8, 2))
    model(torch.tensor([1, 2])).sum().backward()
    assert model[1].weight.grad.abs().sum() > 0
