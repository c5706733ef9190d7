"""The native CUDA kernels: where they are, which devices they serve, and how torch tensors reach them."""

from __future__ import annotations

from pathlib import Path

from impl.native.cuda.calls import PreparedCudaLinear, pack, unpack
from impl.native.cuda.convolution import PreparedCudaConv
from impl.native.cuda.devices import found_wrong, settled, why_not
from impl.native.cuda.library import ABI_VERSION, CudaLibrary, asked_for, load, require
from impl.native.cuda.preference import preferring
from impl.native.cuda.signs import PreparedCudaSigns
from impl.native.library import NativeError


def available() -> bool:
    """Whether the CUDA library is here and fits. Loads it on first use."""
    return not isinstance(load(), NativeError)


def library_path() -> Path | None:
    """The loaded library's file, or None."""
    library = load()
    return None if isinstance(library, NativeError) else library.path


def select_kernel(name: str | None) -> None:
    """Serve this thread's calls by CUDA kernel ``name``; None: by the library's own choice.

    For tests and measurements. Raises NativeError where there is no library or no such kernel, or where no
    GPU has been seen to run it (see :mod:`impl.native.cuda.proven`); a call that the kernel cannot serve
    raises it too.
    """
    library = require()
    if name in library.unproven:
        raise NativeError(f"CUDA kernel {name!r} was chosen, but {library.unproven[name]}")
    library.select(name or "")


__all__ = [
    "ABI_VERSION",
    "CudaLibrary",
    "PreparedCudaConv",
    "PreparedCudaLinear",
    "PreparedCudaSigns",
    "asked_for",
    "available",
    "found_wrong",
    "library_path",
    "load",
    "pack",
    "preferring",
    "require",
    "select_kernel",
    "settled",
    "unpack",
    "why_not",
]
