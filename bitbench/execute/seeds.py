"""Seeding of the generators that a process shares. Torch is imported when called."""

from __future__ import annotations

import random


def set_seeds(seed: int) -> None:
    """Seed Python, numpy and torch; workloads draw from generators of their own besides."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
