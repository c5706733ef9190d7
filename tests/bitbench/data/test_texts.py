"""Texts: the generated one is stable and learnable in structure, splits share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitbench.data.texts import Corpus, check_text, load_corpus, load_text, normalise, synthetic_text
from bitbench.errors import UserError


def test_the_synthetic_text_is_the_same_for_a_seed() -> None:
    text = synthetic_text(1, 5000)
    assert text == synthetic_text(1, 5000)
    assert text != synthetic_text(2, 5000)
    assert 5000 <= len(text) < 5200
    assert text.isascii()
    assert normalise(text) == text


def test_its_verbs_agree_with_their_subjects() -> None:
    sentences = synthetic_text(3, 20_000).lower().rstrip(".").split(". ")
    assert len(sentences) > 300
    for sentence in sentences:
        words = sentence.split()
        # The verb of the main clause is the only word in -r (singular) or -n (plural) besides "lon".
        plural = words[0] == "lon"
        verbs = [w for w in words if w[-1] in "rn" and w != "lon"]
        assert len(verbs) == 1, sentence
        assert verbs[0].endswith("n" if plural else "r"), sentence


def test_the_corpus_is_split_without_overlap() -> None:
    corpus = load_corpus("synthetic")
    whole = load_text("synthetic").encode()
    assert isinstance(corpus, Corpus)
    assert corpus.train + corpus.held_out == whole
    assert 0.09 < len(corpus.held_out) / len(whole) < 0.11


def test_a_file_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("one\n\ntwo   three\n", encoding="utf-8")
    assert check_text(str(path)) == str(path)
    assert load_text(str(path)) == "one two three"
    assert load_corpus(str(path)) == Corpus(b"one two thr", b"ee")


def test_unknown_and_missing_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'sotu'"):
        check_text("sotus")
    with pytest.raises(ValueError, match="there is no file"):
        check_text(str(tmp_path / "none.txt"))
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="utf-8"):
        load_text(str(bad))
