"""The reading of a prompt by a language model: a timed point of ``decode``.

The timed call runs all tokens of the prompt through the model at once, keys and values into an empty
cache, and the head for the last position: what a user waits for before the first token.
Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitbench.layers.base import LayerSpec
from bitbench.store.schema import Check
from bitbench.workloads.base import Subject
from bitbench.workloads.conversions import Converted
from bitbench.workloads.model_check import check_layers
from bitbench.workloads.pace import numbers_seconds

if TYPE_CHECKING:
    from torch import Tensor

REST_SECONDS_PER_NUMBER_TOKEN = 2e-12
"""What is not a layer (attention, norms, calls), by the numbers of the layers."""

TIMED_SECONDS = 0.5

CALLS = 11
"""Of a launch for each layer at least: first (1), warm-up (2), a mirrored pair of turns, each of an
untimed call and two timed ones (6), two checks (2)."""


def prefill_seconds(layer: LayerSpec, numbers: int, tokens: int) -> float:
    """Seconds that a launch of ``layer`` takes where ``numbers`` of its weights meet each token."""
    call = numbers_seconds(layer, numbers, tokens) + REST_SECONDS_PER_NUMBER_TOKEN * numbers * tokens
    return max(TIMED_SECONDS, CALLS * call)


class PrefillSubject(Subject):
    """One converted model, its cache empty before each call."""

    def __init__(self, converted: Converted, prompt: Tensor, seed: int) -> None:
        from impl.models.llama import KVCache

        self.converted = converted
        self.model = converted.model
        self.prompt = prompt
        self.seed = seed
        self.seconds = TIMED_SECONDS
        self.replayable = self.many_kernels = prompt.is_cuda
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
