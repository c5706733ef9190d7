"""Text to token ids and back: byte-pair encoding read from a GGUF file, and plain bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gguf import GGUFReader


class Tokenizer(Protocol):
    """What the workloads need of a tokenizer. No token is added that the text does not hold."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class ByteTokenizer:
    """One token per UTF-8 byte: a vocabulary of 256, nothing to download."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class BPETokenizer:
    """Byte-level BPE with the vocabulary and merges of a GGUF file.

    Pre-tokenization follows SmolLM2: every digit alone, then GPT-2's byte-level split without a
    space put in front.
    """

    def __init__(self, tokens: list[str], merges: list[str]) -> None:
        from tokenizers import Tokenizer as Engine
        from tokenizers.decoders import ByteLevel as ByteLevelDecoder
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        self._engine = Engine(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
        self._engine.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        self._engine.decoder = ByteLevelDecoder()

    @classmethod
    def from_gguf(cls, reader: GGUFReader) -> BPETokenizer:
        """The tokenizer a GGUF file carries.

        Raises:
            ValueError: the file's tokenizer is not a BPE with SmolLM's pre-tokenization.
        """
        model = reader.fields["tokenizer.ggml.model"].contents()
        split = reader.fields["tokenizer.ggml.pre"].contents()
        if model != "gpt2" or split != "smollm":
            raise ValueError(
                f"tokenizer {model!r} with pre-tokenization {split!r} is not supported, only gpt2 with smollm"
            )
        return cls(
            reader.fields["tokenizer.ggml.tokens"].contents(),
            reader.fields["tokenizer.ggml.merges"].contents(),
        )

    def encode(self, text: str) -> list[int]:
        return list(self._engine.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._engine.decode(ids, skip_special_tokens=False))
