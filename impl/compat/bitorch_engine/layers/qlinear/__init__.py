"""``bitorch_engine.layers.qlinear``."""

from impl.compat.bitorch_engine.inference import QLinearInf

__all__ = ["QLinearInf"]
