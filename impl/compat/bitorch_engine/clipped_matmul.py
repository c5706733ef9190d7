"""What the products of two quantised activations share: operands and the clips learned for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, check_activations
from impl.layers.calls import autocast
from impl.layers.learned_scale import LearnedScale


class ClippedMatMul(nn.Module, ABC):
    """z of x [..., M, K] and y [..., N, K] over their last dimension, with a learned clip each.

    ``x_clip`` and ``y_clip`` start at 0; the first batch in training mode sets each to ``factor`` times
    mean|operand|. In eval mode nothing is stored: until a clip is set, that of the call at hand takes
    its place.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str | None, factor: float) -> None:
        super().__init__()
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self.x_clip = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
        self.y_clip = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
        self._learned = (LearnedScale("x_clip", factor), LearnedScale("y_clip", factor))

    @abstractmethod
    def _product(self, x: Tensor, y: Tensor, x_clip: Tensor, y_clip: Tensor) -> Tensor:
        """z for operands that have been checked, with the gradients of the class."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the clips."""
        return self.x_clip.dtype

    def set_activation_scale(self, x: Tensor, y: Tensor) -> None:
        """Set the clips that are still 0 from ``x`` and ``y``. ValueError for NaN and infinity."""
        for learned, clip, operand in zip(self._learned, (self.x_clip, self.y_clip), (x, y), strict=True):
            if not learned.is_set(clip):
                learned.calibrate(clip, operand)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """z [..., M, N] of x [..., M, K] and y [..., N, K], in the dtype of x (autocast's, where on).

        Both float32, bfloat16 or float16; leading dimensions broadcast, strides are free, empty batches
        included. TypeError or ValueError otherwise.
        """
        check_activations(x)
        check_activations(y, x.shape[-1])
        if x.dim() < 2 or y.dim() < 2:
            raise ValueError(
                f"the operands need two dimensions or more, got shapes {list(x.shape)} and {list(y.shape)}"
            )
        x, y = autocast(x), autocast(y)
        if self.training:
            self.set_activation_scale(x, y)
        x_clip, y_clip = (
            clip if self.training or learned.is_set(clip) else learned.of_all(operand)
            for learned, clip, operand in zip(self._learned, (self.x_clip, self.y_clip), (x, y), strict=True)
        )
        return self._product(x, y, x_clip, y_clip).to(x.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for learned, clip in zip(self._learned, (self.x_clip, self.y_clip), strict=True):
            learned.forget()
            learned.is_set(clip)  # looks now, so that forward need not
