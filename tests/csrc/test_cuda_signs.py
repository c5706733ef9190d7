"""Linear layers from and to signs on CUDA, for every format and activation and by every kernel of bytes,
against the CPU's kernels, to the bit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from ctypes import byref, c_int64

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import ACTIVATIONS, FORMATS, Case
from kernel_library import (
    BASE3,
    BF16,
    BINARY,
    F32,
    FLOAT,
    INT8,
    INT16,
    SIGN,
    TERNARY,
    TWO_BIT,
    Library,
    Weight,
)
from operator_problems import SignsProblem

#: (components, rows, cols, group_size, tokens)
SHAPES = [
    (1, 1, 1, 0, 1),
    (1, 7, 9, 0, 3),
    (1, 33, 130, 0, 2),
    (2, 64, 200, 0, 5),
    (1, 1100, 40, 0, 2),  # more rows than the threads that make signs of them
    (1, 45, 192, 64, 9),
    (1, 20, 513, 0, 34),  # tokens enough for every kernel
]
KERNELS = ["gemv", "small_batch", "gemm", "any", "binary_gemv"]


@pytest.fixture
def emulated(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: ACTIVATIONS[activation])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: FORMATS[fmt])
def test_by_the_kernel_chosen(
    emulated: CudaLibrary,
    library: Library,
    fmt: int,
    activation: int,
    shape: tuple[int, int, int, int, int],
) -> None:
    """Signs of activations that are floats, where they are not signs already, and signs of y."""
    case = Case(fmt, *shape[:4], activation, shape[4], BF16, F32)
    emulated.order(zlib.crc32(case.id.encode()))
    for x_signs in (False, True) if activation == SIGN else (False,):
        for y_signs in (False, True) if x_signs else (True,):
            problem = SignsProblem(case, x_signs, y_signs)
            problem.run_cuda(emulated).same(problem.run_cpu(library), f"x {x_signs}, y {y_signs}: {case.id}")


@pytest.mark.parametrize("shape", SHAPES[1::2], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: FORMATS[fmt])
def test_by_each_kernel_of_bytes(
    emulated: CudaLibrary, library: Library, fmt: int, kernel: str, shape: tuple[int, int, int, int, int]
) -> None:
    if kernel == "binary_gemv" and fmt != BINARY:
        return
    emulated.select_kernel(kernel)
    for activation, x_signs, y_signs in ((SIGN, True, False), (SIGN, True, True), (INT16, False, True)):
        case = Case(fmt, *shape[:4], activation, shape[4], BF16, F32)
        problem = SignsProblem(case, x_signs, y_signs)
        problem.run_cuda(emulated).same(problem.run_cpu(library), f"x {x_signs}, y {y_signs}: {case.id}")
        served = emulated.last_kernel().split("/")[3]
        assert served == kernel


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: FORMATS[fmt])
def test_unused_bits_are_not_looked_at(emulated: CudaLibrary, library: Library, fmt: int) -> None:
    emulated.select_kernel("any" if fmt != BINARY else "gemv")
    for cols in (1, 13, 70, 130):
        problem = SignsProblem(Case(fmt, 1, 9, cols, 0, SIGN, 3), True, True)
        rows = problem.x.bytes.reshape(3, -1)
        rows[:, cols // 8] |= 0xFF << cols % 8 & 0xFF
        rows[:, cols // 8 + 1 :] = 0xFF
        problem.run_cuda(emulated).same(problem.run_cpu(library), f"{cols} columns")


def test_signs_for_wgmma_lie_in_tiles(emulated: CudaLibrary, library: Library) -> None:
    """The kernel for many tokens wants them in another order."""
    emulated.emulate(90, 3)
    emulated.select_kernel("wgmma")
    for fmt in (TWO_BIT, BASE3, BINARY):
        problem = SignsProblem(Case(fmt, 1, 70, 200, 0, SIGN, 70), True, True)
        problem.run_cuda(emulated).same(problem.run_cpu(library), FORMATS[fmt])
        assert emulated.last_kernel().split("/")[3] == "wgmma"


@pytest.mark.parametrize(("fmt", "activation"), [(TWO_BIT, INT8), (BINARY, TERNARY), (BASE3, FLOAT)])
def test_y_that_is_not_a_number_is_told_by_its_scale(
    emulated: CudaLibrary, library: Library, fmt: int, activation: int
) -> None:
    """Also where it lies beyond what a channel may have; scales of the other rows stay 1."""
    problem = SignsProblem(Case(fmt, 1, 40, 100, 0, activation, 6), False, True)
    problem.held["most"].view(np.float32)[39] = 0.0
    answer = problem.run_cuda(emulated)
    answer.same(problem.run_cpu(library), "scales")
    assert answer.scale is not None
    assert np.isnan(answer.scale[-1])  # its x has a NaN
    assert (answer.scale == 1).any()
    assert np.isnan(answer.scale[:-1]).any()


def test_floats_of_y_take_workspace(emulated: CudaLibrary) -> None:
    """Its own query says how much."""
    weight = Weight(1, TWO_BIT, 1, F32, 30, 64, 0, 8, 8 * 64, None, 0, 0, 0)
    plain, signs = (
        emulated.cuda.bitimpl_cuda_linear_workspace,
        emulated.cuda.bitimpl_cuda_linear_signs_workspace,
    )
    signs.restype = c_int64
    assert plain(byref(weight), 3, INT8, 0) == 0
    assert signs(byref(weight), c_int64(3), INT8, 0) >= 4 * 3 * 30
    assert signs(byref(weight), c_int64(-1), INT8, 0) == -1
    assert "-1" in emulated.error()
