"""Finding, loading and asking the library of CUDA kernels, and what needs proof."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from emulated import EmulatedLibrary

from impl import native
from impl.native.cuda import library as loading
from impl.native.cuda import proven
from impl.native.library import NativeError

GPU = torch.device("cuda", 0)


@pytest.fixture
def nowhere(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA library was installed."""
    monkeypatch.setattr(loading, "_places", lambda: iter(()))


@pytest.mark.usefixtures("nowhere")
def test_without_a_library_the_reason_names_the_remedy() -> None:
    assert not native.cuda.available()
    assert native.cuda.library_path() is None
    reason = native.cuda.why_not(0, "linear", "base3")
    assert "nvcc" in reason
    assert "BITIMPL_CUDA=on" in reason
    assert "BITIMPL_CUDA_LIBRARY_PATH" in reason
    with pytest.raises(NativeError, match="not built"):
        native.cuda.select_kernel("any")
    with (
        native.backend("native"),
        pytest.raises(NativeError, match="'native' was asked for, but the CUDA kernels"),
    ):
        native.uses_native(GPU)
    with native.backend("torch"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.uses_native(GPU)
    with native.backend("auto"):
        with pytest.warns(RuntimeWarning, match="the CUDA kernels were not built"):
            assert not native.uses_native(GPU)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not native.uses_native(GPU)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("choice", ["auto", "native"])
def test_a_path_that_leads_nowhere_is_an_error_not_a_fallback(
    choice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BITIMPL_CUDA_LIBRARY_PATH", str(tmp_path / "none"))
    with (
        native.backend(choice),
        pytest.raises(NativeError, match=r"BITIMPL_CUDA_LIBRARY_PATH=.*unset the variable"),
    ):
        native.uses_native(GPU)


@pytest.mark.usefixtures("fresh")
def test_the_library_is_found_beside_that_for_processors(
    emulated_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(emulated_path, tmp_path / loading.LIBRARY_NAME)
    monkeypatch.setattr(loading.cpu, "library_path", lambda: tmp_path / "libbitimpl_cpu.so")
    assert native.cuda.library_path() == tmp_path / loading.LIBRARY_NAME


@pytest.mark.usefixtures("fresh")
def test_the_environment_names_a_file_or_its_directory(
    emulated_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(emulated_path, tmp_path / loading.LIBRARY_NAME)
    for named in (emulated_path, tmp_path):
        monkeypatch.setenv("BITIMPL_CUDA_LIBRARY_PATH", str(named))
        monkeypatch.setattr(loading, "_loaded", None)
        library = loading.require()
        assert library.architectures == ("emulated",)
        assert library.toolkit == "0.0"
        assert "any" in library.kernels


@pytest.mark.usefixtures("fresh")
def test_files_that_are_no_such_library_are_named(
    emulated_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / loading.LIBRARY_NAME
    path.write_bytes(b"not a library")
    with pytest.raises(NativeError, match=str(path)):
        EmulatedLibrary(path)
    cpu = native.library_path()
    if cpu is not None:
        with pytest.raises(NativeError, match="is not a bitimpl library"):
            EmulatedLibrary(cpu)
    monkeypatch.setattr(EmulatedLibrary, "abi", ("cuda_abi_version", 99))
    with pytest.raises(NativeError, match="needs 99: rebuild it"):
        EmulatedLibrary(emulated_path)


def test_devices_are_described_and_others_refused(emulated: EmulatedLibrary) -> None:
    emulated.emulate(86, 7, device=1)
    assert emulated.count() == 2
    found = emulated.describe(1)
    assert (found.architecture, found.multiprocessors) == (86, 7)
    with pytest.raises(NativeError, match=r"cuda:5 cannot be used: device 5: there are 2"):
        emulated.describe(5)
    assert "device 5" in native.cuda.why_not(5, "linear", "base3")


def test_the_choice_of_a_kernel_is_checked_and_belongs_to_the_thread(emulated: EmulatedLibrary) -> None:
    with pytest.raises(NativeError, match='no CUDA kernel "fast": choose one of'):
        native.cuda.select_kernel("fast")
    assert emulated.selection.name == ""
    native.cuda.select_kernel("any")
    assert emulated.selection.name == "any"
    native.cuda.select_kernel(None)
    assert emulated.selection.name == ""
    with pytest.raises(NativeError, match="no CUDA kernel"):
        emulated.avoid("fast", 0)


# ---- kernels that need proof --------------------------------------------------------------------


def test_kernels_without_proof_are_refused_with_the_way_around(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulated, "unproven", proven.unproven(("any", "wgmma"), emulated.path))
    assert set(emulated.unproven) == {"wgmma"}
    with pytest.raises(NativeError, match=r"'wgmma' was chosen, but no GPU .* BITIMPL_UNPROVEN=1"):
        native.cuda.select_kernel("wgmma")


def test_proof_lies_beside_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITIMPL_UNPROVEN", raising=False)
    library = tmp_path / loading.LIBRARY_NAME
    assert set(proven.unproven(("gemv", "wgmma"), library)) == {"wgmma"}
    for damaged in ("", "[1", "[]", "3"):
        (tmp_path / "proven.json").write_text(damaged)
        assert set(proven.unproven(("gemv", "wgmma"), library)) == {"wgmma"}
    (tmp_path / "proven.json").write_text(json.dumps({"wgmma": {"architecture": "90a"}}))
    assert proven.unproven(("gemv", "wgmma"), library) == {}
    (tmp_path / "proven.json").unlink()
    monkeypatch.setenv("BITIMPL_UNPROVEN", "1")
    assert proven.unproven(("gemv", "wgmma"), library) == {}
