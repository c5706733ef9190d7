"""What the workloads that check a layer share: the layer as made, and its outputs beside the exact ones.

Importing this module imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitbench.layers.base import LayerCost, LayerKind, LayerSpec
from bitbench.store.schema import Check

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Made:
    """A layer on its device, and what its kind says about it."""

    kind: LayerKind
    spec: LayerSpec
    module: nn.Module
    rows: int
    """Of the weight as a matrix: output features or channels."""
    columns: int
    """Of the weight as a matrix: products summed up in one output."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the input."""
        import torch

        dtype: torch.dtype = getattr(torch, self.kind.input_dtype(self.spec))
        return dtype

    @property
    def cost(self) -> LayerCost:
        return self.kind.cost(self.spec, self.columns, self.rows)

    @property
    def tolerance(self) -> float:
        return self.kind.tolerance(self.spec, self.columns)

    @property
    def isa(self) -> str:
        """Instruction set that the layer is held to; empty where it is none."""
        return getattr(self.spec, "isa", None) or ""

    def fallback(self, kernels: str) -> str | None:
        """Why one of ``kernels``, names joined by ", ", is not what the layer's name promises, or None."""
        reasons = (self.kind.fallback(self.spec, name) for name in kernels.split(", "))
        return next((reason for reason in reasons if reason), None)


class Comparison:
    """Outputs held against the exact ones, part by part."""

    def __init__(self) -> None:
        self._worst = 0.0
        self._largest = 0.0
        self._compared = 0

    def add(self, got: Tensor, exact: Tensor) -> None:
        """One part. A NaN on either side is an infinite difference: it has no place in an order."""
        difference = (got.double() - exact.double()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        self._worst = max(self._worst, float(difference.max()))
        self._largest = max(self._largest, float(exact.abs().max()))
        self._compared += exact.numel()

    def check(self, tolerance: float, *, sound: bool) -> Check:
        """The largest difference, as a part of the largest exact output, against ``tolerance``. Beside
        exact outputs that are all zero any difference is infinite.

        ``sound``: whether all is well outside the parts compared; nothing passes where it is not.
        """
        if not sound or self._worst == math.inf:
            error = math.inf
        elif self._worst == 0:
            error = 0.0
        else:
            error = self._worst / self._largest if self._largest > 0 else math.inf
        return Check(passed=error <= tolerance, max_error=error, tolerance=tolerance, compared=self._compared)


def poison(x: Tensor, shape: tuple[int, ...]) -> None:
    """Leave NaN in freed memory of the size of the coming output, ``shape`` in the type of ``x`` or in
    float32: an element that a kernel does not write then shows."""
    import torch

    blocks = [x.new_empty(shape).fill_(math.nan) for _ in range(2)]
    wide = x.new_full(shape, math.nan, dtype=torch.float32)
    del blocks, wide
