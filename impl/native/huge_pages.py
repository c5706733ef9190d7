"""Huge pages for weights that are read from memory.

Packed weights are read once a call, front to back: with small pages time from memory goes into address
translation. Linux backs memory by huge pages where a program asks for them.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")

# Of Linux's madvise: use huge pages from now on; and make them at once (Linux 6.1).
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25


@functools.cache
def huge_page_bytes() -> int:
    """Size of a huge page; 0 where the system has none or its owner has switched them off."""
    if not sys.platform.startswith("linux"):
        return 0
    try:
        if "[never]" in (_SETTINGS / "enabled").read_text():
            return 0
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


@functools.cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages behind those whole ones that the memory of a CPU ``tensor`` covers.

    Moves what lies there, once; the tensor takes no more memory than before. Where the system cannot or
    will not, nothing changes.
    """
    page = huge_page_bytes()
    if page == 0:
        return
    begin = -(-tensor.data_ptr() // page) * page
    size = (tensor.data_ptr() + tensor.nbytes) // page * page - begin
    if size > 0 and _madvise()(begin, size, _MADV_COLLAPSE) != 0:
        _madvise()(begin, size, _MADV_HUGEPAGE)
