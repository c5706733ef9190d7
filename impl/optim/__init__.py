"""Optimizers for parameters without a float copy (:mod:`impl.parameters`), and for the others."""

from impl.optim.bop import Bop
from impl.optim.diode_mix import DiodeMix, first_flip_step
from impl.optim.galore import GaLoreProjector

__all__ = ["Bop", "DiodeMix", "GaLoreProjector", "first_flip_step"]
