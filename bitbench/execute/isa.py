"""Instruction sets of layers that name one. Worker side.

The native library serves a whole process by one instruction set. A layer with ``isa: avx2`` gets its
own before it works, all others that of the process (the best here, or ``BITIMPL_ISA``).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from bitbench.layers.base import LayerSpec
from bitbench.workloads.base import Unsupported

_own: list[str] = []
"""The process's own instruction set, for as long as another may be in use."""


@contextlib.contextmanager
def own_isa() -> Iterator[None]:
    """Afterwards the process has the instruction set back that it had before."""
    try:
        yield
    finally:
        if _own:
            _select(_own.pop())


def use_isa(spec: LayerSpec) -> None:
    """Make ready for calls of a layer: its own instruction set, or the process's where it names none.

    To be called within :func:`own_isa`. Raises :class:`Unsupported` where the layer names one that
    cannot serve here.
    """
    wanted: str | None = getattr(spec, "isa", None)
    if wanted is None:
        if _own:
            _select(_own[0])
        return
    from impl import native

    if native.current_backend() == "torch":
        raise Unsupported(f"isa: {wanted} names native kernels, and BITIMPL_BACKEND=torch forbids them")
    if not native.available():
        raise Unsupported(f"isa: {wanted} names native kernels, and there are none: {native.why_not()}")
    if wanted not in native.supported_isas():
        there = ", ".join(native.supported_isas())
        raise Unsupported(f"isa: {wanted} is not usable here, which has {there}")
    if not _own:
        _own.append(native.isa())
    _select(wanted)


def _select(name: str) -> None:
    native = sys.modules["impl.native"]
    if native.isa() != name:
        native.select_isa(name)
