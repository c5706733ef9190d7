"""DiodeMix: one optimizer for low-bit and ordinary parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from impl.optim.base import LowBitOptimizer, evaluate
from impl.optim.galore import GaLoreProjector
from impl.parameters import DIODE_MARGIN, LowBitParameter
from impl.parameters.rules import Update, adamw_change, state_shape

_PROJECTION = ("update_proj_gap", "scale", "proj_type")
"""Options of a group beside its ``rank``, for :class:`GaLoreProjector`."""


def first_flip_step(
    u: float,
    lr: float,
    beta2: float,
    weight_decay: float = 0.0,
    threshold: float = 0.0,
    margin: float = DIODE_MARGIN,
) -> float:
    """Steps that a steady, opposing gradient needs to flip a binary weight; infinity where it cannot.

    The long average starts at -u margin (in the direction that opposes the weight) and moves by
    s <- r s + (1 - beta2) lr a step, with r = beta2 (1 - lr weight_decay). It tends to
    v = (1 - beta2) lr / (1 - r), which is lr without weight decay:

        s_t = v - (v + u margin) r^t

    The weight flips when s_t passes ``threshold``, after

        t = ln((v + u margin) / (v - threshold)) / -ln(r)

    steps. ``u`` lies in [0, 1], the gradient is large against ``eps``. Later flips start from u = 1.
    """
    ratio = beta2 * (1 - lr * weight_decay)
    limit = (1 - beta2) * lr / (1 - ratio)
    if limit <= threshold:
        return math.inf
    if ratio <= 0:  # nothing is remembered
        return 1.0
    return math.log((limit + u * margin) / (limit - threshold)) / -math.log(ratio)


class DiodeMix(LowBitOptimizer):
    """Descends low-bit parameters by the rule of their class, all others by AdamW.

    params: any parameters, or groups with options of their own.
    lr, betas, eps, weight_decay: as in AdamW. For binary parameters ``lr`` is the size of a vote, ``eps``
        damps the votes of vanishing gradients, ``weight_decay`` shortens the memory of the long average;
        see :class:`impl.parameters.BinaryParameter`.
    correct_bias: divide averages that start at zero by 1 - beta ** step.
    dtype: of the averages. Arithmetic is in float32 at least.
    threshold: what the long average must oppose a binary weight by, in units of ``lr``: with steady votes
        it reaches ``lr``, with random ones it hovers about zero. So threshold / lr is the surplus of
        opposing votes that a flip takes, and weights settle when a schedule takes ``lr`` below it.

    Group options for GaLore: ``rank`` turns it on for the group's parameters of two or more dimensions
    (trailing ones flattened), ``update_proj_gap``, ``scale`` and ``proj_type`` as in
    :class:`GaLoreProjector`. Vectors are updated in full. ``update_proj_gap`` and ``scale`` may change
    between steps; ``rank`` and ``proj_type``, which shape the averages, may not.

    **When weights flip.** A binary weight starts with a long average of -sign(w) u 1e-3, u spread over
    (0, 1), and every step adds a vote of at most ``lr`` with weight 1 - beta2. Under a steady opposing
    gradient s_t = lr - (lr + u 1e-3) beta2^t, so the first flip comes at

        t = ln((lr + u 1e-3) / (lr - threshold)) / -ln(beta2)

    (:func:`first_flip_step`). The defaults here, lr = 1e-3, beta2 = 0.999 and threshold = 2e-4, give a
    median (u = 1/2) of 628 steps and at most 916: weights change within hundreds of steps, on the votes of
    hundreds of batches, six of ten of which agree. With lr = 1e-4, beta2 = 0.9999 and no threshold, as
    bitorch_engine has them, the median is 17 917 steps and the last weight follows after 23 978, longer
    than many a training run: choose beta2 so that 1 / (1 - beta2) is a small part of the run. A flipped
    weight starts again at the full margin, so these times hold, with u = 1, for every flip.

    Raises ValueError for negative ``lr``, ``eps``, ``weight_decay`` or ``threshold``, betas outside [0, 1),
    averages of a ``dtype`` too coarse for them or of another space than the group's, and gradients of
    low-bit parameters with NaN or infinity (their values could not show it); TypeError for complex
    parameters; RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        dtype: torch.dtype = torch.float,
        *,
        threshold: float = 2e-4,
    ) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}: use torch.float32")
        self.dtype = dtype
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
            "threshold": threshold,
        }
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "dtype": self.dtype}

    def _check_group(self, group: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay", "threshold"):
            if not group[name] >= 0:
                raise ValueError(f"{name} must not be negative, got {group[name]}")
        resolution = torch.finfo(self.dtype).eps
        for beta in group["betas"]:
            if not 0 <= beta < 1:
                raise ValueError(f"betas must lie in [0, 1), got {tuple(group['betas'])}")
            if 1 - beta < resolution:
                raise ValueError(
                    f"an average with beta {beta} stands still in {self.dtype}, which resolves "
                    f"{resolution:.1e}: use dtype=torch.float32, or a beta of at most {1 - resolution:.4f}"
                )
        if "rank" in group:
            _projector(group)
        elif set(_PROJECTION) & set(group):
            named = ", ".join(name for name in _PROJECTION if name in group)
            raise ValueError(f"{named} without rank: give the group a rank, which turns GaLore on")
        for parameter in group["params"]:
            if parameter.is_complex():
                raise TypeError(
                    f"DiodeMix trains real parameters, got {parameter.dtype} of shape "
                    f"{tuple(parameter.shape)}: keep torch.view_as_real(...) of it as the parameter"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns the loss of ``closure`` where given."""
        loss = evaluate(closure)
        due = [(p, gradient, group, self._projector_of(p, group)) for p, gradient, group in self._due()]
        for parameter, gradient, group, projector in due:
            self._step(parameter, gradient, group, projector)
        return loss

    def _step(
        self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], projector: GaLoreProjector | None
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg_s"], state["exp_avg_l"] = self._initial(parameter, projector)
        update = Update(
            grad=gradient,
            exp_avg_s=state["exp_avg_s"],
            exp_avg_l=state["exp_avg_l"],
            step=int(state["step"].add_(1).item()),
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            correct_bias=group["correct_bias"],
            projector=projector,
            threshold=group["threshold"],
        )
        if isinstance(parameter, LowBitParameter):
            parameter.descend(update, self.dtype)
        else:
            work = torch.promote_types(torch.promote_types(parameter.dtype, self.dtype), torch.float32)
            value = parameter.to(work)
            parameter.copy_(value + adamw_change(value, replace(update, grad=gradient.to(work))))
        if projector is not None:
            # In the state, so that a checkpoint holds the space that the averages live in.
            sides = {"galore_left": projector.left, "galore_right": projector.right}
            state.update({name: side for name, side in sides.items() if side is not None})

    def _initial(self, parameter: Tensor, projector: GaLoreProjector | None) -> tuple[Tensor, Tensor]:
        if isinstance(parameter, LowBitParameter):
            return parameter.initial_state(self.dtype, projector)
        shape = state_shape(parameter.shape, projector)
        short = torch.zeros(shape, dtype=self.dtype, device=parameter.device)
        return short, torch.zeros_like(short)

    def _projector_of(self, parameter: Tensor, group: dict[str, Any]) -> GaLoreProjector | None:
        """What the group says now, in the subspace that the state holds; ValueError where the averages
        are of another space."""
        projector = _projector(group) if "rank" in group and parameter.dim() >= 2 else None
        state = self.state.get(parameter)
        if not state:
            return projector
        held, needed = tuple(state["exp_avg_s"].shape), state_shape(parameter.shape, projector)
        if held != needed:
            raise ValueError(
                f"the averages of a parameter {tuple(parameter.shape)} have shape {held}, its group now asks "
                f"for {needed}: keep the rank and proj_type that the group had in the first step"
            )
        # At full rank the shapes of different spaces agree.
        kept = ("galore_left" in state, "galore_right" in state)
        wanted = _sides(parameter, projector)
        if kept != wanted:
            raise ValueError(
                f"the averages of a parameter {tuple(parameter.shape)} are {_SPACES[kept]}, its group now "
                f"asks for {_SPACES[wanted]} ones: keep the rank and proj_type of the first step"
            )
        if projector is not None:
            projector.left, projector.right = state.get("galore_left"), state.get("galore_right")
        return projector


_SPACES = {
    (False, False): "unprojected",
    (True, False): "projected from the left",
    (False, True): "projected from the right",
    (True, True): "projected from both sides",
}


def _sides(parameter: Tensor, projector: GaLoreProjector | None) -> tuple[bool, bool]:
    """From which sides ``projector`` acts on the gradient of ``parameter``, flattened to a matrix."""
    if projector is None:
        return False, False
    return projector.sides(parameter.shape[0], parameter.shape[1:].numel())


def _projector(group: dict[str, Any]) -> GaLoreProjector:
    """The projector that the options of ``group`` describe; ValueError for others."""
    options = {name: group[name] for name in _PROJECTION if name in group}
    return GaLoreProjector(group["rank"], **options)
