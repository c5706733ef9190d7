"""The kernel for float activations, run by the emulator: sums in float32, in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, FORMATS, Case, Problem, with_tokens
from kernel_checks import check_float
from kernel_library import BASE3, BF16, BINARY, F32, FLOAT, TWO_BIT

FLOAT_CASES = [case for case in CASES if case.activation == FLOAT and case.format != BINARY]


@pytest.fixture
def floats(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("float")
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


#: How many multiprocessors there are decides how many warps share a row block.
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", FLOAT_CASES, ids=lambda case: case.id)
def test_every_shape(floats: CudaLibrary, case: Case, order: int) -> None:
    floats.order(order)
    floats.emulate(80, 5 if order == 1 else 1)
    problem = Problem(case)
    check_float(problem, problem.run(floats, codes_offset=order - 1))
    assert floats.last_kernel().split("/")[2:4] == ["float", "float"]


@pytest.mark.parametrize("fmt", [TWO_BIT, BASE3], ids=["two_bit", "base3"])
@pytest.mark.parametrize(
    ("components", "rows", "cols", "group_size", "tokens"),
    [
        (1, 300, 2048, 0, 1),  # exactly one tile of columns, several row blocks a block
        (1, 170, 2112, 0, 2),  # a step more
        (2, 45, 4096, 128, 4),
        (1, 20, 4160, 1024, 16),
        (1, 340, 130, 0, 3),
    ],
)
def test_tiles_and_shares(
    floats: CudaLibrary, fmt: int, components: int, rows: int, cols: int, group_size: int, tokens: int
) -> None:
    floats.emulate(80, 1)
    problem = Problem(Case(fmt, components, rows, cols, group_size, FLOAT, tokens, BF16, F32, bias_dtype=F32))
    check_float(problem, problem.run(floats, codes_offset=0))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(floats: CudaLibrary, poison: float) -> None:
    problem = Problem(Case(BASE3, 1, 23, 130, 0, FLOAT, 3))
    clean = problem.run(floats)
    x = problem.x.copy()
    x[1, 129] = poison
    y = problem.run(floats, x)
    assert not np.isfinite(y[1]).any()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])


def test_answers_do_not_depend_on_the_batch(floats: CudaLibrary) -> None:
    case = Case(TWO_BIT, 1, 70, 500, 0, FLOAT, 9)
    problem = Problem(case)
    y = problem.run(floats)
    for token in range(9):
        np.testing.assert_array_equal(problem.run(floats, problem.x[token : token + 1])[0], y[token])


def test_it_takes_no_integers(floats: CudaLibrary) -> None:
    problem = Problem(with_tokens(replace(FLOAT_CASES[0], activation=8), 1))
    with pytest.raises(AssertionError, match="kernel float was chosen, but it takes activations as they are"):
        problem.run(floats)


def test_float_activations_are_its_own(cuda: CudaLibrary) -> None:
    problem = Problem(FLOAT_CASES[0])
    problem.run(cuda)
    assert cuda.last_kernel() == f"ternary_linear/{FORMATS[problem.case.format]}/float/float/sm_80"
