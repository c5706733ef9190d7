"""Ternary weights times ternary activations as planes of bits, thresholds and scales included, to the bit."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem
from kernel_library import BASE3, BF16, BINARY, F16, F32, TERNARY, TWO_BIT
from kernel_reference import from_dtype, to_dtype
from test_cuda_linear import check

PLANES = [
    case
    for case in CASES + EXTREME_CASES + ZERO_CASES
    if case.format != BINARY and case.activation == TERNARY and case.rows * case.tokens * case.cols < 1e7
]
#: Chunks of 1024 columns: one less and more, whole warps' shares and uneven ones; segments of less than a
#: chunk's part, of several chunks, and such as fill a chunk with gaps.
WIDE = [
    (1, 7, 1023, 0), (1, 4, 1024, 0), (1, 6, 1025, 0), (2, 9, 2100, 0), (1, 5, 9000, 0), (1, 3, 3000, 1200),
    (1, 11, 1280, 384), (2, 5, 700, 96), (1, 10, 2048, 128),
]  # fmt: skip


@pytest.fixture
def planes(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    """By the kernel of products of bits that takes planes and any shape."""
    cuda.select_kernel("bmma")
    yield cuda
    cuda.select_kernel(None)


@pytest.mark.parametrize("case", PLANES, ids=lambda case: case.id)
def test_every_case(planes: CudaLibrary, case: Case) -> None:
    planes.order(zlib.crc32(case.id.encode()))
    problem = Problem(case)
    check(problem, problem.run(planes, codes_offset=0))
    assert planes.last_kernel().split("/")[3] == "bmma"


@pytest.mark.parametrize("fmt", [TWO_BIT, BASE3])
@pytest.mark.parametrize("shape", WIDE, ids=lambda shape: "x".join(map(str, shape)))
def test_wide_rows(planes: CudaLibrary, fmt: int, shape: tuple[int, int, int, int]) -> None:
    for tokens, dtype, padding, offset in ((1, F32, 0, 1), (3, BF16, 3, 0), (2, F16, 0, 3)):
        problem = Problem(Case(fmt, *shape, TERNARY, tokens, dtype, x_padding=padding))
        check(problem, problem.run(planes, codes_offset=offset))


def test_thresholds_are_strict_and_zero_rows_stay_zero(planes: CudaLibrary) -> None:
    """delta = 0.75 * mean |x|: 4 values of 0.75 among others whose mean is 1 are not beyond it."""
    problem = Problem(Case(TWO_BIT, 1, 8, 16, 0, TERNARY, 3))
    x = np.zeros((3, 16), np.float32)
    x[0] = [0.75, -0.75, 0.75, -0.75] + [1.0] * 6 + [-1.0] * 5 + [2.0]
    x[0, 15] = 16 - np.abs(x[0, :15]).sum()
    x[1, 3] = -5e-45  # subnormal
    problem.x = x
    y = problem.run(planes)
    check(problem, y)
    assert (y[2] == 0).all()


def test_the_threshold_is_rounded_once(planes: CudaLibrary) -> None:
    """Rows with a value between the threshold and what it would be, had the mean been rounded before."""
    rng = np.random.default_rng(9)
    rows: list[np.ndarray] = []
    while len(rows) < 6:
        x = rng.uniform(1, 2, 16).astype(np.float32)
        x[0] = 0.75 * x[1:].astype(np.float64).sum() / (16 - 0.75)  # its own threshold, nearly
        mean = x.astype(np.float64).mean()
        once, twice = np.float32(0.75 * mean), np.float32(0.75) * np.float32(mean)
        if (x[0] > once) != (x[0] > twice):
            rows.append(x)
    problem = Problem(Case(BASE3, 1, 8, 16, 0, TERNARY, 6))
    problem.x = np.stack(rows)
    check(problem, problem.run(planes))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_what_is_not_finite_stays_in_its_row(planes: CudaLibrary, dtype: int, poison: float) -> None:
    case = Case(BASE3, 1, 9, 300, 0, TERNARY, 5, dtype)
    problem = Problem(case)
    clean = problem.run(planes)
    for at in (0, 150, 299):
        x = problem.x.copy()
        x[2, at] = poison
        y = problem.run(planes, from_dtype(to_dtype(x, dtype), dtype))
        assert np.isnan(y[2]).all()
        others = [0, 1, 3, 4]
        np.testing.assert_array_equal(y[others], clean[others])


def test_a_row_does_not_depend_on_its_neighbours(planes: CudaLibrary) -> None:
    problem = Problem(Case(TWO_BIT, 1, 6, 2500, 0, TERNARY, 9))
    x = np.random.default_rng(7).standard_normal((9, 2500)).astype(np.float32)
    together = problem.run(planes, x)
    for row in (0, 4, 8):
        alone = problem.run(planes, x[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])
