"""Embedding bags against nn.EmbeddingBag over the quantised table, and the majority vote by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from embedding_cases import DIM, FORMS, ROWS, build, indices
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.layers.embedding_bag import BinaryEmbeddingBag, TernaryEmbeddingBag

BAGS = [
    pytest.param(BinaryEmbeddingBag, {}, id="binary"),
    pytest.param(BinaryEmbeddingBag, {"scale": "tensor"}, id="binary-tensor"),
    pytest.param(TernaryEmbeddingBag, {"format": "two_bit"}, id="ternary"),
    pytest.param(TernaryEmbeddingBag, {"rule": "optimal", "group_size": 8}, id="ternary-groups"),
]
MODES = ("sum", "mean", "max")


def torch_bag(layer, table):
    """F.embedding_bag over ``table`` with the options of ``layer``."""

    def reduce(index, offsets=None, weights=None):
        return F.embedding_bag(
            index,
            table,
            offsets,
            mode=layer.mode,
            per_sample_weights=weights,
            include_last_offset=layer.include_last_offset,
            padding_idx=layer.padding_idx,
        )

    return reduce


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("cls", "options"), BAGS)
def test_bags_are_torch_bags_of_the_quantised_table(cls, options, mode, padding_idx, packed):
    layer = build(cls, options, packed, mode=mode, padding_idx=padding_idx)
    reduce = torch_bag(layer, layer.dequantize())
    index = indices(6, 5)
    index[0] = ROWS - 1  # with padding_idx -1 a bag of nothing
    index[1, 2:] = 2
    torch.testing.assert_close(layer(index), reduce(index))
    torch.testing.assert_close(layer(index.int()), reduce(index))
    offsets = torch.tensor([0, 0, 7, 11, 11, 29])
    torch.testing.assert_close(layer(index.flatten(), offsets), reduce(index.flatten(), offsets))
    ends = build(cls, options, packed, mode=mode, padding_idx=padding_idx, include_last_offset=True)
    offsets = torch.tensor([0, 3, 3, 30])
    torch.testing.assert_close(
        ends(index.flatten(), offsets), torch_bag(ends, ends.dequantize())(index.flatten(), offsets)
    )
    torch.testing.assert_close(ends(index), layer(index))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("cls", "options"), BAGS)
def test_gradients_are_those_of_torch_bags(cls, options, mode):
    layer = build(cls, options, mode=mode, padding_idx=4)
    index = indices(5, 6)
    index[2, :3] = 4
    upstream = torch.randn(5, DIM)
    (layer(index) * upstream).sum().backward()
    table = layer.dequantize().requires_grad_()
    (torch_bag(layer, table)(index) * upstream).sum().backward()
    torch.testing.assert_close(layer.weight.grad, table.grad)
    assert not layer.weight.grad[4].any()


@pytest.mark.parametrize("packed", FORMS)
def test_weighted_sums(packed):
    layer = build(BinaryEmbeddingBag, {}, packed, mode="sum", padding_idx=1)
    index = indices(4, 5)
    weights = torch.rand(4, 5, requires_grad=True)
    reference = weights.detach().clone().requires_grad_()
    result = layer(index, per_sample_weights=weights)
    table = layer.dequantize().requires_grad_()  # else torch gives the weights no gradient
    expected = torch_bag(layer, table)(index, weights=reference)
    torch.testing.assert_close(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(weights.grad, reference.grad)


def test_any_leading_dimensions_and_empty_bags():
    for layer in (build(BinaryEmbeddingBag, {}), build(BinaryEmbeddingBag, {}, packed=True)):
        index = indices(2, 3, 4)
        expected = torch.stack([layer(part) for part in index])
        assert torch.equal(layer(index), expected)
        assert torch.equal(layer(torch.empty(2, 3, 0, dtype=torch.int64)), torch.zeros(2, 3, DIM))
        assert layer(torch.empty(0, 4, dtype=torch.int64)).shape == (0, DIM)
        assert torch.equal(
            layer(torch.empty(0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)), torch.zeros(3, DIM)
        )
        assert layer(index.flatten(), torch.empty(0, dtype=torch.int64)).shape == (0, DIM)


@pytest.mark.parametrize("packed", FORMS)
def test_majority_by_hand(packed):
    """bitorch_engine returned the vote in the integer dtype of the indices."""
    layer = BinaryEmbeddingBag(5, 3, padding_idx=4, mode="majority")
    layer.weight.data = torch.tensor(
        [[1.0, -9.0, 0.0], [2.0, 1.0, -1.0], [-3.0, -1.0, -1.0], [-1.0, 1.0, -0.0], [0.0, 0.0, 0.0]]
    )
    layer = layer.pack() if packed else layer
    votes = layer(torch.tensor([[0, 1, 2], [0, 2, 4], [2, 4, 4], [4, 4, 4]]))
    assert votes.dtype == torch.float32
    expected = [[1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]]
    assert votes.tolist() == expected
    by_offsets = layer(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 3, 3]))
    assert by_offsets.tolist() == [expected[0], [0.0, 0.0, 0.0], [-1.0, 1.0, 1.0]]


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 8), bags=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_majority_is_the_count_of_signs(length, bags, seed):
    """Ties count as +1: at least half, rounded up, of the signs are +1."""
    torch.manual_seed(seed)
    layer = BinaryEmbeddingBag(12, 9, mode="majority")
    index = torch.randint(12, (bags, length))
    positive = (layer.weight[index] >= 0).sum(dim=1)
    expected = torch.where(positive >= -(-length // 2), 1.0, -1.0)
    assert torch.equal(layer(index), expected)
    assert torch.equal(layer.pack()(index), expected)


@pytest.mark.parametrize(("mode", "share"), [("majority", 1.0), ("sum", 1.0), ("mean", 0.5)])
def test_each_bag_sends_its_gradient_to_its_own_rows(mode, share):
    """bitorch_engine repeated the gradients of a batch in tile order: rows of other bags got them."""
    layer = BinaryEmbeddingBag(7, 2, mode=mode)
    upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    (layer(torch.tensor([[0, 1], [2, 3], [4, 0]])) * upstream).sum().backward()
    rows = [upstream[0] + upstream[2], upstream[0], upstream[1], upstream[1], upstream[2]]
    expected = torch.stack([*rows, torch.zeros(2), torch.zeros(2)]) * share
    torch.testing.assert_close(layer.weight.grad, expected)


@pytest.mark.parametrize("cls", [BinaryEmbeddingBag, TernaryEmbeddingBag])
def test_from_embedding_keeps_everything(cls):
    trained = nn.EmbeddingBag(ROWS, DIM, mode="max", include_last_offset=True, padding_idx=3)
    packed = cls.from_embedding(trained)
    assert (packed.mode, packed.include_last_offset, packed.padding_idx) == ("max", True, 3)
    latent = cls.from_embedding(trained, pack=False, mode="sum")
    assert latent.mode == "sum"
    assert torch.equal(latent.weight, trained.weight)
    with pytest.raises(TypeError, match=r"takes an nn\.EmbeddingBag, got Embedding"):
        cls.from_embedding(nn.Embedding(4, 4))


@pytest.mark.parametrize("mode", ["mean", "majority"])
def test_forms_load_each_other(mode):
    source = build(BinaryEmbeddingBag, {}, mode=mode)
    latent = copy.deepcopy(source.state_dict())
    index = indices(4, 5)
    expected = source.pack()(index)
    target = BinaryEmbeddingBag(ROWS, DIM, mode=mode)
    target.load_state_dict(source.state_dict())
    assert target.is_packed
    assert torch.equal(target(index), expected)
    target.load_state_dict(latent)
    assert torch.equal(target.weight, latent["weight"])


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "majority"])
def test_half_precision_sums_are_rounded_once(mode, packed):
    layer = build(BinaryEmbeddingBag, {}, packed, mode=mode).to(torch.bfloat16)
    index = indices(3, 16)
    result = layer(index)
    assert result.dtype == torch.bfloat16
    if mode != "majority":
        table = layer.dequantize(dtype=torch.bfloat16).float()
        assert torch.equal(result, torch_bag(layer, table)(index).to(torch.bfloat16))


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("mode", ["sum", "max", "majority"])
def test_compiles_without_graph_breaks(mode, packed):
    torch._dynamo.reset()
    layer = build(BinaryEmbeddingBag, {}, packed, mode=mode, padding_idx=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    index = indices(3, 4)
    torch.testing.assert_close(compiled(index), layer(index))
    offsets = torch.tensor([0, 5])
    torch.testing.assert_close(compiled(index.flatten(), offsets), layer(index.flatten(), offsets))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([1, 2]),), ValueError, "give offsets"),
        ((torch.tensor([[1]]), torch.tensor([0])), ValueError, "its rows are the bags"),
        ((torch.tensor([1, 2]), torch.tensor([1])), ValueError, r"rise from 0 to at most 2.*got 1 \.\. 1"),
        ((torch.tensor([1, 2]), torch.tensor([0, 3])), ValueError, r"got 0 \.\. 3"),
        ((torch.tensor([1, 2]), torch.tensor([0, 2, 1])), ValueError, "never fall"),
        ((torch.tensor([1, 2]), torch.tensor([0.0])), TypeError, r"torch\.float32"),
        ((torch.tensor([1, 2]), [0]), TypeError, r"got \[0\]"),
        ((torch.tensor([[ROWS]]),), IndexError, f"index {ROWS}"),
        ((torch.tensor([[1, 2]]), None, torch.ones(2)), ValueError, r"shape \[1, 2\], got \[2\]"),
        ((torch.tensor([[1, 2]]), None, torch.ones(1, 2).long()), TypeError, "floating-point"),
        ((torch.tensor([[1, 2]]), None, [[1.0, 2.0]]), TypeError, "got list"),
    ],
)
def test_wrong_operands_say_what_is_wrong(arguments, error, message):
    for packed in (True, False):
        with pytest.raises(error, match=message):
            build(BinaryEmbeddingBag, {}, packed, mode="sum")(*arguments)


def test_options_that_exclude_each_other_say_so():
    with pytest.raises(ValueError, match="mode='sum', this layer has 'mean'"):
        build(BinaryEmbeddingBag, {})(torch.tensor([[1]]), None, torch.ones(1, 1))
    with pytest.raises(ValueError, match="unknown mode 'majority'"):
        TernaryEmbeddingBag(4, 4, mode="majority")
    with pytest.raises(ValueError, match="number of indices"):
        build(BinaryEmbeddingBag, {}, include_last_offset=True)(torch.tensor([1, 2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="at least one offset"):
        build(BinaryEmbeddingBag, {}, include_last_offset=True)(torch.tensor([1]), torch.tensor([]).long())
    assert BinaryEmbeddingBag(4, 4, padding_idx=1, scale="tensor").padding_idx == 1
    assert repr(BinaryEmbeddingBag(4, 8, mode="max").pack()).endswith("packed, mode=max)")
