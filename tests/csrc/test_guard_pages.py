"""Every operator between guard pages: no byte outside of a buffer is read or written.

The driver of the sanitizer tests, without sanitizers and on the very library under test. Every buffer
that it hands over (codes, packed codes, scales, x, bias, y, workspace, what quantising, unpacking,
dequantising and reading take and give) ends where a page without access begins, to the byte, and in a
second pass begins where one ends; what the library is given const cannot be written. It runs in a
process of its own, so that a fault is a failure that names case, instruction set, buffer and place.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conv_cases import CONV_CASES, ConvCase
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, with_tokens
from kernel_library import F16, Library, compile_driver, host_compiler
from sweep_cases import LINEAR_KINDS, batches, conv_tails, tails

pytestmark = pytest.mark.slow

#: Where the page without access lies: behind each buffer or in front of it.
placements = pytest.mark.parametrize("placement", ["behind", "front"])

LINEAR = CASES + ZERO_CASES + EXTREME_CASES + [with_tokens(case, 0) for case in CASES[::7]]

#: Enough work for eight threads (see csrc/cpu/parallel.cpp), also where an activation is one bit.
THREADED = [
    Case(fmt, 2, 331, 1543, group_size, activation, 83, bias_dtype=F16)
    for fmt, activation in LINEAR_KINDS
    for group_size in (0, 136)
]
THREADED_CONV = [replace(case, samples=4) for case in CONV_CASES if (case.rows, case.channels) == (96, 64)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, library: Library) -> Path:
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: install one to run the kernels between guard pages")
    return compile_driver(tmp_path_factory.mktemp("guard_pages") / "driver", library.path, compiler)


def run(driver: Path, placement: str, lines: list[str], threads: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(driver), placement, str(threads)],
        input="\n".join(lines),
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_DYNAMIC": "false"},
        capture_output=True,
        text=True,
        check=False,
    )


def passes(
    driver: Path, library: Library, placement: str, cases: list[Case] | list[ConvCase], threads: int = 2
) -> None:
    assert cases
    done = run(driver, placement, [case.line for case in cases], threads)
    assert done.returncode == 0, done.stderr[-3000:] or f"ended with {done.returncode}"
    assert done.stdout.strip() == f"{len(cases)} cases on {','.join(library.supported())}"


@placements
def test_linear(driver: Path, library: Library, placement: str) -> None:
    passes(driver, library, placement, LINEAR)


@placements
def test_linear_of_every_tail(driver: Path, library: Library, placement: str) -> None:
    passes(driver, library, placement, tails())


@placements
def test_linear_of_every_batch(driver: Path, library: Library, placement: str) -> None:
    passes(driver, library, placement, batches())


@placements
def test_convolutions(driver: Path, library: Library, placement: str) -> None:
    passes(driver, library, placement, CONV_CASES + conv_tails())


@pytest.mark.parametrize("threads", range(1, 9))
def test_threads(driver: Path, library: Library, threads: int) -> None:
    passes(driver, library, "behind", THREADED, threads)
    passes(driver, library, "behind", THREADED_CONV, threads)


@pytest.mark.parametrize(
    ("placement", "act", "message"),
    [
        ("behind", "read behind", "x was accessed outside: 0 bytes past the end of its 308 bytes"),
        ("front", "read before", "x was accessed outside: 1 bytes before the begin of its 308 bytes"),
        ("behind", "write behind", "q was accessed outside: 0 bytes past the end of its 77 bytes"),
        ("behind", "write before", "q was written outside: 1 bytes before the begin of its 77 bytes"),
        ("front", "write behind", "q was written outside: 0 bytes past the end of its 77 bytes"),
        ("front", "write before", "q was accessed outside: 1 bytes before the begin of its 77 bytes"),
        ("behind", "write input", "x may not be written: byte 0 of its 308 bytes"),
    ],
)
def test_a_fault_says_what_and_where(
    driver: Path, library: Library, placement: str, act: str, message: str
) -> None:
    done = run(driver, placement, ["probe nothing", f"probe {act}"], threads=1)
    assert done.returncode == 1
    assert done.stderr == f'case "probe {act}", {library.supported()[0]}: {message}\n'
    assert run(driver, placement, ["probe nothing"], threads=1).returncode == 0
