"""``bitorch_engine.optim``."""

from impl.optim import DiodeMix

__all__ = ["DiodeMix"]
