"""DoReFa quantisation to evenly spaced values (Zhou et al., arXiv 1606.06160), with its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from impl.checks import check_choice, check_positive
from impl.quantizers.sign import check_float, with_slope

MODES = ("activations", "weights")
"""What :func:`dorefa` can quantise."""

MAX_K_BIT = 16  # float32 holds 2^16 - 1 steps with room to spare


def dorefa(x: Tensor, k_bit: int = 2, mode: str = "activations") -> Tensor:
    """``x`` rounded to 2^k_bit evenly spaced values, in its own dtype; computed in float32 at least.

    With n = 2^k_bit - 1 and round() half to even:

    ``activations``  round(n clamp(x, 0, 1)) / n; slope 1 where 0 <= x <= 1, else 0.
    ``weights``      with u = tanh(x) / max|tanh(x)| over the tensor: 2 round(n (u + 1) / 2) / n - 1, from
                     -1 to 1, and for one bit +1 where x >= 0, else -1; slope
                     (1 - tanh(x)^2) / max|tanh(x)|, the maximum taken as a constant. A tensor of
                     zeros is divided by 1.

    The incoming gradient is multiplied by the slope. Raises ValueError for ``k_bit`` outside 1 .. 16 and
    for an unknown mode.
    """
    check_choice("DoReFa mode", mode, MODES)
    steps = 2 ** check_k_bit(k_bit) - 1
    constant = check_float(x).detach().to(torch.promote_types(x.dtype, torch.float32))
    if mode == "activations":
        value = (constant.clamp(0, 1) * steps).round() / steps
        slope = ((constant >= 0) & (constant <= 1)).to(x.dtype)
        return with_slope(value, x, slope)
    if x.numel() == 0:
        return with_slope(constant, x, None)
    squashed = torch.tanh(constant)
    largest = squashed.abs().amax()
    largest = torch.where(largest > 0, largest, 1.0)
    if k_bit == 1:
        # Rounding would send zero, halfway between the two values, to the lower one.
        value = torch.where(constant >= 0, 1.0, -1.0)
    else:
        value = 2 * ((squashed / largest + 1) / 2 * steps).round() / steps - 1
    return with_slope(value, x, ((1 - squashed.square()) / largest).to(x.dtype))


def check_k_bit(k_bit: int) -> int:
    """The number of bits as an int, if it lies in 1 .. 16."""
    number = check_positive("k_bit", k_bit)
    if number > MAX_K_BIT:
        raise ValueError(f"k_bit must be at most {MAX_K_BIT}, got {number}: leave wider values in float")
    return number
