"""``bitorch_engine.layers.qmha.binary``."""

from impl.compat.bitorch_engine.attention import BMHA, LearnableBias

__all__ = ["BMHA", "LearnableBias"]
