"""Binary weights times signs on CUDA: linear layers and convolutions, floats and signs in and out, against
the CPU's kernels, to the bit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
from conv_cases import CONV_CASES, ConvCase
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem, quantised
from kernel_library import BINARY, SIGN, Library
from operator_problems import ConvProblem, SignsProblem
from test_cuda_linear import check

BINARY_LINEAR = [case for case in quantised(CASES) + EXTREME_CASES + ZERO_CASES if case.format == BINARY]
SIGN_LINEAR = [case for case in BINARY_LINEAR if case.activation == SIGN]
SIGN_CONVS = [case for case in CONV_CASES if case.format == BINARY and case.activation == SIGN]
#: Kernels of products of bits that the emulator executes.
KERNELS = ["bmma", "any"]


@pytest.fixture(params=KERNELS)
def emulated(request: pytest.FixtureRequest, cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel(request.param)
    yield cuda
    cuda.select_kernel(None)


@pytest.mark.parametrize("case", SIGN_LINEAR, ids=lambda case: case.id)
def test_linear_by_each_kernel(emulated: CudaLibrary, case: Case) -> None:
    emulated.order(zlib.crc32(case.id.encode()))
    for codes_offset in (0, 1):
        problem = Problem(case)
        check(problem, problem.run(emulated, codes_offset=codes_offset))


@pytest.mark.parametrize("case", BINARY_LINEAR, ids=lambda case: case.id)
def test_linear_by_the_kernel_chosen(cuda: CudaLibrary, case: Case) -> None:
    problem = Problem(case)
    check(problem, problem.run(cuda, codes_offset=0))


@pytest.mark.parametrize("case", SIGN_LINEAR[::3], ids=lambda case: case.id)
@pytest.mark.parametrize(("x_signs", "y_signs"), [(True, False), (False, True), (True, True)])
def test_linear_from_and_to_signs(
    emulated: CudaLibrary, library: Library, case: Case, x_signs: bool, y_signs: bool
) -> None:
    problem = SignsProblem(case, x_signs, y_signs)
    problem.run_cuda(emulated).same(problem.run_cpu(library), case.id)


@pytest.mark.parametrize("case", SIGN_CONVS, ids=lambda case: case.line.replace(" ", "_"))
def test_convolutions(
    emulated: CudaLibrary, library: Library, request: pytest.FixtureRequest, case: ConvCase
) -> None:
    emulated.order(zlib.crc32(case.line.encode()))
    whole_bytes = case.groups == 1 or case.rows // case.groups % 8 == 0  # of signs, which bmma writes alone
    for x_signs, y_signs in ((False, False), (True, False), (False, True), (True, True)):
        if y_signs and not whole_bytes and request.node.callspec.params["emulated"] == "bmma":
            continue
        problem = ConvProblem(case, x_signs, y_signs)
        problem.run_cuda(emulated).same(problem.run_cpu(library), f"signs {x_signs} {y_signs}: {case.line}")
