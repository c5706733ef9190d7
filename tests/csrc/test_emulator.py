"""The emulator runs right kernels and finds out wrong ones: no barrier, no wait, a hang, a split warp."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kernel_library import REPOSITORY, host_compiler

PROBE = Path(__file__).with_name("emulator_probe.cpp")
SOURCES = [
    PROBE,
    *(REPOSITORY / "csrc" / "emulator").glob("*.cpp"),
    REPOSITORY / "csrc" / "common" / "checks.cpp",
]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compile_probe(directory: Path, flags: list[str]) -> Path:
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: install one to run the emulator")
    program = directory / "probe"
    command = [
        compiler, "-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-DBITIMPL_EMULATOR", *flags,
        *map(str, SOURCES), "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    return program


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("flags", [[], SANITIZED], ids=["plain", "sanitized"])
def test_right_kernels_run_and_wrong_ones_are_found_out(tmp_path: Path, flags: list[str]) -> None:
    done = run(compile_probe(tmp_path, flags))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 18
    assert [line for line in lines if not line.endswith(": ok")] == []


def test_writes_past_shared_memory_stop_a_sanitized_run(tmp_path: Path) -> None:
    done = run(compile_probe(tmp_path, SANITIZED), "overrun")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
