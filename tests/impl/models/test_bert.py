"""The encoder: padding changes nothing, and batches come back in the order asked for."""

from __future__ import annotations

import pytest
import torch

from impl.models.bert import BertConfig, BertEncoder, embed_texts

CONFIG = BertConfig(
    vocab_size=100, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=4, context=12
)


@pytest.fixture
def encoder() -> BertEncoder:
    torch.manual_seed(0)
    return BertEncoder(CONFIG).eval()


@torch.no_grad()
def test_padding_changes_nothing(encoder: BertEncoder) -> None:
    ids = torch.tensor([[5, 6, 7]])
    alone = encoder.embeddings(ids, torch.ones(1, 3, dtype=torch.bool))
    padded = encoder.embeddings(
        torch.tensor([[5, 6, 7, 9, 9]]), torch.tensor([[True, True, True, False, False]])
    )
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_embeddings_have_unit_length_and_see_word_order(encoder: BertEncoder) -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    a, b = encoder.embeddings(torch.tensor([[5, 6, 7], [7, 6, 5]]), mask)
    assert torch.isclose(a.norm(), torch.tensor(1.0))
    assert not torch.allclose(a, b, atol=1e-4)


def test_texts_come_back_in_order(encoder: BertEncoder) -> None:
    def encode(text: str) -> list[int]:
        return [ord(letter) % 100 for letter in text]

    texts = ["a long sentence", "b", "mid one", "c", "another"]
    together = embed_texts(encoder, encode, texts, batch=2)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(embed_texts(encoder, encode, [text])[0], row, rtol=1e-4, atol=1e-5)


def test_sequences_beyond_the_context_are_refused(encoder: BertEncoder) -> None:
    with pytest.raises(ValueError, match="13 tokens"):
        encoder(torch.zeros(1, 13, dtype=torch.long), torch.ones(1, 13, dtype=torch.bool))
