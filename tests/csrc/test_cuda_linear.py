"""The CUDA kernels, run by the emulator, on the cases of the CPU kernels.

Equal bits where a row has one scale a component; with scale groups the sum over them may be associated
in another way, so within its rounding.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem, quantised
from kernel_checks import check_grouped, expected_of, same_bits
from kernel_library import BINARY


def ternary(cases: list[Case]) -> list[Case]:
    return [case for case in quantised(cases) if case.format != BINARY]


@pytest.fixture
def emulated(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


def check(problem: Problem, y: np.ndarray) -> None:
    if problem.case.group_size:
        check_grouped(problem, y)
    else:
        same_bits(y, expected_of(problem), problem.case.id)


@pytest.mark.parametrize("case", ternary(CASES), ids=lambda case: case.id)
def test_every_shape_by_the_kernel_for_any(emulated: CudaLibrary, case: Case) -> None:
    emulated.select_kernel("any")
    emulated.order(zlib.crc32(case.id.encode()))  # each case in an order of its own
    problem = Problem(case)
    check(problem, problem.run(emulated))


@pytest.mark.parametrize("case", ternary(CASES + EXTREME_CASES + ZERO_CASES), ids=lambda case: case.id)
def test_every_shape_by_the_kernel_chosen(cuda: CudaLibrary, case: Case) -> None:
    problem = Problem(case)
    check(problem, problem.run(cuda, codes_offset=0))
