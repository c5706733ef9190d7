"""bitorch_engine's embeddings: function, trainable bits, states, and the original's defects."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from binary_cases import sign
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl import checkpoint
from impl.compat.bitorch_engine import (
    BinaryEmbeddingBag,
    BinaryEmbeddingCuda,
    BinaryEmbeddingParameter,
)
from impl.convert_tools import load_checkpoint, pack_bie_layers, prepare_bie_layers, save_checkpoint
from impl.optim import DiodeMix

ROWS, DIM = 9, 13
FORMS = ["float", "prepared", "packed"]


def build(form="float", cls=BinaryEmbeddingCuda, **options):
    layer = cls(num_embeddings=ROWS, embedding_dim=DIM, **options)
    if form != "float":
        layer.prepare_params()
    return layer.pack() if form == "packed" else layer


def indices(*shape):
    return torch.randint(0, ROWS, shape)


@pytest.mark.parametrize("cls", [BinaryEmbeddingCuda, BinaryEmbeddingBag])
def test_keywords_of_the_original(cls):
    names = set(inspect.signature(cls).parameters)
    assert {"num_embeddings", "embedding_dim", "padding_idx", "dtype"} <= names
    for name in ("padding_idx",):
        assert inspect.signature(cls).parameters[name].default is None


# ---- embedding ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    dim=st.integers(1, 20),
    form=st.sampled_from(FORMS[1:]),
    shape=st.lists(st.integers(0, 3), max_size=3),
    shift=st.floats(-1, 1),
)
def test_rows_are_signs_about_the_mean_times_their_mean_magnitude(rows, dim, form, shape, shift):
    """The original takes the scale after filling a row up to a multiple of 8 with -1, and indices of
    two dimensions only."""
    layer = BinaryEmbeddingCuda(num_embeddings=rows, embedding_dim=dim)
    with torch.no_grad():
        layer.weight.add_(shift)
    centred = layer.weight.detach() - layer.weight.detach().mean()
    layer.prepare_params()
    if form == "packed":
        layer.pack()
    index = torch.randint(0, rows, shape)
    y = layer(index)
    assert y.shape == (*shape, dim)
    expected = sign(centred) * centred.abs().mean(1, keepdim=True)
    torch.testing.assert_close(y, expected[index])
    assert layer.scale_w.shape == (rows, 1)


def test_the_float_weight_trains_before_it_is_prepared():
    layer = build()
    assert (layer.qweight, layer.scale_w) == (None, None)
    index = indices(4, 5)
    layer(index).sum().backward()
    assert torch.equal(layer.weight.grad[:, 0], torch.bincount(index.flatten(), minlength=ROWS).float())


@pytest.mark.parametrize("padding_idx", [0, 1, ROWS - 1, -1, -ROWS])
@pytest.mark.parametrize("form", FORMS)
def test_padding_rows(padding_idx, form):
    """D11: in the original a padding_idx other than 0 is an AttributeError."""
    layer = build(form, padding_idx=padding_idx)
    row = padding_idx % ROWS
    assert layer.padding_idx == row
    y = layer(torch.tensor([row, (row + 1) % ROWS]))
    assert not y[0].any()
    assert bool(y[1].all())
    if form != "packed":
        layer(indices(30)).sum().backward()
        assert not layer.weight.grad[row].any()
    if form == "prepared":
        optimizer = DiodeMix(layer.parameters(), lr=1.0)
        for _ in range(3):
            optimizer.step()
        assert not layer(torch.tensor(row)).any()
    with pytest.raises(ValueError, match=r"-9 \.\. 8"):
        build(padding_idx=ROWS)


def test_preparing_gives_bits_that_train():
    """D1: the original's uint8 parameter has no gradient on stock torch."""
    layer = build("prepared")
    assert isinstance(layer.qweight, BinaryEmbeddingParameter)
    assert isinstance(layer.qweight, nn.Parameter)
    assert layer.qweight.codes.shape == (ROWS, 2)
    assert layer.qweight.stored_bytes == ROWS * (2 + 4)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    index = indices(2, 6)
    layer(index).sum().backward()
    assert layer.qweight.grad.dtype == torch.float32
    looked_up = torch.zeros(ROWS).index_fill_(0, index.flatten(), 1)
    assert torch.equal((layer.qweight.grad != 0).any(1).float(), looked_up)


def test_the_update_is_descent_of_the_rows_looked_up():
    """D2: in the original DiodeMix raises KeyError for embeddings, and its rule for them ascends."""
    torch.manual_seed(0)
    layer = build("prepared")
    before = layer(torch.arange(ROWS)).detach()
    index = torch.tensor([1, 4])
    towards = sign(torch.randn(2, DIM))
    optimizer = DiodeMix(layer.parameters(), lr=1e-2, betas=(0.9, 0.99), threshold=0.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(index) * towards).sum()  # least where each sign is opposite
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = layer(torch.arange(ROWS)).detach()
    assert torch.equal(sign(after[index]), -towards)
    assert losses[-1] == min(losses) < losses[0]
    others = [row for row in range(ROWS) if row not in (1, 4)]
    assert torch.equal(after[others], before[others])
    assert torch.equal(after.abs(), before.abs())


