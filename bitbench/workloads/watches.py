"""Where the time of a model's step goes: marks before and after its parts. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Split:
    """Seconds of a step in the blocks, in the head, in all, and in the converted layers."""

    blocks: float
    head: float
    total: float
    converted: float


def marked(parts: dict[str, list[nn.Module]], step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one ``step`` on the CPU, ``total``, and in each of ``parts``: from before the first of
    ``blocks`` to after the last, and the sum over the others."""
    starts: dict[str, list[float]] = {name: [] for name in parts}
    ends: dict[str, list[float]] = {name: [] for name in parts}
    with ExitStack() as hooks:
        for name, modules in parts.items():
            first, last = (modules[:1], modules[-1:]) if name == "blocks" else (modules, modules)
            for module in first:
                hooks.callback(module.register_forward_pre_hook(_marking(starts[name])).remove)
            for module in last:
                hooks.callback(module.register_forward_hook(_marking(ends[name])).remove)
        began = time.perf_counter()
        step()
        ended = time.perf_counter()
    spent = {name: sum(b - a for a, b in zip(starts[name], ends[name], strict=True)) for name in parts}
    return {**spent, "total": ended - began}


def _marking(marks: list[float]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        marks.append(time.perf_counter())

    return hook
