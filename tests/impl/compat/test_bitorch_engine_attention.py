"""bitorch_engine's attention, and the shift before its signs: function, and the original's defects."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from impl.compat.bitorch_engine import BMHA, BinaryLinearCutlass, LearnableBias
from impl.convert_tools import pack_bie_layers, prepare_bie_layers


def test_attention_is_made_of_the_originals_layers():
    parameters = inspect.signature(BMHA).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        "input_dim",
        "hidden_dim",
        "num_heads",
        "dtype",
    ]
    attention = BMHA(12, 16, 4)
    for name in ("q_linear", "k_linear", "v_linear", "out"):
        layer = getattr(attention, name)
        assert type(layer) is BinaryLinearCutlass
        assert layer.bias is None
    assert attention.dtype == torch.float32
    assert (attention.head_dim, attention.dropout.p) == (4, 0.1)
    assert BMHA(12, 16, 4, torch.bfloat16).dtype == torch.bfloat16
    assert all(tensor.is_meta for tensor in BMHA(12, 16, 4, device="meta").parameters())
    with pytest.raises(ValueError, match="multiple of num_heads = 3, got 16"):
        BMHA(12, 16, 3)


@pytest.mark.parametrize("prepared", [False, True])
def test_attention_computes_trains_and_packs(prepared):
    attention = BMHA(12, 16, 4)
    x = torch.randn(2, 5, 12)
    attention(x)  # sets the scales of the activations
    if prepared:
        prepare_bie_layers(attention)
    attention.eval()
    y, scores = attention(x)
    query, key, value = (
        getattr(attention, name)(x).view(2, 5, 4, 4).transpose(1, 2)
        for name in ("q_linear", "k_linear", "v_linear")
    )
    expected = torch.softmax(query @ key.mT / 2, -1)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(y, attention.out((expected @ value).transpose(1, 2).reshape(2, 5, 16)))
    y.sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters() if parameter.requires_grad)
    assert attention.state_dict().keys() == copy.deepcopy(attention).state_dict().keys()
    pack_bie_layers(attention)
    assert attention.q_linear.weight is None
    torch.testing.assert_close(attention(x)[0], y)


def test_attention_masks_keys():
    """In the original a mask [batch, length] falls on the heads."""
    attention = BMHA(12, 16, 4).eval()
    x = torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    _, scores = attention(x, mask)
    assert not scores[0, :, :, 3:].any()
    assert bool(scores[1, :, :, 3:].any())
    torch.testing.assert_close(scores.sum(-1), torch.ones(2, 4, 5))


def test_learnable_bias():
    shift = LearnableBias(6)
    assert shift.bias.tolist() == [0] * 6
    with torch.no_grad():
        shift.bias.copy_(torch.arange(6.0))
    assert torch.equal(shift(torch.zeros(2, 3, 6)), torch.arange(6.0).expand(2, 3, 6))
