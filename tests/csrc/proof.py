"""What a record of a kernel that only a GPU can run says: see csrc/cuda/proven.cmake.

    python tests/csrc/proof.py wgmma 90a results/<run>

writes the record of the sources as they are into csrc/cuda/proven.json, after a GPU of that architecture has
passed the tests (tests/impl/cuda/test_on_gpu.py with BITIMPL_UNPROVEN=1) and the run is stored.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
PROVEN = CUDA / "proven.json"

#: The file of each kernel that needs proof, and of what prepares its input.
KERNELS = {"wgmma": ("gemm_sm90a.cu", "quantize.cu")}


def sources_of(kernel: str) -> list[str]:
    """The files of ``kernel`` and the headers of csrc/cuda that they include, however far."""
    found: list[str] = []
    ahead = list(KERNELS[kernel])
    while ahead:
        name = ahead.pop()
        if name in found:
            continue
        found.append(name)
        included = re.findall(r'^\s*#\s*include\s+"([^"/]+)"', (CUDA / name).read_text(), re.MULTILINE)
        ahead += [header for header in included if (CUDA / header).is_file()]
    return sorted(found)


def record_of(kernel: str, architecture: str, run: str) -> dict[str, Any]:
    """The record of ``kernel`` as its sources are."""
    files = {name: hashlib.sha256((CUDA / name).read_bytes()).hexdigest() for name in sources_of(kernel)}
    return {"architecture": architecture, "run": run, "files": files}


if __name__ == "__main__":
    name, built_for, stored = sys.argv[1:]
    records = json.loads(PROVEN.read_text())
    records[name] = record_of(name, built_for, stored)
    PROVEN.write_text(json.dumps(records, indent=2) + "\n")
