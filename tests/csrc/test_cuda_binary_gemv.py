"""The kernel of signs for few tokens, run by the emulator: every case by name, against the CPU's bits, and
the ways its work is divided."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from ctypes import byref

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem
from kernel_checks import expected_of, same_bits
from kernel_library import BF16, BINARY, F16, F32, SIGN, TWO_BIT, Library, Weight
from operator_problems import SignsProblem

SIGN_CASES = [
    case for case in CASES + EXTREME_CASES + ZERO_CASES if case.format == BINARY and case.activation == SIGN
]
#: Values of x that every block turns into bits itself.
MOST_BINARISED = 16384


@pytest.fixture
def popcount(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("popcount")
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


@pytest.mark.parametrize("case", SIGN_CASES, ids=lambda case: case.id)
def test_every_shape(popcount: CudaLibrary, case: Case) -> None:
    """The same bits with scale groups too: their products are added in order."""
    seed = zlib.crc32(case.id.encode())  # each case in an order of its own
    popcount.order(seed)
    popcount.emulate(80, 5 if seed % 2 else 1)
    problem = Problem(case)
    same_bits(problem.run(popcount, codes_offset=seed // 2 % 2), expected_of(problem), case.id)
    assert popcount.last_kernel().split("/")[3] == "popcount"


@pytest.mark.parametrize("tokens", [1, 2, 4, 7])
@pytest.mark.parametrize(
    ("components", "rows", "cols", "group_size"),
    [
        (1, 323, 128, 0),  # a piece: most lanes of a row have none
        (1, 67, 640, 0),  # five pieces on eight lanes
        (2, 83, 384, 128),  # a segment a piece
        (1, 83, 1280, 256),  # two pieces a segment
        (3, 18, 2048, 512),
        (1, 37, 3072, 1024),  # eight pieces a segment, more than a warp side by side
        (1, 42, 8192, 0),  # two loads a row, slices that end inside of one
        (1, 35, 8320, 0),  # a third load of one piece
        (1, 9, 20000, 0),  # no whole piece at the end: single bytes
        (2, 65, 1160, 8),  # scale groups of a byte, more of them than shared memory holds at once: rounds
    ],
)
def test_divided_in_every_way(
    popcount: CudaLibrary, components: int, rows: int, cols: int, group_size: int, tokens: int
) -> None:
    for multiprocessors in (1, 3, 7):
        popcount.emulate(80, multiprocessors)
        problem = Problem(
            Case(BINARY, components, rows, cols, group_size, SIGN, tokens, BF16, F32, 4, 1, F16)
        )
        same_bits(problem.run(popcount, codes_offset=0), expected_of(problem))


@pytest.mark.parametrize("offset", range(1, 16, 3))
def test_codes_that_begin_anywhere(popcount: CudaLibrary, offset: int) -> None:
    for cols in (8192, 300, 1001):
        problem = Problem(Case(BINARY, 1, 21, cols, 0, SIGN, 3))
        same_bits(problem.run(popcount, codes_offset=offset), expected_of(problem))


@pytest.mark.parametrize(("x_signs", "y_signs"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("components", "rows", "cols", "group_size", "tokens"),
    [
        (1, 1, 1, 0, 1),
        (1, 20, 4096, 0, 3),  # units of four rows: a byte of signs is of two
        (1, 44, 5000, 0, 8),
        (2, 13, 130, 0, 5),
        (1, 100, 768, 128, 2),
        (1, 61, 200, 24, 12),  # two launches
        (3, 12, 9000, 0, 1),
    ],
)
def test_from_and_to_signs(
    popcount: CudaLibrary,
    library: Library,
    components: int,
    rows: int,
    cols: int,
    group_size: int,
    tokens: int,
    x_signs: bool,
    y_signs: bool,
) -> None:
    for multiprocessors in (1, 2, 40):
        popcount.emulate(80, multiprocessors)
        problem = SignsProblem(
            Case(BINARY, components, rows, cols, group_size, SIGN, tokens), x_signs, y_signs
        )
        problem.run_cuda(popcount).same(problem.run_cpu(library), f"{multiprocessors} multiprocessors")


def test_unused_bits_of_signs_are_not_looked_at(popcount: CudaLibrary, library: Library) -> None:
    for cols in (1, 13, 100, 130):
        problem = SignsProblem(Case(BINARY, 1, 9, cols, 0, SIGN, 3), True, True)
        rows = problem.x.bytes.reshape(3, -1)
        rows[:, cols // 8] |= 0xFF << cols % 8 & 0xFF
        rows[:, cols // 8 + 1 :] = 0xFF
        problem.run_cuda(popcount).same(problem.run_cpu(library), f"{cols} columns")


def workspace_of(cuda: CudaLibrary, rows: int, cols: int, tokens: int) -> int:
    row_bytes = -(-cols // 8)
    weight = Weight(1, BINARY, 1, F32, rows, cols, 0, 8, rows * row_bytes, None, 0, 0, 0)
    return cuda.c.bitimpl_linear_workspace(byref(weight), tokens, SIGN)


def test_tokens_become_bits_in_front_or_before(popcount: CudaLibrary) -> None:
    """The same bits either way; only the second needs memory for them."""
    cols = 4096
    few = MOST_BINARISED // cols
    assert workspace_of(popcount, 30, cols, few) == 0
    assert workspace_of(popcount, 30, cols, few + 1) >= (few + 1) * cols // 8
    problem = Problem(Case(BINARY, 1, 30, cols, 0, SIGN, few + 1))
    before = problem.run(popcount)
    same_bits(problem.run(popcount, problem.x[:few]), before[:few])
    same_bits(before, expected_of(problem))


def test_answers_do_not_depend_on_the_batch(popcount: CudaLibrary) -> None:
    problem = Problem(Case(BINARY, 1, 70, 500, 0, SIGN, 9))
    y = problem.run(popcount)
    for token in range(9):
        same_bits(problem.run(popcount, problem.x[token : token + 1])[0], y[token])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cols", [500, 8192])
def test_what_is_not_finite_stays_in_its_row(popcount: CudaLibrary, cols: int, poison: float) -> None:
    problem = Problem(Case(BINARY, 1, 37, cols, 0, SIGN, 4))
    x = problem.x.copy()
    x[2, cols - 1] = poison
    y = problem.run(popcount, x)
    assert np.isnan(y[2]).all()
    others = [0, 1, 3]
    same_bits(y[others], expected_of(problem)[others])


def test_fewer_tokens_at_once_where_more_do_not_fit(popcount: CudaLibrary) -> None:
    problem = Problem(Case(BINARY, 1, 3, 400_000, 0, SIGN, 5, extreme=1))
    same_bits(problem.run(popcount, codes_offset=0), expected_of(problem))


def test_what_shared_memory_cannot_hold_is_refused(popcount: CudaLibrary) -> None:
    assert workspace_of(popcount, 1, 1 << 21, 1) == -1
    assert "kernel popcount was chosen, but a token of so many columns" in popcount.error()
    popcount.select_kernel(None)
    assert workspace_of(popcount, 1, 1 << 21, 1) > 0


def test_it_takes_signs_alone(popcount: CudaLibrary) -> None:
    weight = Weight(1, TWO_BIT, 1, F32, 8, 128, 0, 8, 256, None, 0, 0, 0)
    assert popcount.c.bitimpl_linear_workspace(byref(weight), 1, 2) == -1
    assert "kernel popcount was chosen, but it multiplies signs" in popcount.error()


def test_it_is_chosen_for_few_tokens(cuda: CudaLibrary) -> None:
    for tokens in (1, 8, 9):
        Problem(Case(BINARY, 1, 20, 128, 0, SIGN, tokens)).run(cuda)
        chosen = cuda.last_kernel().split("/")[3] == "popcount"
        assert chosen == (tokens <= 8), cuda.last_kernel()
