"""The library as compiled for aarch64, run under emulation: NEON against the reference, bit for bit.

A cross build of its own, a small driver (foreign_driver.cpp) that makes the calls of the case table,
and qemu's user mode to run it. What comes back is judged here, by the same rules as the kernels of
this machine. Emulation says nothing about speed.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conv_cases import CONV_CASES
from kernel_cases import (
    ACTIVATIONS,
    CASES,
    EXTREME_CASES,
    FORMATS,
    ZERO_CASES,
    Case,
    Problem,
    split_rows,
    with_row_stride,
    with_tokens,
)
from kernel_checks import check, same_bits
from kernel_library import (
    DRIVER_SOURCES,
    F16,
    F32,
    FAMILY_FLAGS,
    FLOAT,
    INT8,
    INT16,
    LIBRARY_NAME,
    SIGN,
    TERNARY,
    Guarded,
    build,
    compile_driver,
)
from kernel_reference import from_dtype, quantize, to_dtype
from sweep_cases import conv_tails, tails

DRIVER = Path(__file__).parent / "foreign_driver.cpp"
COMPILER = "aarch64-linux-gnu-g++"
SYSROOT = "/usr/aarch64-linux-gnu"
PACKAGES = "install the Debian packages g++-aarch64-linux-gnu and qemu-user-static"
ISAS = [*FAMILY_FLAGS["aarch64"], "portable"]

#: qemu's processors: all there is, dot products without matrix products, neither.
EVERYTHING, DOT_PRODUCTS, PLAIN = "max", "neoverse-n1", "cortex-a57"


def _emulator() -> str | None:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}: {PACKAGES}"),
    pytest.mark.skipif(_emulator() is None, reason=f"no qemu-aarch64: {PACKAGES}"),
]


#: By instruction set: y (float32 [tokens, rows]), q (int8 [tokens, cols]) and its scale.
Answer = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def _cross_build(directory: Path, sources: list[Path], options: list[str], flags: list[str]) -> Path:
    """The library and a driver for it."""
    library = build(
        directory,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DBITIMPL_CUDA=off",
        *options,
    )
    return compile_driver(directory / sources[0].stem, library, COMPILER, flags, sources)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _cross_build(tmp_path_factory.mktemp("aarch64"), [DRIVER], [], [])


@pytest.fixture(scope="module")
def guarded(driver: Path) -> Path:
    """The driver that puts buffers between guard pages, over the library of the other one."""
    return compile_driver(
        driver.with_name("guarded"), driver.with_name(LIBRARY_NAME), COMPILER, [], DRIVER_SOURCES
    )


def emulate(
    driver: Path, calls: bytes, processor: str = EVERYTHING, threads: int = 2, arguments: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    emulator = _emulator()
    assert emulator is not None
    return subprocess.run(
        [emulator, "-L", SYSROOT, "-cpu", processor, str(driver), *arguments],
        input=calls,
        # Leaks are not looked for: the OpenMP pool lives until the process ends.
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        check=False,
    )


def _call(problem: Problem) -> bytes:
    """One call as the driver reads it."""
    case = problem.case
    x = with_row_stride(to_dtype(problem.x, case.x_dtype), case.cols + case.x_padding)
    bias = np.empty(0, np.uint8) if problem.bias is None else to_dtype(problem.bias, case.bias_dtype)
    arrays = [problem.codes, problem.packed, problem.stored_scales, x.bytes, bias]
    parts = [struct.pack("<15q", *astuple(case))]
    for array in arrays:
        parts += [struct.pack("<q", array.nbytes), np.ascontiguousarray(array).tobytes()]
    return b"".join(parts)


class Answers:
    """What came back for a list of problems, one after the other."""

    def __init__(self, output: bytes) -> None:
        names, self._rest = output.split(b"\n", 1)
        self.isas = names.decode().split(",")
        self._at = 0

    def _take(self, size: int) -> bytes:
        taken = self._rest[self._at : self._at + size]
        assert len(taken) == size, "the driver's output is cut short"
        self._at += size
        return taken

    def next(self, case: Case) -> Answer:
        stride, size = case.rows + case.y_padding, 4 if case.y_dtype == F32 else 2
        answers: Answer = {}
        for isa in self.isas:
            stored = self._take(max(0, (case.tokens - 1) * stride + case.rows) * size if case.tokens else 0)
            y, padding = split_rows(
                Guarded.of(np.frombuffer(stored, np.uint8)), case.y_dtype, case.tokens, case.rows, stride
            )
            assert (padding == 0xFF).all(), f"{case.id}, {isa}: the padding between rows of y was written"
            q = np.frombuffer(self._take(case.tokens * case.cols), np.int8).reshape(-1, case.cols)
            scale = np.frombuffer(self._take(case.tokens * 4), np.float32)
            answers[isa] = (from_dtype(y, case.y_dtype), q, scale)
        return answers

    def end(self) -> None:
        assert self._at == len(self._rest), "the driver wrote more than was asked for"


def run(driver: Path, problems: list[Problem], threads: int = 2) -> Iterator[Answer]:
    done = emulate(driver, b"".join(map(_call, problems)), threads=threads)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    answers = Answers(done.stdout)
    assert answers.isas == ISAS
    for problem in problems:
        yield answers.next(problem.case)
    answers.end()


def _batches() -> list[Case]:
    """Every count of activation vectors around which NEON changes its ways, with odd everything else."""
    return [
        Case(fmt, components, rows, cols, group_size, activation, tokens, x_padding=1, bias_dtype=F16)
        for fmt in FORMATS
        for activation in ACTIVATIONS
        for components, rows, cols, group_size in [(1, 131, 1543, 0), (2, 97, 397, 136)]
        for tokens in range(1, 12)
    ]


@cache
def _problems() -> list[Problem]:
    cases = CASES + EXTREME_CASES + ZERO_CASES + _batches() + [with_tokens(case, 0) for case in CASES[:3]]
    return [Problem(case) for case in cases]


@pytest.fixture(scope="module")
def answers(driver: Path) -> list[Answer]:
    return list(run(driver, _problems()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", list(ACTIVATIONS), ids=list(ACTIVATIONS.values()))
def test_operators(answers: list[Answer], isa: str, activation: int) -> None:
    """Every format, shape, batch, type and grouping: integer activations to the bit."""
    checked = 0
    for problem, answer in zip(_problems(), answers, strict=True):
        if problem.case.activation == activation:
            check(problem, answer[isa][0])
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("isa", ISAS)
def test_quantize_int8(answers: list[Answer], isa: str) -> None:
    for problem, answer in zip(_problems(), answers, strict=True):
        if problem.case.tokens > 0:
            q, scale = quantize(problem.x, INT8)
            np.testing.assert_array_equal(answer[isa][1], q, err_msg=problem.case.id)
            np.testing.assert_array_equal(answer[isa][2], scale, err_msg=problem.case.id)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(driver: Path, poison: float) -> None:
    problems = []
    for case in _batches():
        if case.tokens == 9:
            problem = Problem(replace(case, x_dtype=F16))
            problem.x = problem.x.copy()
            problem.x[1, 0] = problem.x[4, -1] = poison
            problems.append(problem)
    for problem, answer in zip(problems, run(driver, problems), strict=True):
        for y, _, scale in answer.values():
            assert np.isnan(scale[[1, 4]]).all()
            if problem.case.activation == FLOAT:
                assert not np.isfinite(y[[1, 4]]).any()
                assert np.isfinite(np.delete(y, [1, 4], axis=0)).all()
            else:
                check(problem, y)


@pytest.mark.parametrize("activation", [INT8, INT16, SIGN, TERNARY], ids=lambda value: ACTIVATIONS[value])
def test_threads_do_not_matter(driver: Path, activation: int) -> None:
    problems = [Problem(Case(fmt, 2, 331, 1543, 136, activation, 19)) for fmt in FORMATS]
    for problem, answer in zip(problems, run(driver, problems, threads=3), strict=True):
        for y, _, _ in answer.values():
            check(problem, y)
    alone = list(run(driver, problems, threads=1))
    for one, three in zip(alone, run(driver, problems, threads=3), strict=True):
        for isa in ISAS:
            same_bits(one[isa][0], three[isa][0], isa)


@pytest.mark.parametrize(
    ("processor", "usable"),
    [(EVERYTHING, "neon_i8mm,neon,portable"), (DOT_PRODUCTS, "neon,portable"), (PLAIN, "portable")],
)
def test_processor_is_recognised(driver: Path, processor: str, usable: str) -> None:
    """A processor without the extensions runs the library, and nothing that it lacks."""
    problems = [Problem(case) for case in CASES[::40]]
    done = emulate(driver, b"".join(map(_call, problems)), processor)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    answers = Answers(done.stdout)
    assert ",".join(answers.isas) == usable
    for problem in problems:
        for y, _, _ in answers.next(problem.case).values():
            check(problem, y)
    answers.end()


def test_driver_reports_a_failing_call(driver: Path) -> None:
    problem = Problem(CASES[0])
    good = _call(problem)
    no_such_format = struct.pack("<q", 7) + good[8:]
    done = emulate(driver, good + no_such_format)
    assert done.returncode == 1
    assert b"call 1: pack failed" in done.stderr


@pytest.mark.parametrize("placement", ["behind", "front"])
def test_kernels_between_guard_pages(guarded: Path, placement: str) -> None:
    """As test_guard_pages.py does here: neither before nor past its end is a buffer touched."""
    for cases in (CASES + ZERO_CASES + tails((3,)), CONV_CASES + conv_tails()):
        lines = "\n".join(case.line for case in cases).encode()
        done = emulate(guarded, lines, arguments=(placement,))
        assert done.returncode == 0, done.stderr.decode()[-3000:] or f"ended with {done.returncode}"
        assert done.stdout.decode().strip() == f"{len(cases)} cases on {','.join(ISAS)}"


def test_kernels_under_sanitizers(tmp_path: Path) -> None:
    """Addresses and undefined behaviour; every instruction set gives the bits of the others. A third of the
    cases, for emulation is slow: between guard pages all of them run."""
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = _cross_build(tmp_path, DRIVER_SOURCES, ["-DBITIMPL_SANITIZE=ON"], flags)
    linear = CASES + ZERO_CASES + _batches() + [with_tokens(case, 0) for case in CASES[:3]]
    for cases in (linear[::3], CONV_CASES[::3]):
        done = emulate(program, "\n".join(case.line for case in cases).encode())
        assert done.returncode == 0, done.stderr.decode()[-6000:]
        assert done.stdout.decode().strip() == f"{len(cases)} cases on {','.join(ISAS)}"
