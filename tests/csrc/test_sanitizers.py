"""The case table under the address and undefined-behaviour sanitizers, through every instruction set.

A build of its own (csrc with BITIMPL_SANITIZE=ON) and a small driver: no Python in the process,
every buffer exactly as large as impl.h asks for.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conv_cases import CONV_CASES
from kernel_cases import CASES, EXTREME_CASES, with_tokens
from kernel_library import Library, build, compile_driver, host_compiler


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: install one to run the kernels under the sanitizers")
    directory = tmp_path_factory.mktemp("sanitize")
    library = build(directory, "-DBITIMPL_SANITIZE=ON", "-DBITIMPL_CUDA=off")
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return compile_driver(directory / "sanitize_driver", library, compiler, flags)


def run(driver: Path, lines: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    # Leaks are not looked for: the OpenMP pool lives until the process ends.
    options = {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [str(driver)],
        input="\n".join(lines),
        env=os.environ | options | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_kernels_under_sanitizers(driver: Path, library: Library) -> None:
    cases = CASES + [with_tokens(case, 0) for case in CASES[:3]] + EXTREME_CASES
    done = run(driver, [case.line for case in cases], threads=2)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.strip() == f"{len(cases)} cases on {','.join(library.supported())}"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_convolutions_under_sanitizers(driver: Path, library: Library, threads: int) -> None:
    done = run(driver, [case.line for case in CONV_CASES], threads=threads)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.strip() == f"{len(CONV_CASES)} cases on {','.join(library.supported())}"


@pytest.mark.slow
def test_driver_reports_a_failing_case(driver: Path) -> None:
    good = CASES[0].line
    bad = " ".join(["7", *good.split()[1:]])  # no such format
    done = run(driver, [good, bad], threads=1)
    assert done.returncode == 1
    assert bad in done.stderr
