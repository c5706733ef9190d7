"""Bop, the binary optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from impl.optim.base import LowBitOptimizer, evaluate
from impl.parameters import BinaryParameter


class Bop(LowBitOptimizer):
    """Flips binary weights against a persistent gradient (Helwegen et al., 2019, algorithm 1).

        m <- (1 - gamma) m + gamma g
        flip where |m| > threshold and m has the sign of the weight

    params: binary parameters (:class:`impl.parameters.BinaryParameter`) or groups of them; biases and
        norms take an optimizer of their own.
    threshold: in units of the gradient; larger ones flip less.
    gamma: in (0, 1]; 1 / gamma is about the number of steps that the average looks back. Schedule it
        through ``group["gamma"]``.

    The state is one float32 average a weight. Raises ValueError for other values and for gradients with
    NaN or infinity, TypeError for other parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        threshold: float = 1e-8,
        gamma: float = 1e-4,
    ) -> None:
        super().__init__(params, {"threshold": threshold, "gamma": gamma})

    def _check_group(self, group: dict[str, Any]) -> None:
        if not group["threshold"] >= 0:
            raise ValueError(f"threshold must not be negative, got {group['threshold']}")
        if not 0 < group["gamma"] <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {group['gamma']}")
        for parameter in group["params"]:
            if not isinstance(parameter, BinaryParameter):
                raise TypeError(
                    f"Bop trains binary parameters, got {type(parameter).__name__} of shape "
                    f"{tuple(parameter.shape)}: give the others to AdamW, or all of them to DiodeMix"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; returns the loss of ``closure`` where given."""
        loss = evaluate(closure)
        for parameter, gradient, group in self._due():
            assert isinstance(parameter, BinaryParameter)
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
            average = state["exp_avg"].lerp_(gradient.to(torch.float32), group["gamma"])
            signs = parameter.signs().reshape(parameter.shape)
            parameter.flip_(average * signs > group["threshold"])
        return loss
