"""The shared library under test: BITIMPL_LIBRARY_PATH, else the installed one, else built here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401  (first, so that the kernels share its OpenMP runtime)

sys.path.insert(0, str(Path(__file__).parent))

import cuda_library
import kernel_library
from cuda_library import CudaLibrary
from kernel_library import ISA_FLAGS, Library


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    path = kernel_library.find() or kernel_library.build(tmp_path_factory.mktemp("csrc"))
    return kernel_library.load(path)


@pytest.fixture(params=list(ISA_FLAGS))
def isa(request: pytest.FixtureRequest, library: Library) -> Iterator[str]:
    """Each instruction set of this family in turn, in force meanwhile; skipped where it is lacking."""
    name = request.param
    missing = ISA_FLAGS[name] - _processor_flags()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))} for {name}")
    library.select(name)
    yield name
    library.select(None)


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    """The CUDA kernels, built for the emulator."""
    return cuda_library.load_emulated(cuda_library.emulated_path(tmp_path_factory.getbasetemp()))
