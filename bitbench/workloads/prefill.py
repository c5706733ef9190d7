"""The reading of a prompt by a language model: a timed point of ``decode``.

The timed call runs all tokens of the prompt through the model at once, keys and values into an empty
cache, and the head for the last position: what a user waits for before the first token.
Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitbench.store.schema import Check
from bitbench.workloads.base import Subject
from bitbench.workloads.language_model import Converted
from bitbench.workloads.model_check import check_layers

if TYPE_CHECKING:
    from torch import Tensor

SECONDS_PER_NUMBER_TOKEN = 1.2e-11
"""One token and one number of a float model on two cores, as in perplexity."""

TIMED_SECONDS = 0.5

CALLS = 11
"""Of a launch for each layer at least: first (1), warm-up (2), a mirrored pair of turns, each of an
untimed call and two timed ones (6), two checks (2)."""


def prefill_seconds(numbers: int, tokens: int) -> float:
    """Seconds that a launch of one layer takes where ``numbers`` of the model meet each token; low-bit
    layers take less."""
    return max(TIMED_SECONDS, CALLS * SECONDS_PER_NUMBER_TOKEN * numbers * tokens)


class PrefillSubject(Subject):
    """One converted model, its cache empty before each call."""

    def __init__(self, converted: Converted, prompt: Tensor, seed: int) -> None:
        from impl.models.llama import KVCache

        self.converted = converted
        self.model = converted.model
        self.prompt = prompt
        self.seed = seed
        self.seconds = TIMED_SECONDS
        self.cache = KVCache(self.model.config, prompt.shape[1], device=prompt.device)
        self.call()
        self.kernel = converted.kernels()

    def call(self) -> Tensor:
        """Logits ``[1, vocab]`` after the prompt."""
        import torch

        self.cache.truncate(0)
        with torch.inference_mode():
            return self.model.decode(self.prompt, self.cache)

    def check(self) -> Check:
        """On the activations of the prompt."""
        return check_layers(self.converted, self.call, self.seed)

    def fallback(self) -> str | None:
        return self.converted.fallback()
