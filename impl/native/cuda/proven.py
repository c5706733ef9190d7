"""Kernels that have to be seen running on a GPU before they are used of themselves.

Tests without a GPU compile what the emulator cannot run (``wgmma``, TMA, CUTLASS) and no more. Such a
kernel serves once ``proven.json`` names it, beside the library: the record of a run against the reference,
of the very sources the library was built from (``csrc/cuda/proven.cmake`` leaves out records of others).
``BITIMPL_UNPROVEN=1`` uses it all the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

#: Kernels that the emulator cannot run.
NEED_PROOF = ("wgmma", "bgmma", "cutlass")

FILE_NAME = "proven.json"
VARIABLE = "BITIMPL_UNPROVEN"


def unproven(kernels: tuple[str, ...], library: Path) -> dict[str, str]:
    """Why each of ``kernels`` of the library at that path must not be used of itself; empty where all may."""
    if os.environ.get(VARIABLE) == "1":
        return {}
    proven = _read(library.parent / FILE_NAME)
    return {
        name: f"no GPU has yet been seen to compute with it what the reference computes: set {VARIABLE}=1 to "
        "use it all the same"
        for name in kernels
        if name in NEED_PROOF and name not in proven
    }


def _read(path: Path) -> frozenset[str]:
    """Kernels that the file has a record of; none where there is no such file."""
    try:
        records = json.loads(path.read_text())
    except (OSError, ValueError):
        return frozenset()
    return frozenset(records) if isinstance(records, dict) else frozenset()
