"""Binary matrix product of two activations, as in binary attention."""

from __future__ import annotations

import torch
from torch import Tensor

from impl.compat.bitorch_engine.clipped_matmul import ClippedMatMul
from impl.compat.bitorch_engine.signs import SignMatMul, precision_of


class BinaryMatMul(ClippedMatMul):
    """z = x_clip y_clip sign(x) sign(y)^T over the last two dimensions, sign(0) = +1.

    ``x_clip`` and ``y_clip`` are learned scalars, magnitude of the operand and window of its gradient;
    they start from 2 mean|x| and 2 mean|y|
    (:class:`impl.compat.bitorch_engine.clipped_matmul.ClippedMatMul`).

    The sign product is exact, for any number of columns; gradients, in bfloat16 where x is that, as
    :class:`impl.compat.bitorch_engine.signs.SignMatMul` says.
    """

    def __init__(self, dtype: torch.dtype = torch.float, *, device: torch.device | str | None = None) -> None:
        super().__init__(dtype, device, factor=2.0)

    def _product(self, x: Tensor, y: Tensor, x_clip: Tensor, y_clip: Tensor) -> Tensor:
        z: Tensor = SignMatMul.apply(x, y, x_clip, y_clip, precision_of(x))
        return z
