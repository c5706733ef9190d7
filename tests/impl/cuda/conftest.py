"""The CUDA side of ``impl`` on a machine without a GPU: with the kernels that the emulator runs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "csrc"))

import cuda_library
from emulated import EmulatedLibrary

from impl import native
from impl.native import backends, dispatch
from impl.native.cuda import devices
from impl.native.cuda import library as loading
from impl.packing import layout


@pytest.fixture(scope="session")
def emulated_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_library.emulated_path(tmp_path_factory.getbasetemp())


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Nothing is known of libraries and devices yet, in memory or on disk; the directory of the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("BITIMPL_CUDA_LIBRARY_PATH", "BITIMPL_UNPROVEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(loading, "_loaded", None)
    monkeypatch.setattr(dispatch, "_cuda_answers", {})
    monkeypatch.setattr(backends, "_warned", set())
    devices.forget()
    yield tmp_path / "cache" / "bitimpl"
    devices.forget()


@pytest.fixture
def emulated(
    fresh: Path,
    emulated_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[EmulatedLibrary]:
    """The emulator's library as the one loaded: a copy, for what it leaves out it leaves out for good."""
    path = tmp_path / "libbitimpl_cuda.so"
    shutil.copy(emulated_path, path)
    library = EmulatedLibrary(path)
    monkeypatch.setattr(loading, "_loaded", library)
    yield library
    library.select("")


@pytest.fixture
def on_cpu_tensors(emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> EmulatedLibrary:
    """CPU tensors are the emulated device's in everything that goes by a tensor's device."""
    monkeypatch.setitem(dispatch.PREPARED, "cpu", native.cuda.PreparedCudaLinear)
    monkeypatch.setitem(dispatch.PREPARED_CONV, "cpu", native.cuda.PreparedCudaConv)
    monkeypatch.setitem(dispatch.PREPARED_SIGNS, "cpu", native.cuda.PreparedCudaSigns)
    monkeypatch.setitem(layout.CODECS, "cpu", dispatch.CUDA_CODEC)
    monkeypatch.setitem(dispatch.TRAINING, "cpu", native.cuda.training)
    for module in (native, dispatch):
        monkeypatch.setattr(module, "serves_cpu", lambda: True)
    return emulated
