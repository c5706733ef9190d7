"""``bitorch_engine.optim.galore_projector``."""

from impl.optim import GaLoreProjector

__all__ = ["GaLoreProjector"]
