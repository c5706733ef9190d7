"""Where the time of a model's step goes: marks before and after its parts. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bitbench.measure.timers import Event, TorchGpu

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Split:
    """Seconds of a step in the blocks, in the head, in all, and in the converted layers."""

    blocks: float
    head: float
    total: float
    converted: float


class Watch(Protocol):
    """Marks moments while work is under way, and tells the time between them afterwards."""

    def mark(self) -> Any: ...

    def settle(self) -> None:
        """Wait until all that was marked has happened."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds."""
        ...


class CpuWatch:
    """The processor's clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        return

    def between(self, start: float, end: float) -> float:
        return end - start


class GpuWatch:
    """Events on the stream: the device does not wait for the host between layers because of them."""

    def __init__(self) -> None:
        self._gpu = TorchGpu()

    def mark(self) -> Event:
        event = self._gpu.event()
        event.record()
        self._last = event
        return event

    def settle(self) -> None:
        self._last.synchronize()

    def between(self, start: Event, end: Event) -> float:
        return end.since(start) / 1e9


def marked(watch: Watch, parts: dict[str, list[nn.Module]], step: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one ``step``, ``total``, and in each of ``parts``: from before the first of
    ``blocks`` to after the last, and the sum over the others."""
    starts: dict[str, list[Any]] = {name: [] for name in parts}
    ends: dict[str, list[Any]] = {name: [] for name in parts}
    with ExitStack() as hooks:
        for name, modules in parts.items():
            first, last = (modules[:1], modules[-1:]) if name == "blocks" else (modules, modules)
            for module in first:
                hooks.callback(module.register_forward_pre_hook(_marking(watch, starts[name])).remove)
            for module in last:
                hooks.callback(module.register_forward_hook(_marking(watch, ends[name])).remove)
        began = watch.mark()
        step()
        ended = watch.mark()
    watch.settle()
    spent = {
        name: sum(watch.between(a, b) for a, b in zip(starts[name], ends[name], strict=True))
        for name in parts
    }
    return {**spent, "total": watch.between(began, ended)}


def _marking(watch: Watch, marks: list[Any]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        marks.append(watch.mark())

    return hook
