"""Preferring a kernel for the calls of a layer that is named after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from impl.native.cuda import library as cuda_library
from impl.native.library import NativeError

#: Types of devices whose calls the CUDA library serves.
DEVICE_TYPES = ("cuda",)


@contextlib.contextmanager
def preferring(name: str, device: torch.device) -> Iterator[None]:
    """Inside the ``with`` block this thread's calls are served by CUDA kernel ``name`` where that was built,
    has proof, was not found wrong and can serve them; all others as they are anyway.

    ``device``: where the tensors of the calls are; nothing is done for processors. A kernel that
    :func:`impl.native.cuda.select_kernel` has chosen comes before. Compiled graphs (torch.compile) run
    outside of the block and keep the library's own choice.
    """
    if torch.compiler.is_compiling() or device.type not in DEVICE_TYPES:
        yield
        return
    library = cuda_library.load()
    if isinstance(library, NativeError) or name not in library.kernels:
        yield
        return
    before = library.selection.preferred
    library.prefer(name)
    try:
        yield
    finally:
        library.prefer(before)
