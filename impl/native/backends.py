"""Which implementation serves a call: the native kernels or the torch reference.

The choice is the environment variable ``BITIMPL_BACKEND`` or, inside a ``with`` block,
:func:`backend`.

==========  ==================================================================================
``auto``    native kernels where they exist, else the torch reference with one warning (default)
``native``  native kernels, or :class:`NativeError`
``torch``   the torch reference; the library is not even loaded
==========  ==================================================================================
"""

from __future__ import annotations

import functools
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from impl.native.library import NativeError, available, why_not
from impl.packing import PackedWeight

BACKENDS = ("auto", "native", "torch")

_chosen: ContextVar[str | None] = ContextVar("bitimpl_backend", default=None)
_warned: set[str] = set()


def _check_backend(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source} is {name!r}: it must be one of {', '.join(BACKENDS)}")
    return name


@functools.cache
def _default_backend() -> str:
    return _check_backend(os.environ.get("BITIMPL_BACKEND") or "auto", "BITIMPL_BACKEND")


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Serve calls inside the ``with`` block by ``auto``, ``native`` or ``torch``."""
    token = _chosen.set(_check_backend(name, "backend"))
    try:
        yield
    finally:
        _chosen.reset(token)


def current_backend() -> str:
    """The choice in force here: ``auto``, ``native`` or ``torch``."""
    return _chosen.get() or _default_backend()


def choice_made() -> str | None:
    """The choice of :func:`backend` in force here, or None: then the environment's holds."""
    return _chosen.get()


def serves_cpu() -> bool:
    """:func:`impl.native.uses_native` of the CPU, for callers that count nanoseconds."""
    return _serves_cpu(_chosen.get())


@functools.cache
def _serves_cpu(chosen: str | None) -> bool:
    # Neither the library nor the environment is looked at twice, so neither is the answer.
    choice = chosen or _default_backend()
    if choice == "torch":
        return False
    if available():
        return True
    reason = why_not()
    if choice == "native":
        raise NativeError(f"backend 'native' was asked for, but {reason}")
    if os.environ.get("BITIMPL_LIBRARY_PATH"):
        raise NativeError(reason)
    warn_of_reference(reason)
    return False


def warn_of_reference(reason: str) -> None:
    """Say once that the torch reference serves, and why."""
    if reason in _warned:
        return
    _warned.add(reason)
    warnings.warn(
        f"bitimpl runs on its slow torch reference: {reason}. BITIMPL_BACKEND=torch silences this.",
        RuntimeWarning,
        stacklevel=4,
    )


_thread = threading.local()


def last_kernel() -> str:
    """Name of the kernel that served this thread's last call, such as
    ``ternary_linear/base3/int8/gemv/avx512``; names of the torch reference end in ``/torch``."""
    return getattr(_thread, "kernel", "")


def record_kernel(name: str) -> None:
    """Note which implementation served this thread's last call (the torch reference calls it)."""
    _thread.kernel = name


def kernel_name(
    weight: PackedWeight, activation_bits: int | None, served_by: str, operation: str = "linear"
) -> str:
    """``<operator>/<format>/<activation>/<served_by>``."""
    activation = activation_name(activation_bits)
    return f"{operator_of(weight.format, operation)}/{weight.format}/{activation}/{served_by}"


def activation_name(activation_bits: int | None) -> str:
    """What kernel names call activations of this width: ``float``, ``sign``, ``ternary``, ``int8``, ..."""
    return {None: "float", 1: "sign", 2: "ternary"}.get(activation_bits, f"int{activation_bits}")


def operator_of(format: str, operation: str = "linear") -> str:
    """The operator that applies weights of ``format``; ``operation`` is "linear" or "conv"."""
    return f"{'binary' if format == 'binary' else 'ternary'}_{operation}"
