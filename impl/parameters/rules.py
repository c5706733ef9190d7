"""The arithmetic of latent-free updates: averages, AdamW, the diode rule, and reproducible noise.

Nothing here draws from a random generator. Replicas of a distributed run must take the same
decisions from the same gradient, whatever their generators have been seeded with, so noise comes
from Weyl sequences (multiples of an irrational number modulo one) over the position of a weight and
the number of the step: equally spread, free of state, the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

DIODE_MARGIN = 1e-3
"""How far the long average of a binary weight starts from zero, at most, and after a flip."""

BLOCK = 1 << 16
"""Weights that a step looks at together: what it computes on the way takes so many floats a few times
over, not the whole weight that often."""

# 32-bit fractions of the golden ratio and of the square root of two.
_GOLDEN = 2654435769
_ROOT_TWO = 1779033703
_MASK = 0xFFFFFFFF


class Projector(Protocol):
    """What an update asks of a gradient projector such as :class:`impl.optim.GaLoreProjector`."""

    def project(self, full_rank_grad: Tensor, iter: int) -> Tensor: ...

    def project_back(self, low_rank_grad: Tensor) -> Tensor: ...

    def low_rank_shape(self, rows: int, cols: int) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False)
class Update:
    """One step of one parameter; the fields are the arguments of ``LowBitParameter.update``, and one more.

    ``grad`` is in the dtype of the arithmetic, ``step`` counts from 1; ``threshold`` is how far the long
    average of a binary weight must oppose it.
    """

    grad: Tensor
    exp_avg_s: Tensor
    exp_avg_l: Tensor
    step: int
    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    correct_bias: bool
    projector: Projector | None
    threshold: float = 0.0

    def part(self, rows: slice) -> Update:
        """The step of some rows of the parameter: views, so that the averages move in place."""
        return replace(
            self, grad=self.grad[rows], exp_avg_s=self.exp_avg_s[rows], exp_avg_l=self.exp_avg_l[rows]
        )


def state_shape(shape: Sequence[int], projector: Projector | None) -> tuple[int, ...]:
    """Shape of an average of the gradient of a parameter of ``shape``: its own, or the projector's."""
    if projector is None:
        return tuple(shape)
    cols = 1
    for size in shape[1:]:
        cols *= size
    return projector.low_rank_shape(shape[0], cols)


def move_average(state: Tensor, value: Tensor, beta: float, rows: Tensor | None = None) -> Tensor:
    """state <- beta state + (1 - beta) value, in place; returns the new average in value's dtype.

    With ``rows`` only those rows of ``state`` move, and ``value`` holds one row for each of them.
    """
    old = state if rows is None else state[rows]
    if old.numel() != value.numel():
        raise ValueError(
            f"an average of shape {tuple(state.shape)} cannot follow a gradient of shape "
            f"{tuple(value.shape)}: create the state with the shape of the gradient, or of its projection"
        )
    average = torch.lerp(old.to(value.dtype), value.reshape(old.shape), 1 - beta)
    if rows is None:
        state.copy_(average)
    else:
        state[rows] = average.to(state.dtype)
    return average


def adamw_change(value: Tensor, update: Update) -> Tensor:
    """What AdamW (Loshchilov and Hutter, 2019) adds to ``value``; moves both averages.

    With a projector the averages live in the projected space and the step is carried back from it
    (GaLore, Zhao et al., 2024). Same shape and dtype as ``value``.
    """
    if update.exp_avg_l.dtype == torch.float16:
        raise ValueError(
            "an average of squares cannot be kept in torch.float16, where those of gradients below 2e-4 "
            "vanish and the step explodes: use torch.bfloat16 or torch.float32"
        )
    gradient = update.grad
    if update.projector is not None:
        gradient = update.projector.project(gradient.flatten(1), update.step - 1)
    mean = move_average(update.exp_avg_s, gradient, update.beta1)
    square = move_average(update.exp_avg_l, gradient * gradient, update.beta2)
    if update.correct_bias:
        mean = mean / (1 - update.beta1**update.step)
        square = square / (1 - update.beta2**update.step)
    # A gradient that has always been zero asks for no step, with eps = 0 as well.
    direction = torch.where(mean == 0, mean, mean / (square.sqrt() + update.eps))
    if update.projector is not None:
        direction = update.projector.project_back(direction)
    return -update.lr * (direction.reshape(value.shape) + update.weight_decay * value)


