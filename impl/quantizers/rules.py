"""Ternary rules: which weights become zero, and the scale of the others.

Every rule is a threshold t per row: code = sign(w) where |w| > t, else 0. Rows are whatever is
quantised together: a row of the matrix, a group of columns in it, or the whole tensor.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RULES = ("optimal", "absmean", "absmax", "twn")
"""Names of the ternary rules.

``optimal``  exact least squares: no codes and scale have a smaller squared error.
``absmean``  b1.58 (Ma et al., 2024): scale mean|w|, at least 1e-5; code = round(w / scale), half to
             even, clipped to -1 .. 1.
``absmax``   krisaujla/BitLinear: scale max|w|; zero up to half of it.
``twn``      Ternary Weight Networks (Li et al., 2016): zero up to 0.7 mean|w|, least-squares scale.
"""

ABSMEAN_FLOOR = 1e-5


def ternarize_rows(x: Tensor, rule: str, sum_dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Ternary codes (int8, shape of ``x``) and scales (float32 [rows, 1]) of float32 ``x`` [rows, n].

    A row of zeros gets the codes 0 and the scale 0 (``absmean``: its floor of 1e-5). Means are summed in
    ``sum_dtype`` and rounded once to float32: float64 leaves next to nothing to the order of the sum, since
    only a mean within its rounding of a tie of float32 can differ.
    """
    magnitude = x.abs()
    if rule == "absmean":
        # round(w / scale) is 0 up to exactly scale / 2: in float32, a weight above scale / 2
        # never has a quotient that rounds to 0.5.
        scale = _mean(magnitude, sum_dtype).clamp_min(ABSMEAN_FLOOR)
        return _codes(x, magnitude > scale / 2), scale
    if rule == "absmax":
        scale = magnitude.amax(dim=-1, keepdim=True)
        return _codes(x, magnitude > scale / 2), scale
    if rule == "twn":
        threshold = 0.7 * _mean(magnitude, sum_dtype)
    else:
        threshold = _optimal_threshold(magnitude)
    kept = magnitude > threshold
    return _codes(x, kept), _least_squares_scale(magnitude, kept, sum_dtype)


def sorted_rows(x: Tensor) -> Tensor:
    """``x`` [rows, n] with every row in ascending order."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Over ten times faster than torch.sort, which moves indices as well.
        return torch.from_numpy(np.sort(x.numpy(), axis=-1))
    return x.sort(dim=-1).values


def _codes(x: Tensor, kept: Tensor) -> Tensor:
    return x.sign().to(torch.int8) * kept


def _mean(magnitude: Tensor, sum_dtype: torch.dtype) -> Tensor:
    return magnitude.mean(dim=-1, keepdim=True, dtype=sum_dtype).to(torch.float32)


def _least_squares_scale(magnitude: Tensor, kept: Tensor, sum_dtype: torch.dtype) -> Tensor:
    """Mean magnitude of the kept weights of each row: the scale of least squared error."""
    total = (magnitude * kept).sum(dim=-1, keepdim=True, dtype=sum_dtype)
    return (total / kept.sum(dim=-1, keepdim=True).clamp_min(1)).to(torch.float32)


def _optimal_threshold(magnitude: Tensor) -> Tensor:
    """Threshold [rows, 1] of the exact least-squares ternary code of each row.

    For a chosen support of j weights the best scale is their mean magnitude S / j, and it leaves
    the squared error |w|^2 - S^2 / j: so for each j the largest j magnitudes are the best support,
    and the best j maximises S_j^2 / j, here S_j / sqrt(j), which cannot overflow first. Weights that
    tie with the smallest kept one are kept too: S_j^2 / j has no maximum inside a run of equal
    magnitudes.
    """
    descending = sorted_rows(magnitude).flip(-1)
    count = torch.arange(1, magnitude.shape[-1] + 1, dtype=magnitude.dtype, device=magnitude.device)
    best = (descending.cumsum(dim=-1) / count.sqrt()).argmax(dim=-1, keepdim=True)
    smallest_kept = descending.gather(-1, best)
    return torch.nextafter(smallest_kept, torch.zeros_like(smallest_kept))
