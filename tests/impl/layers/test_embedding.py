"""Binary and ternary embeddings: values, gradients, padding, construction and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embedding_cases import DIM, EMBEDDINGS, FORMS, ROWS, build, indices
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.layers.embedding import BinaryEmbedding, TernaryEmbedding
from impl.quantizers import STE, quantize_ternary, straight_through


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize(("cls", "options"), EMBEDDINGS)
@pytest.mark.parametrize("shape", [(), (5,), (1, 1), (2, 3, 4), (0,), (2, 0, 3)])
def test_lookups_are_rows_of_the_quantised_table(cls, options, packed, shape):
    """Indices of any shape; bitorch_engine took two dimensions only."""
    layer = build(cls, options, packed)
    table = layer.dequantize()
    for dtype in (torch.int64, torch.int32):
        index = indices(*shape, dtype=dtype)
        rows = layer(index)
        assert rows.shape == (*shape, DIM)
        torch.testing.assert_close(rows, table[index.long()], rtol=1e-6, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    dim=st.integers(1, 90),
    kind=st.sampled_from([BinaryEmbedding, TernaryEmbedding]),
    group_size=st.sampled_from([None, 8, 40]),
    seed=st.integers(0, 2**16),
)
def test_packing_keeps_every_row(rows, dim, kind, group_size, seed):
    torch.manual_seed(seed)
    layer = kind(rows, dim, group_size=group_size)
    index = torch.arange(rows)
    with torch.no_grad():
        latent = layer(index)
        torch.testing.assert_close(layer.pack()(index), latent, rtol=1e-6, atol=0)
    assert torch.equal(layer(index), layer.dequantize())


def test_values_by_hand():
    """The scale is the mean of exactly embedding_dim magnitudes: bitorch_engine took it after
    padding the dimension to 8 with -1. Zero counts as +1."""
    layer = BinaryEmbedding(2, 3)
    layer.weight.data = torch.tensor([[1.0, 2.0, -3.0], [0.0, -0.0, -6.0]])
    expected = torch.tensor([[2.0, 2.0, -2.0], [2.0, 2.0, -2.0]])
    assert torch.equal(layer(torch.tensor([0, 1])), expected)
    assert torch.equal(layer.pack()(torch.tensor([0, 1])), expected)
    ternary = TernaryEmbedding(1, 4)
    ternary.weight.data = torch.tensor([[0.5, -0.5, 0.1, 0.0]])
    torch.testing.assert_close(ternary.pack()(torch.tensor(0)), torch.tensor([0.275, -0.275, 0.0, 0.0]))


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize(
    ("padding_idx", "row"), [(0, 0), (5, 5), (ROWS - 1, ROWS - 1), (-1, ROWS - 1), (-3, ROWS - 3)]
)
@pytest.mark.parametrize("cls", [BinaryEmbedding, TernaryEmbedding])
def test_padding_rows_are_zero_wherever_they_are(cls, padding_idx, row, packed):
    """D11: a padding_idx other than 0 was an AttributeError."""
    layer = build(cls, {}, packed, padding_idx=padding_idx)
    assert layer.padding_idx == row
    zero = (layer(torch.arange(ROWS)) == 0).all(dim=-1)
    assert zero.nonzero().flatten().tolist() == [row]


@pytest.mark.parametrize("options", [{}, {"scale": "tensor"}])
def test_padding_rows_receive_no_gradient(options):
    layer = TernaryEmbedding(6, 5, padding_idx=-2, **options)
    layer(torch.tensor([[4, 1], [4, 2]])).sum().backward()
    touched = (layer.weight.grad != 0).any(dim=-1)
    assert touched.tolist() == [False, True, True, False, False, False]


def test_a_padding_row_with_values_is_kept():
    trained = nn.Embedding(6, 5, padding_idx=2)
    nn.init.constant_(trained.weight, 0.5)
    for pack in (True, False):
        layer = BinaryEmbedding.from_embedding(trained, pack=pack)
        assert torch.equal(layer(torch.tensor(2)), torch.full((5,), 0.5))


def test_all_zero_states_are_values_like_others():
    """D18: packed bits of zero, or scales of zero, were taken for missing and drawn anew."""
    for part in ("codes", "scales"):
        state = BinaryEmbedding(9, 10).pack().state_dict()
        state[part] = torch.zeros_like(state[part])
        layer = BinaryEmbedding(9, 10)
        layer.load_state_dict(state)
        rows = layer.pack()(torch.arange(9))
        assert torch.equal(layer.state_dict()[part], state[part])
        expected = -state["scales"][0].expand(9, 10) if part == "codes" else torch.zeros(9, 10)
        assert torch.equal(rows, expected)


def test_packing_twice_is_packing_once():
    """D18: preparing deleted the weight, and a second call failed."""
    layer = BinaryEmbedding(9, 10)
    codes = layer.pack().codes
    assert layer.pack().codes is codes
    assert layer.unpack().unpack() is layer
    assert layer.weight.shape == (9, 10)


@pytest.mark.parametrize("ste", STE)
@pytest.mark.parametrize(("cls", "options"), EMBEDDINGS)
def test_gradients_are_those_of_quantising_the_whole_table(cls, options, ste):
    """D1: the float weight is what takes the gradient, on stock torch; repeated indices add up."""
    layer = build(cls, options, ste=ste)
    index = indices(4, 25)
    upstream = torch.randn(4, 25, DIM)
    (layer(index) * upstream).sum().backward()
    weight = layer.weight.detach().clone().requires_grad_()
    table = straight_through(weight, layer.dequantize(), ste)
    (F.embedding(index, table) * upstream).sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-5, atol=1e-5)
    unread = torch.ones(ROWS, dtype=torch.bool)
    unread[index.flatten()] = False
    assert unread.any()
    assert not layer.weight.grad[unread].any()


def test_instances_share_no_rows():
    """The rows to update were a class attribute in bitorch_engine, common to all embeddings."""
    one, two = BinaryEmbedding(6, 4), BinaryEmbedding(6, 4)
    before = [layer.weight.detach().clone() for layer in (one, two)]
    optimizer = torch.optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)
    (one(torch.tensor([1, 2])).sum() + two(torch.tensor([4])).sum()).backward()
    optimizer.step()
    moved = [
        (layer.weight != old).any(dim=-1).nonzero().flatten().tolist()
        for layer, old in zip((one, two), before, strict=True)
    ]
    assert moved == [[1, 2], [4]]


@pytest.mark.parametrize("cls", [BinaryEmbedding, TernaryEmbedding])
def test_training_lowers_the_loss(cls):
    torch.manual_seed(0)
    model = nn.Sequential(cls(20, 16, padding_idx=3), nn.Linear(16, 1))
    index = torch.arange(20)
    target = (index % 2).float().unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
    losses = []
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model(index), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    assert not model[0].weight[3].any()


def test_from_embedding_keeps_the_weight():
    trained = nn.Embedding(ROWS, DIM, padding_idx=4, dtype=torch.bfloat16).eval()
    trained.weight.requires_grad_(False)
    before = trained.weight.clone()
    packed = TernaryEmbedding.from_embedding(trained)
    assert packed.is_packed
    assert not packed.training
    assert (packed.rule, packed.padding_idx, packed.weight_dtype) == ("optimal", 4, torch.bfloat16)
    expected = quantize_ternary(trained.weight, rule="optimal", scale="row").dequantize(torch.bfloat16)
    assert torch.equal(packed(torch.arange(ROWS)), expected)
    latent = TernaryEmbedding.from_embedding(trained, pack=False, format="two_bit")
    assert (latent.rule, latent.format) == ("absmean", "two_bit")
    assert torch.equal(latent.weight, trained.weight)
    assert not latent.weight.requires_grad
    nn.init.zeros_(latent.weight)
    assert torch.equal(trained.weight, before)


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("options", [{}, {"scale": "tensor"}])
@pytest.mark.parametrize("cls", [BinaryEmbedding, TernaryEmbedding])
def test_wrong_indices_say_what_is_wrong(cls, options, packed):
    layer = build(cls, options, packed)
    for value in (-1, ROWS):
        message = rf"index {value} .* num_embeddings = {ROWS} allows 0 \.\. {ROWS - 1}"
        with pytest.raises(IndexError, match=message):
            layer(torch.tensor([0, value, 1]))
    with pytest.raises(TypeError, match=r"torch\.float32: convert it with \.long\(\)"):
        layer(torch.ones(3))
    with pytest.raises(TypeError, match="got list"):
        layer([1, 2])
    with pytest.raises(ValueError, match="the index is on meta, the table on cpu"):
        layer(torch.ones(2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BinaryEmbedding(0, 4), ValueError, "num_embeddings must be at least 1, got 0"),
        (lambda: BinaryEmbedding(4, 2.0), TypeError, "embedding_dim must be an integer"),
        (lambda: BinaryEmbedding(4, 4, padding_idx=4), ValueError, r"-4 \.\. 3 .* got 4"),
        (lambda: BinaryEmbedding(4, 4, padding_idx=-5), ValueError, "got -5"),
        (lambda: BinaryEmbedding(4, 4, padding_idx=True), TypeError, "padding_idx"),
        (lambda: BinaryEmbedding(4, 4, padding_idx=1, scale="tensor"), ValueError, "use scale='row'"),
        (lambda: BinaryEmbedding(4, 4, format="base3"), ValueError, "format"),
        (lambda: BinaryEmbedding(4, 4, scale="rows"), ValueError, "did you mean 'row'"),
        (lambda: BinaryEmbedding(4, 4, group_size=12), ValueError, "multiple of 8"),
        (lambda: BinaryEmbedding(4, 4, group_size=8, scale="tensor"), ValueError, "excludes scale='tensor'"),
        (lambda: BinaryEmbedding(4, 4, ste="clamp"), ValueError, "did you mean 'clip'"),
        (lambda: BinaryEmbedding(4, 4, scale_dtype=torch.bfloat16), TypeError, "scale_dtype"),
        (lambda: BinaryEmbedding(4, 4, dtype=torch.float64), TypeError, r"with \.float\(\) first"),
        (lambda: TernaryEmbedding(4, 4, rule="absmin"), ValueError, "rule"),
        (lambda: BinaryEmbedding.from_embedding(nn.Linear(2, 2)), TypeError, "nn.Embedding, got Linear"),
        (
            lambda: BinaryEmbedding.from_embedding(nn.Embedding(4, 4, max_norm=1.0)),
            ValueError,
            "max_norm=1.0",
        ),
        (
            lambda: BinaryEmbedding.from_embedding(nn.Embedding(4, 4, sparse=True), pack=False),
            ValueError,
            "sparse=True",
        ),
    ],
)
def test_wrong_construction_says_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_weights_that_cannot_be_packed_are_refused_unchanged():
    layer = BinaryEmbedding(4, 6)
    layer.weight.data[1, 3] = float("nan")
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        layer.pack()
    assert not layer.is_packed
    layer = BinaryEmbedding(4, 6, scale_dtype=torch.float16)
    nn.init.constant_(layer.weight, 1e6)
    with pytest.raises(ValueError, match=r"use torch\.float32"):
        layer.pack()
    with pytest.raises(RuntimeError, match="unpack"):
        BinaryEmbedding(4, 6).pack().reset_parameters()
    with pytest.raises(ValueError, match="step 2"):
        BinaryEmbedding(4, 6).dequantize(slice(0, 4, 2))


def test_numpy_integers_are_integers():
    layer = BinaryEmbedding(np.int64(5), np.int32(3), padding_idx=np.int64(-1))
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (5, 3, 4)


def test_repr_tells_format_and_form():
    text = repr(TernaryEmbedding(5, 8, padding_idx=-1, group_size=8).pack())
    assert text == "TernaryEmbedding(5, 8, padding_idx=4, format=base3, group_size=8, packed, rule=absmean)"
    assert "training, ste=identity" in repr(BinaryEmbedding(5, 8))
