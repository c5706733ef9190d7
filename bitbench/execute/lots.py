"""The orders that a launch of two sides draws by lot. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from bitbench.execute.jobs import derive_seed

Name = TypeVar("Name")


@dataclass(frozen=True)
class Lots:
    """The orders of one launch, each drawn from a seed of its own: what is left out of a launch does
    not change the others. A launch that mirrors another one turns every order of that one round."""

    seed: int
    launch: int
    mirrored: int | None

    def order(self, names: Sequence[Name], *what: str) -> list[Name]:
        """``names`` in the order drawn for ``what``."""
        launch = self.launch if self.mirrored is None else self.mirrored
        drawn = list(names)
        random.Random(derive_seed(self.seed, launch, *what, "lots")).shuffle(drawn)
        return drawn if self.mirrored is None else drawn[::-1]
