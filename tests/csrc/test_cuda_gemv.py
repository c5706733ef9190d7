"""The kernel for few tokens, run by the emulator: every case by name, and the ways its work is divided.

Its sums are exact integers wherever they are cut, so that results are the same bits as on the CPU, with scale
groups too as long as a row has no more than eight products of scale and sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import byref

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, FORMATS, ZERO_CASES, Case, Problem, quantised
from kernel_checks import check_grouped, expected_of, same_bits
from kernel_library import BASE3, BF16, BINARY, F16, F32, INT8, INT16, SIGN, TWO_BIT, Weight

#: What the emulated devices' shared memory cannot hold.
MOST_COLUMNS = 160 * 1024


def ternary(cases: list[Case]) -> list[Case]:
    return [case for case in quantised(cases) if case.format != BINARY and case.cols < MOST_COLUMNS]


@pytest.fixture
def gemv(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("gemv")
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


def products(case: Case) -> int:
    return case.components * (-(-case.cols // case.group_size) if case.group_size else 1)


def check(problem: Problem, y: np.ndarray) -> None:
    if products(problem.case) <= 8:
        same_bits(y, expected_of(problem), problem.case.id)
    else:
        check_grouped(problem, y)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", ternary(CASES), ids=lambda case: case.id)
def test_every_shape(gemv: CudaLibrary, case: Case, order: int) -> None:
    gemv.order(order)
    gemv.emulate(80, 5 if order == 1 else 1)
    problem = Problem(case)
    check(problem, problem.run(gemv, codes_offset=order - 1))
    assert gemv.last_kernel().split("/")[3] == "gemv"


@pytest.mark.parametrize("case", ternary(EXTREME_CASES + ZERO_CASES), ids=lambda case: case.id)
def test_longest_sums_and_zeros(gemv: CudaLibrary, case: Case) -> None:
    problem = Problem(case)
    check(problem, problem.run(gemv, codes_offset=0))


both_formats = pytest.mark.parametrize("fmt", [TWO_BIT, BASE3], ids=lambda fmt: FORMATS[fmt])


@both_formats
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("components", "rows", "cols", "group_size"),
    [
        (1, 323, 64, 0),  # a step: loads that are mostly beyond the end; rows that end inside a group
        (1, 67, 576, 0),  # nine steps: the last load is not full
        (2, 83, 192, 64),  # a segment a step
        (1, 83, 640, 192),  # segments of three steps: loads that begin in one and end in the next
        (3, 18, 1024, 256),
        (1, 42, 8192, 0),  # several loads in flight, slices that end inside a row block
        (1, 163, 512, 8),  # more scale groups than shared memory holds at once: rounds
    ],
)
def test_whole_steps(
    gemv: CudaLibrary, fmt: int, components: int, rows: int, cols: int, group_size: int, tokens: int
) -> None:
    for multiprocessors in (1, 3, 7):  # another span of units each
        gemv.emulate(80, multiprocessors)
        problem = Problem(Case(fmt, components, rows, cols, group_size, INT8, tokens, BF16, F32, 4, 1, F16))
        check(problem, problem.run(gemv, codes_offset=0))


@both_formats
@pytest.mark.parametrize("activation", [INT8, INT16, SIGN])
def test_longest_sums_that_fit(gemv: CudaLibrary, fmt: int, activation: int) -> None:
    """Masked operands of more than 2**17 columns would leave int32."""
    cols = 150_016 if activation != INT16 else 75_008
    problem = Problem(Case(fmt, 1, 21, cols, 0, activation, 1, extreme=1))
    check(problem, problem.run(gemv, codes_offset=0))


@both_formats
def test_what_shared_memory_cannot_hold_is_refused(gemv: CudaLibrary, fmt: int) -> None:
    weight = Weight(1, fmt, 1, F32, 1, 1 << 18, 0, 8, 1 << 18, None, 0, 0, 0)
    assert gemv.c.bitimpl_linear_workspace(byref(weight), 1, INT8) == -1
    assert "kernel gemv was chosen, but a token of so many columns" in gemv.error()
    gemv.select_kernel(None)
    assert gemv.c.bitimpl_linear_workspace(byref(weight), 1, INT8) > 0


def test_fewer_tokens_at_once_where_more_do_not_fit(gemv: CudaLibrary) -> None:
    problem = Problem(Case(TWO_BIT, 1, 9, 30_000, 0, INT8, 7))
    check(problem, problem.run(gemv))


def test_tokens_are_quantised_in_front_or_before(gemv: CudaLibrary) -> None:
    """The same bits either way; only the second needs memory for them."""
    few, many = Case(BASE3, 1, 30, 4096, 0, INT8, 8), Case(BASE3, 1, 30, 4096, 0, INT8, 9)
    weight = Weight(1, BASE3, 1, F32, 30, 4096, 0, 8, 6 * 4096, None, 0, 0, 0)
    assert gemv.c.bitimpl_linear_workspace(byref(weight), few.tokens, INT8) == 0
    assert gemv.c.bitimpl_linear_workspace(byref(weight), many.tokens, INT8) > 9 * 4096
    problem = Problem(many)
    before = problem.run(gemv)
    same_bits(problem.run(gemv, problem.x[:8]), before[:8])
    check(problem, before)


@pytest.mark.parametrize("activation", [INT8, INT16])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(gemv: CudaLibrary, activation: int, poison: float) -> None:
    problem = Problem(Case(TWO_BIT, 1, 37, 500, 0, activation, 4))
    x = problem.x.copy()
    x[2, 499] = poison
    y = problem.run(gemv, x)
    assert np.isnan(y[2]).all()
    others = [0, 1, 3]
    same_bits(y[others], expected_of(problem)[others])


def test_it_is_chosen_for_few_tokens(cuda: CudaLibrary) -> None:
    for activation, most in ((INT8, 4), (INT16, 2), (SIGN, 4)):
        for tokens in (1, most, most + 1):
            Problem(Case(TWO_BIT, 1, 20, 128, 0, activation, tokens)).run(cuda)
            chosen = cuda.last_kernel().split("/")[3] == "gemv"
            assert chosen == (tokens <= most), cuda.last_kernel()