def test_tables_share_no_rows():
    """In the original the rows to update are an attribute of the class."""
    one, two = build("prepared"), build("prepared")
    one.qweight.active_indices = torch.tensor([1])
    assert two.qweight.active_indices is None


@pytest.mark.parametrize("form", ["prepared", "packed"])
@pytest.mark.parametrize("change", ["zero bits", "zero scales", "both"])
def test_preparing_again_keeps_what_was_loaded(form, change):
    """D18: the original draws anew where all bits or all scales are 0, and cannot be prepared twice."""
    state = build("prepared").state_dict()
    if change != "zero scales":
        state["qweight"].zero_()
    if change != "zero bits":
        state["scale_w"].zero_()
    layer = build(form)
    layer.load_state_dict(state)
    expected = -state["scale_w"] if change == "zero bits" else torch.zeros(1)
    for _ in range(3):
        layer.prepare_params()
        assert torch.equal(layer(torch.arange(ROWS)), expected.expand(ROWS, DIM))
    if form == "prepared":
        layer.pack()
        layer.prepare_params()
        assert layer.is_packed
        assert torch.equal(layer(torch.arange(ROWS)), expected.expand(ROWS, DIM))


def test_preparing_refuses_weights_without_signs():
    layer = build()
    with torch.no_grad():
        layer.weight[2, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        layer.prepare_params()
    assert type(layer.weight) is nn.Parameter


def test_drawing_anew_is_float_again():
    layer = build("prepared", padding_idx=2)
    layer.reset_parameters()
    assert type(layer.weight) is nn.Parameter
    assert not layer(torch.tensor(2)).any()


# ---- states -------------------------------------------------------------------------------------


def test_the_state_of_a_prepared_table_is_the_originals():
    layer = build("prepared")
    state = layer.state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "qweight": (torch.uint8, (ROWS, 2)),
        "scale_w": (torch.float32, (ROWS, 1)),
    }
    signs = sign(layer(torch.arange(ROWS)).detach())
    bits = (state["qweight"].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    assert torch.equal(bits.flatten(1)[:, :DIM] * 2.0 - 1, signs)
    assert not bits.flatten(1)[:, DIM:].any()


@pytest.mark.parametrize("cls", [BinaryEmbeddingCuda, BinaryEmbeddingBag])
@pytest.mark.parametrize("source_form", FORMS)
@pytest.mark.parametrize("assign", [False, True])
def test_states_of_any_form_load_into_any_form(cls, source_form, assign, tmp_path):
    source = build(source_form, cls)
    if source_form == "float" and cls is BinaryEmbeddingBag:
        source.weight = nn.Parameter(torch.randn(ROWS, DIM))
    index = indices(4, 3)
    checkpoint.save(source, tmp_path / "table.safetensors")
    states = [copy.deepcopy(source.state_dict()), checkpoint.read_state(tmp_path / "table.safetensors")[0]]
    for state in states:
        for target_form in FORMS:
            target = build(target_form, cls)
            target.load_state_dict(state, strict=True, assign=assign)
            assert torch.equal(target(index), source(index)), target_form
            assert type(target.weight) is type(source.weight)
            assert set(target.state_dict()) == set(source.state_dict())
            if target.weight is not None:
                assert target.weight.requires_grad
                target(index).sum().backward()
                assert target.weight.grad is not None


@pytest.mark.parametrize("form", FORMS)
def test_states_are_checked(form):
    layer = build(form)
    good = build("prepared").state_dict()
    index = torch.arange(ROWS)
    before = layer(index)
    for change, message in (
        ({"qweight": good["qweight"][:, 1:]}, r"have shape \[9, 2\], got \[9, 1\]"),
        ({"qweight": good["qweight"] | 128}, "bits set beyond their 13 columns"),
        ({"qweight": good["qweight"].int()}, "must be uint8"),
        ({"weight": torch.ones(ROWS, DIM)}, "a weight and packed signs"),
        ({"scale_w": None}, "without the scale_w"),
        ({"scale_w": good["scale_w"][1:]}, r"scale_w has shape \[8, 1\], this layer needs \[9, 1\]"),
        ({"scale_w": good["scale_w"] * torch.nan}, "finite"),
        ({"qweight": None, "scale_w": None, "weight": torch.ones(ROWS, DIM).int()}, "int32"),
        ({"qweight": None, "scale_w": None, "weight": torch.ones(2, DIM).bool()}, r"shape \[2, 13\]"),
    ):
        state = {key: value for key, value in {**good, **change}.items() if value is not None}
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)
    assert torch.equal(layer(index), before)


@pytest.mark.parametrize("cls", [BinaryEmbeddingCuda, BinaryEmbeddingBag])
@pytest.mark.parametrize("form", FORMS[1:])
def test_life_as_a_module(cls, form):
    layer = build(form, cls)
    index = indices(4, 3)
    y = layer(index)
    meta = cls(num_embeddings=ROWS, embedding_dim=DIM, device="meta")
    assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))
    meta.load_state_dict(layer.state_dict(), assign=True)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = build(cls=cls)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), meta, fresh):
        assert torch.equal(twin(index), y)
        assert type(twin.weight) is type(layer.weight)
    half = copy.deepcopy(layer).half()
    assert half(index).dtype == torch.float16
    torch.testing.assert_close(half(index).float(), y, rtol=1e-3, atol=1e-3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(index), y)


