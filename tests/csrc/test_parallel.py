"""The threads of the library (csrc/cpu/parallel.*), called directly from a small program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from kernel_library import REPOSITORY, host_compiler

DRIVER = Path(__file__).with_name("parallel_driver.cpp")
SOURCES = REPOSITORY / "csrc" / "cpu"


SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.parametrize("flags", [["-O2"], SANITIZED], ids=["plain", "sanitized"])
def test_ranges_are_covered_and_regions_used_while_they_pay(tmp_path: Path, flags: list[str]) -> None:
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: install one to run the checks of the thread pool")
    program = tmp_path / "parallel_driver"
    sources = [str(DRIVER), str(SOURCES / "parallel.cpp")]
    command = [compiler, "-std=c++17", "-fopenmp", *flags, "-I", str(SOURCES), *sources, "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    # Leaks are not looked for: OpenMP's pool lives until the process ends.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
