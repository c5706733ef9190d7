"""What the workloads that check a layer share: the layer as made, and its outputs beside the exact ones.

Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitbench.layers.base import LayerCost, LayerKind, LayerSpec
from bitbench.store.schema import Check

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Made:
    """A layer on its device, and what its kind says about it."""

    kind: LayerKind
    spec: LayerSpec
    module: nn.Module
    rows: int
    """Of the weight as a matrix: output features or channels."""
    columns: int
    """Of the weight as a matrix: products summed up in one output."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the input."""
        import torch

        dtype: torch.dtype = getattr(torch, self.kind.input_dtype(self.spec))
        return dtype

    @property
    def cost(self) -> LayerCost:
        return self.kind.cost(self.spec, self.columns, self.rows)

    @property
    def tolerance(self) -> float:
        return self.kind.tolerance(self.spec, self.columns)

    @property
    def isa(self) -> str:
        """Instruction set that the layer is held to; empty where it is none."""
        return getattr(self.spec, "isa", None) or ""

    def fallback(self, kernels: str) -> str | None:
        """See :func:`fallback_of`."""
        return fallback_of(self.kind, self.spec, kernels)


def fallback_of(kind: LayerKind, spec: LayerSpec, kernels: str) -> str | None:
    """Why one of ``kernels``, names joined by ", ", is not what the layer's name promises, or None."""
    reasons = (kind.fallback(spec, name) for name in kernels.split(", "))
    return next((reason for reason in reasons if reason), None)


class Comparison:
    """Outputs held against the exact ones, part by part."""

    def __init__(self) -> None:
        self._worst = 0.0
        self._largest = 0.0
        self._compared = 0

    def add(self, got: Tensor, exact: Tensor) -> None:
        """One part. A NaN on either side is an infinite difference: it has no place in an order."""
        difference = (got.double() - exact.double()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
        self._worst = max(self._worst, float(difference.max()))
        self._largest = max(self._largest, float(exact.abs().max()))
        self._compared += exact.numel()

    def check(self, tolerance: float, *, sound: bool) -> Check:
        """The largest difference, as a part of the largest exact output, against ``tolerance``. Beside
        exact outputs that are all zero any difference is infinite.

        ``sound``: whether all is well outside the parts compared; nothing passes where it is not.
        """
        if not sound or self._worst == math.inf:
            error = math.inf
        elif self._worst == 0:
            error = 0.0
        else:
            error = self._worst / self._largest if self._largest > 0 else math.inf
        return Check(passed=error <= tolerance, max_error=error, tolerance=tolerance, compared=self._compared)


@contextmanager
def watched(
    layers: Iterable[nn.Module], rows: Sequence[int] | None = None
) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """What each of ``layers`` is given and gives in its last call while the block runs; of a batch these
    ``rows``, or all. Copies: a network may write over what it has handed on."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    chosen = slice(None) if rows is None else list(rows)

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[layer] = inputs[0][chosen].detach().clone(), output[chosen].detach().clone()

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        yield seen


def sampled_images(count: int) -> list[int]:
    """The images of a batch of ``count`` whose outputs are compared: the first, the middle and the last."""
    return sorted({0, count // 2, count - 1})


def combined(checks: Sequence[Check]) -> Check:
    """The worst of ``checks``, passed where all are."""
    worst = max(checks, key=lambda check: check.max_error / check.tolerance)
    compared = sum(check.compared for check in checks)
    return worst.model_copy(update={"passed": all(check.passed for check in checks), "compared": compared})


def check_seen(
    kind: LayerKind, spec: LayerSpec, seen: Mapping[nn.Module, tuple[Tensor, Tensor]], *, sound: bool
) -> Check:
    """Layers of a network, convolutions among them, against the exact reference on what they were given: of
    :func:`sampled_images`. The worst of them stands for all; ``sound`` as for :meth:`Comparison.check`."""
    checks = []
    for layer, (given, got) in seen.items():
        chosen = sampled_images(len(given))
        x = given[chosen]
        exact = (
            kind.conv2d_reference(spec, layer, x)
            if x.dim() == 4
            else kind.reference(spec, layer, x, slice(0, got.shape[1]))
        )
        comparison = Comparison()
        comparison.add(got[chosen], exact)
        own: Any = layer
        columns = getattr(own, "in_features", None) or own.weight[0].numel()
        checks.append(comparison.check(kind.tolerance(spec, columns), sound=sound))
    return combined(checks)


def poison(x: Tensor, shape: tuple[int, ...]) -> None:
    """Leave NaN in freed memory of the size of the coming output, ``shape`` in the type of ``x`` or in
    float32: an element that a kernel does not write then shows."""
    import torch

    blocks = [x.new_empty(shape).fill_(math.nan) for _ in range(2)]
    wide = x.new_full(shape, math.nan, dtype=torch.float32)
    del blocks, wide