# ---- whole models -------------------------------------------------------------------------------


def model():
    return nn.Sequential(build(), nn.Linear(DIM, 3))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_whole_models_prepare_pack_save_and_load(tmp_path, suffix):
    """D12: the original packs no embeddings, skips the root module and loads with strict=False."""
    index = indices(4, 5)
    for source, target in ((model(), model()), (build(), build())):
        names = prepare_bie_layers(source)
        assert names == (["0"] if isinstance(source, nn.Sequential) else [""])
        y = source(index)
        path = tmp_path / f"model{len(names[0])}{suffix}"
        save_checkpoint(source, path)
        assert torch.equal(source(index), y)
        load_checkpoint(target, path)
        table = target[0] if isinstance(target, nn.Sequential) else target
        assert table.is_packed
        assert torch.equal(target(index), y)
        pack_bie_layers(source)
        assert torch.equal(source(index), y)
        with pytest.raises(RuntimeError, match=r"Unexpected key|Missing key"):
            load_checkpoint(nn.Sequential(nn.Linear(2, 2)), path)


def test_training_goes_on_from_a_file_of_the_original(tmp_path):
    """A file as the original's save_checkpoint writes it: bits and scales, no header."""
    packed = torch.randint(0, 256, (ROWS, 2), dtype=torch.uint8) & torch.tensor([255, 31], dtype=torch.uint8)
    scale = torch.rand(ROWS, 1)
    torch.save({"state_dict": {"qweight": packed, "scale_w": scale}}, tmp_path / "original.pt")
    layer = build()
    load_checkpoint(layer, tmp_path / "original.pt", qweight_only=False)
    layer.prepare_params()
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    expected = (bits.flatten(1)[:, :DIM] * 2.0 - 1) * scale
    assert torch.equal(layer(torch.arange(ROWS)), expected)
    assert isinstance(layer.qweight, BinaryEmbeddingParameter)
    assert layer.qweight.requires_grad


def test_tables_that_are_there_keep_their_rows():
    """D17: in the original there is no way from a trained embedding to a binary one."""
    embedding = nn.Embedding(ROWS, DIM, padding_idx=3)
    layer = BinaryEmbeddingCuda.from_embedding(embedding, pack=False)
    assert torch.equal(layer.weight, embedding.weight)
    layer.prepare_params()
    centred = embedding.weight.detach() - embedding.weight.detach().mean()
    centred[3] = 0
    expected = sign(centred) * centred.abs().mean(1, keepdim=True)
    torch.testing.assert_close(layer(torch.arange(ROWS)), expected)


# ---- bag ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS[1:])
def test_bags_vote(form):
    """The original returns the vote in the integer dtype of the indices."""
    bag = build(form, BinaryEmbeddingBag)
    signs = sign(bag.dequantize())
    index = indices(6, 4)
    y = bag(index)
    assert y.dtype == torch.float32
    assert torch.equal(y, sign(signs[index].sum(1)))
    padded = BinaryEmbeddingBag(ROWS, DIM, padding_idx=-2)
    votes = sign(padded.dequantize())
    votes[ROWS - 2] = 0
    assert torch.equal(padded(torch.tensor([[0, ROWS - 2, ROWS - 2]])), votes[:1])
    assert not padded(torch.tensor([[ROWS - 2] * 3])).any()


def test_bags_send_their_gradient_to_their_own_rows():
    """The original repeats gradients in tile order: rows of other bags get them."""
    bag = build(cls=BinaryEmbeddingBag)
    assert isinstance(bag.weight, BinaryEmbeddingParameter)
    bag(torch.tensor([[0, 1], [2, 3]])).backward(torch.tensor([[1.0], [10.0]]).expand(2, DIM))
    assert bag.weight.grad[:, 0].tolist() == [1, 1, 10, 10, 0, 0, 0, 0, 0]


def test_bags_learn():
    """D2: bool weights of the original cannot be trained by its optimizer."""
    torch.manual_seed(0)
    bag = build(cls=BinaryEmbeddingBag)
    towards = sign(torch.randn(2, DIM))
    index = torch.tensor([[0, 1, 2], [3, 4, 5]])
    optimizer = DiodeMix(bag.parameters(), lr=1e-2, betas=(0.9, 0.99), threshold=0.0)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.mse_loss(bag(index), towards).backward()
        optimizer.step()
    assert torch.equal(bag(index), towards)


def test_bags_of_the_original_load():
    bools = torch.rand(ROWS, DIM) > 0.5
    bag = build(cls=BinaryEmbeddingBag)
    bag.load_state_dict({"weight": bools})
    assert torch.equal(bag.dequantize(), torch.where(bools, 1.0, -1.0))
    with pytest.raises(ValueError, match="unknown mode 'sum'"):
        BinaryEmbeddingBag(ROWS, DIM, mode="sum")
