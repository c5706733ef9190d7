"""Kernels that no test without a GPU can run serve of themselves with proof only, of their very sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import proof
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for folder in {os.path.normpath(proof.CUDA / name) for name in proof.FOLDERS}:
        shutil.copytree(folder, tmp_path / os.path.basename(folder))
    return tmp_path / proof.CUDA.name


def kept(sources: Path, records: Any) -> tuple[dict[str, Any], str]:
    """The records that a build of ``sources`` keeps, and what it says."""
    cmake = shutil.which("cmake")
    assert cmake is not None
    (sources / "proven.json").write_text(json.dumps(records))
    output = sources.parent / "kept.json"
    script = str(sources / "proven.cmake")
    command = [cmake, f"-DSOURCES={sources}", f"-DOUTPUT={output}", "-P", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(output.read_text())
    return found, done.stdout


def test_the_sources_of_a_kernel_are_all_it_includes() -> None:
    found = proof.sources_of("wgmma")
    assert {"gemm_sm90a.cu", "quantize.cu", "wgmma_loads.cuh", "wgmma_tile.cuh"} <= set(found)
    assert {"hopper.cuh", "ptx.cuh", "task.h", "layout.cuh"} <= set(found)
    assert "gemv.cu" not in found
    found = proof.sources_of("bgmma")
    assert {"binary_gemm_sm90a.cu", "prepare_bits.cu", "bgmma_loads.cuh", "bgmma_tile.cuh"} <= set(found)
    assert {"hopper_bits.cuh", "tensor_map.cuh", "bgmma_layout.h", "wgmma_layout.h", "bits.h"} <= set(found)


def test_the_sources_of_a_kernel_lie_in_two_folders() -> None:
    found = proof.sources_of("cutlass")
    assert {f"../cutlass/{name}" for name in ("bit_kernel.cu", "gemm.cu", "conv.cu", "shapes.h")} <= set(
        found
    )
    assert {"bits.cuh", "bits.h", "prepare_bits.cu", "workspace.h", "ptx.cuh"} <= set(found)
    assert all(os.path.dirname(name) in proof.FOLDERS for name in found)


@pytest.mark.parametrize("kernel", proof.KERNELS)
def test_a_record_holds_until_a_source_changes(sources: Path, kernel: str) -> None:
    record = proof.record_of(kernel, "90a", "results/some-run")
    assert kept(sources, {}) == ({}, "")
    assert kept(sources, {kernel: record}) == ({kernel: record}, "")
    for name in record["files"]:
        before = (sources / name).read_bytes()
        (sources / name).write_bytes(before + b"\n")
        found, said = kept(sources, {"other": record | {"files": {}}, kernel: record})
        assert found == {}
        assert f"changed since a GPU ran it: {name}" in said
        (sources / name).write_bytes(before)
    (sources / "task.h").unlink()
    assert kept(sources, {kernel: record})[0] == {}


def test_records_in_this_repository_are_whole() -> None:
    """A run that is gone, or a record without one of the headers, would prove nothing."""
    for kernel, record in json.loads(proof.PROVEN.read_text()).items():
        assert sorted(record["files"]) == proof.sources_of(kernel), f"{kernel}: write the record anew"
        assert record["architecture"] == "90a"
        assert (REPOSITORY / record["run"]).exists(), f"{kernel}: {record['run']} is not in the repository"
