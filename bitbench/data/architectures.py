"""Networks known by their shape alone: nothing to download, the weights are drawn.

What they answer is what does not depend on the values of weights: time and bytes of a model too
large to fetch or to hold in float. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """The shape of a network of :mod:`impl.models.llama`."""

    source: str
    """Where the shape is published."""
    config: Mapping[str, Any]
    """Arguments of :class:`impl.models.llama.LlamaConfig`."""

    @property
    def head_parameters(self) -> int:
        """Numbers in the output head."""
        return int(self.config["vocab_size"] * self.config["hidden_size"])

    @property
    def block_linear_parameters(self) -> int:
        """Numbers in the linear layers of all blocks."""
        hidden, inner = self.config["hidden_size"], self.config["intermediate_size"]
        key = hidden // self.config["num_heads"] * self.config["num_kv_heads"]
        return int(self.config["num_layers"] * (2 * hidden * hidden + 2 * hidden * key + 3 * hidden * inner))

    @property
    def parameters(self) -> int:
        """Numbers in the whole model; a head that is the embedding counts once."""
        hidden, inner = self.config["hidden_size"], self.config["intermediate_size"]
        norms = 2 * hidden + (hidden + inner if self.config.get("sub_norms", False) else 0)
        tables = 1 if self.config.get("tie_embeddings", True) else 2
        rest = tables * self.head_parameters + self.config["num_layers"] * norms + hidden
        return int(self.block_linear_parameters + rest)


ARCHITECTURES: dict[str, Architecture] = {
    "smollm2-135m-random": Architecture(
        "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        {
            "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_layers": 30,
            "num_heads": 9, "num_kv_heads": 3, "context": 8192, "rope_theta": 100_000.0,
            "norm_eps": 1e-5, "tie_embeddings": True,
        },
    ),
    "bitnet-2b-random": Architecture(
        "https://huggingface.co/microsoft/bitnet-b1.58-2B-4T",
        {
            "vocab_size": 128_256, "hidden_size": 2560, "intermediate_size": 6912, "num_layers": 30,
            "num_heads": 20, "num_kv_heads": 5, "context": 4096, "rope_theta": 500_000.0,
            "norm_eps": 1e-5, "tie_embeddings": True, "activation": "relu2", "sub_norms": True,
        },
    ),
}  # fmt: skip


def drawn_name(model: str) -> str:
    """What random weights in the shape of the model called ``model`` are called."""
    return f"{model}-random"
