"""What the optimizers of this package share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from impl.parameters import LowBitParameter
from impl.parameters.checks import check_gradient


class LowBitOptimizer(torch.optim.Optimizer):
    """``torch.optim.Optimizer`` whose state keeps the dtype that it was created or saved with."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.load_state_dict``, but nothing is cast to the dtype of a parameter.

        A bfloat16 parameter would otherwise turn its float32 averages into bfloat16 ones, in which an
        average with a beta near 1 stands still.
        """
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, parameter in zip(saved, own, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and name != "step":
                    self.state[parameter][name] = value.detach().to(parameter.device, copy=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As ``torch.optim.Optimizer.add_param_group``; options that make no sense are refused."""
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise TypeError or ValueError for options or parameters that the optimizer cannot serve."""

    def _due(self) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
        """The parameters that have a gradient, with it and their group, once all gradients have passed
        their checks: a refused step changes nothing."""
        return [(p, g, group) for group in self.param_groups for p, g in self._with_gradient(group)]

    def _with_gradient(self, group: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for parameter in group["params"]:
            low_bit = isinstance(parameter, LowBitParameter)
            gradient = parameter.update_gradient() if low_bit else parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} takes dense gradients, got layout {gradient.layout}: "
                    "build the embedding with sparse=False"
                )
            yield parameter, check_gradient(type(parameter).__name__, gradient) if low_bit else gradient


def evaluate(closure: Callable[[], float] | None) -> float | None:
    """The loss of ``closure``, evaluated with gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
