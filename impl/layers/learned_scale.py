"""Scales that start at 0 and take their value from the first batch of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedScale:
    """The rule for a scalar scale Parameter: ``factor`` times the mean magnitude of a batch.

    Remembers that the scale has been seen to differ from 0, so that only calls before that have to
    read it back from the device.
    """

    def __init__(self, name: str, factor: float) -> None:
        self.name, self.factor = name, factor
        self._is_set = False

    def forget(self) -> None:
        """Look at the scale again before its next use: it has been replaced."""
        self._is_set = False

    def is_set(self, scale: Tensor) -> bool:
        """Whether ``scale`` differs from 0. On the meta device, where there are no values: True."""
        if scale.is_meta:
            return True
        if not self._is_set:
            self._is_set = bool(scale.detach() != 0)
        return self._is_set

    def calibrate(self, scale: nn.Parameter, x: Tensor) -> None:
        """Set ``scale`` from the batch ``x``; an empty one, or one of zeros, leaves it at 0.

        Raises ValueError where ``x`` holds NaN or infinity, or has a mean beyond the dtype of ``scale``.
        """
        if x.numel() == 0:
            return
        value = self.of_all(x).to(scale.dtype)
        if not bool(torch.isfinite(value)):
            raise ValueError(
                f"{self.name} cannot be set from a batch with a mean magnitude of "
                f"{float(value / self.factor)}: it holds NaN, infinite or huge values"
            )
        with torch.no_grad():
            scale.copy_(value)
        self._is_set = bool(scale.detach() != 0)

    def of_all(self, x: Tensor) -> Tensor:
        """``factor`` times mean|x|: float32 scalar, without gradient; 0 for no elements."""
        magnitude = x.detach().abs().to(torch.float32)
        return self.factor * magnitude.sum() / max(1, magnitude.numel())

    def of_rows(self, x: Tensor) -> Tensor:
        """``factor`` times mean|x| of each row: float32 [..., 1], without gradient."""
        return self.factor * x.detach().abs().mean(dim=-1, keepdim=True, dtype=torch.float32)
