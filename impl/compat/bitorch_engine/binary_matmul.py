"""Binary matrix product of two activations, as in binary attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, check_activations
from impl.compat.bitorch_engine.calibration import LearnedScale
from impl.compat.bitorch_engine.signs import SignMatMul
from impl.layers.calls import autocast


class BinaryMatMul(nn.Module):
    """z = x_clip y_clip sign(x) sign(y)^T over the last two dimensions, sign(0) = +1.

    ``x_clip`` and ``y_clip`` are learned scalars, magnitude of the operand and window of its gradient.
    They start at 0, and the first batch in training mode sets them to 2 mean|x| and 2 mean|y|. In eval
    mode nothing is stored: until a clip is set, 2 mean|x| of the call at hand takes its place.

    The sign product is exact, for any number of columns; gradients as
    :class:`impl.compat.bitorch_engine.signs.SignMatMul` says.
    """

    def __init__(self, dtype: torch.dtype = torch.float, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self.x_clip = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
        self.y_clip = nn.Parameter(torch.zeros((), device=device, dtype=dtype))
        self._learned = (LearnedScale("x_clip", 2.0), LearnedScale("y_clip", 2.0))

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
        clips = [
            clip if self.training or learned.is_set(clip) else learned.of_all(operand)
            for learned, clip, operand in zip(self._learned, (self.x_clip, self.y_clip), (x, y), strict=True)
        ]
        z: Tensor = SignMatMul.apply(x, y, *clips)
        return z.to(x.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for learned, clip in zip(self._learned, (self.x_clip, self.y_clip), strict=True):
            learned.forget()
            learned.is_set(clip)  # looks now, so that forward need not