def short_average(update: Update, rows: Tensor | None = None) -> Tensor:
    """The short average of the gradient, as a matrix of the weight's rows (or of ``rows`` only)."""
    gradient = update.grad.flatten(1)
    projector = update.projector
    if projector is not None:
        # A projection mixes rows: the whole of it moves.
        average = move_average(update.exp_avg_s, projector.project(gradient, update.step - 1), update.beta1)
    else:
        selected = gradient if rows is None else gradient[rows]
        average = move_average(update.exp_avg_s, selected, update.beta1, rows).flatten(1)
    if update.correct_bias:
        average = average / (1 - update.beta1**update.step)
    if projector is not None:
        average = projector.project_back(average)
        return average if rows is None else average[rows]
    return average


def diode_flips(signs: Tensor, update: Update, rows: Tensor | None = None) -> Tensor:
    """Which weights of sign ``signs`` (int8 matrix, of ``rows`` where given) flip: bool, same shape.

    With m the short average of the gradient and s the long average of the weight:

        vote = lr m / (|m| + eps)
        s   <- beta2 (1 - lr weight_decay) s + (1 - beta2) vote
        flip where sign(w) s > threshold, and there s <- sign(w) DIODE_MARGIN (w before the flip)

    s votes for the direction that the gradient has, so a weight flips to the side that lowers the
    loss. A flipped weight starts again at the margin: the steps that a steady gradient needs
    (:func:`impl.optim.first_flip_step`) depend on lr each time, not for the first flip only.
    """
    average = short_average(update, rows)
    # sign(m) is the limit for eps = 0, where 0 / 0 must stay 0.
    vote = update.lr * (average / (average.abs() + update.eps) if update.eps > 0 else average.sign())
    state = update.exp_avg_l
    long = (state if rows is None else state[rows]).to(vote.dtype).flatten(1)
    long = torch.lerp(long * (1 - update.lr * update.weight_decay), vote, 1 - update.beta2)
    flips = signs * long > update.threshold
    long = torch.where(flips, signs.to(long.dtype) * DIODE_MARGIN, long)
    if rows is None:
        state.copy_(long.reshape(state.shape))
    else:
        state[rows] = long.reshape(-1, *state.shape[1:]).to(state.dtype)
    return flips


def spread(count: int, step: int = 0, device: torch.device | None = None) -> Tensor:
    """``count`` values in (0, 1), spread evenly over positions and, at each position, over the steps:
    float32 [count], the same in every process."""
    offset = step * _ROOT_TWO & _MASK
    values = torch.empty(count, dtype=torch.float32, device=device)
    for begin in range(0, count, BLOCK):  # the integers take twice the room of the values
        end = min(begin + BLOCK, count)
        index = torch.arange(begin + 1, end + 1, dtype=torch.int64, device=device)
        # Of 23 bits: the nearest value to one is still below it in float32.
        values[begin:end] = ((index * _GOLDEN + offset) & _MASK) >> 9
    return values.add_(0.5).div_(1 << 23)


def dithered(whole: Tensor, fraction: Tensor, step: int) -> Tensor:
    """``whole`` + ``fraction`` rounded up or down, so that its mean over the steps is right.

    ``whole`` holds integers; where ``fraction`` is 0 they stay.
    """
    noise = spread(whole.numel(), step, whole.device).view(whole.shape)
    return whole + (fraction + noise).floor_()
