"""``bitorch_engine.layers.qembedding.binary``."""

from impl.compat.bitorch_engine.embedding import BinaryEmbeddingBag, BinaryEmbeddingCuda
from impl.parameters import BinaryEmbeddingParameter

__all__ = ["BinaryEmbeddingBag", "BinaryEmbeddingCuda", "BinaryEmbeddingParameter"]
