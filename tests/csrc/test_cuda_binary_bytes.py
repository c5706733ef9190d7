"""Binary weights with activations that are no signs, run by the emulator: the kernel for few tokens, by name
and in every division of its work; more tokens by the kernels of bytes; floats."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from ctypes import byref

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem, quantised
from kernel_checks import check_float, check_grouped, expected_of, same_bits
from kernel_library import BF16, BINARY, F16, F32, FLOAT, INT8, INT16, SIGN, TERNARY, Weight

#: What the emulated devices' shared memory cannot hold.
MOST_COLUMNS = 160 * 1024
#: Values that every block quantises itself.
MOST_QUANTISED = 16384

BINARY_CASES = [case for case in CASES if case.format == BINARY]
LONGEST = [case for case in EXTREME_CASES + ZERO_CASES if case.format == BINARY and case.cols < MOST_COLUMNS]


@pytest.fixture
def gemv(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("binary_gemv")
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


@pytest.fixture
def floats(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("float")
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


@pytest.mark.parametrize("case", quantised(BINARY_CASES) + LONGEST, ids=lambda case: case.id)
def test_every_shape(gemv: CudaLibrary, case: Case) -> None:
    """The same bits with scale groups too: their products are added in order."""
    seed = zlib.crc32(case.id.encode())  # each case in an order of its own
    gemv.order(seed)
    gemv.emulate(80, 5 if seed % 2 else 1)
    problem = Problem(case)
    same_bits(problem.run(gemv, codes_offset=seed // 2 % 2), expected_of(problem), case.id)
    assert gemv.last_kernel().split("/")[3] == "binary_gemv"


@pytest.mark.parametrize("tokens", [1, 2, 4, 7])
@pytest.mark.parametrize(
    ("components", "rows", "cols", "group_size"),
    [
        (1, 323, 128, 0),  # a piece: most lanes of a row have none
        (1, 67, 640, 0),  # five pieces on eight lanes
        (2, 83, 384, 128),  # a segment a piece
        (1, 83, 1280, 256),  # two pieces a segment
        (1, 37, 3072, 1024),  # eight pieces a segment, more than a warp side by side
        (1, 42, 8192, 0),  # two loads a row, slices that end inside of one
        (1, 9, 8330, 0),  # a third load, of a byte and two bits
        (1, 40, 384, 192),  # segments of a piece and a half
        (2, 41, 1160, 8),  # scale groups of a byte, more of them than shared memory holds at once: rounds
    ],
)
def test_divided_in_every_way(
    gemv: CudaLibrary, components: int, rows: int, cols: int, group_size: int, tokens: int
) -> None:
    for multiprocessors in (1, 3, 7):
        gemv.emulate(80, multiprocessors)
        problem = Problem(
            Case(BINARY, components, rows, cols, group_size, INT8, tokens, BF16, F32, 4, 1, F16)
        )
        same_bits(problem.run(gemv, codes_offset=0), expected_of(problem))


@pytest.mark.parametrize("activation", [INT8, INT16, SIGN, TERNARY])
def test_longest_sums_that_fit(gemv: CudaLibrary, activation: int) -> None:
    cols = 150_016 if activation != INT16 else 75_008
    problem = Problem(Case(BINARY, 1, 21, cols, 0, activation, 1, extreme=1))
    same_bits(problem.run(gemv, codes_offset=0), expected_of(problem))


def workspace_of(cuda: CudaLibrary, rows: int, cols: int, tokens: int, activation: int = INT8) -> int:
    row_bytes = -(-cols // 8)
    weight = Weight(1, BINARY, 1, F32, rows, cols, 0, 8, rows * row_bytes, None, 0, 0, 0)
    return cuda.c.bitimpl_linear_workspace(byref(weight), tokens, activation)


def test_what_shared_memory_cannot_hold_is_refused(gemv: CudaLibrary) -> None:
    assert workspace_of(gemv, 1, 1 << 18, 1) == -1
    assert "kernel binary_gemv was chosen, but a token of so many columns" in gemv.error()
    gemv.select_kernel(None)
    assert workspace_of(gemv, 1, 1 << 18, 1) > 0


def test_fewer_tokens_at_once_where_more_do_not_fit(gemv: CudaLibrary) -> None:
    problem = Problem(Case(BINARY, 1, 9, 30_080, 0, INT8, 7))
    same_bits(problem.run(gemv, codes_offset=0), expected_of(problem))


def test_tokens_are_quantised_in_front_or_before(gemv: CudaLibrary) -> None:
    """The same bits either way; only the second needs memory for them."""
    few = MOST_QUANTISED // 4096
    assert workspace_of(gemv, 30, 4096, few) == 0
    assert workspace_of(gemv, 30, 4096, few + 1) > (few + 1) * 4096
    problem = Problem(Case(BINARY, 1, 30, 4096, 0, INT8, few + 1))
    before = problem.run(gemv)
    same_bits(problem.run(gemv, problem.x[:few]), before[:few])
    same_bits(before, expected_of(problem))


@pytest.mark.parametrize("activation", [INT8, INT16])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(gemv: CudaLibrary, activation: int, poison: float) -> None:
    problem = Problem(Case(BINARY, 1, 37, 500, 0, activation, 4))
    x = problem.x.copy()
    x[2, 499] = poison
    y = problem.run(gemv, x)
    assert np.isnan(y[2]).all()
    others = [0, 1, 3]
    same_bits(y[others], expected_of(problem)[others])


def test_it_is_chosen_for_few_tokens_and_bytes_for_more(cuda: CudaLibrary) -> None:
    for activation, most in ((INT8, 8), (INT16, 4), (TERNARY, 8)):
        for tokens in (1, most, most + 1):
            problem = Problem(Case(BINARY, 1, 20, 128, 0, activation, tokens))
            same_bits(problem.run(cuda), expected_of(problem))
            chosen = cuda.last_kernel().split("/")[3]
            assert (chosen == "binary_gemv") == (tokens <= most), cuda.last_kernel()


@pytest.mark.parametrize("kernel", ["gemv", "small_batch", "gemm", "any"])
@pytest.mark.parametrize("case", quantised(BINARY_CASES)[::7], ids=lambda case: case.id)
def test_as_codes_of_two_bits(cuda: CudaLibrary, kernel: str, case: Case) -> None:
    """Bits become codes of two_bit for the kernels of bytes."""
    cuda.select_kernel(kernel)
    try:
        problem = Problem(case)
        y = problem.run(cuda, codes_offset=zlib.crc32(case.id.encode()) % 2)
        served = cuda.last_kernel().split("/")[3]
    finally:
        cuda.select_kernel(None)
    assert served == kernel
    if case.group_size:
        check_grouped(problem, y)
    else:
        same_bits(y, expected_of(problem))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "case", [case for case in BINARY_CASES if case.activation == FLOAT], ids=lambda case: case.id
)
def test_floats_of_every_shape(floats: CudaLibrary, case: Case, order: int) -> None:
    floats.order(order)
    floats.emulate(80, 5 if order == 1 else 1)
    problem = Problem(case)
    check_float(problem, problem.run(floats, codes_offset=order - 1))
    assert floats.last_kernel() == "binary_linear/binary/float/float/sm_80"


@pytest.mark.parametrize(
    ("components", "rows", "cols", "group_size", "tokens"),
    [
        (1, 150, 8192, 0, 1),  # exactly one tile of columns of eight warps
        (1, 70, 8224, 0, 2),  # a word more
        (2, 45, 4096, 128, 4),
        (1, 20, 16640, 1024, 5),
        (1, 1340, 130, 0, 3),  # a warp a row set
    ],
)
def test_floats_in_tiles_and_shares(
    floats: CudaLibrary, components: int, rows: int, cols: int, group_size: int, tokens: int
) -> None:
    for multiprocessors in (1, 60):
        floats.emulate(80, multiprocessors)
        problem = Problem(
            Case(BINARY, components, rows, cols, group_size, FLOAT, tokens, BF16, F32, bias_dtype=F32)
        )
        check_float(problem, problem.run(floats, codes_offset=0))


def test_answers_of_floats_do_not_depend_on_the_batch(floats: CudaLibrary) -> None:
    problem = Problem(Case(BINARY, 1, 70, 500, 0, FLOAT, 9))
    y = problem.run(floats)
    for token in range(9):
        same_bits(problem.run(floats, problem.x[token : token + 1])[0], y[token])


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_floats_that_are_not_finite_stay_in_their_row(floats: CudaLibrary, poison: float) -> None:
    problem = Problem(Case(BINARY, 1, 23, 130, 0, FLOAT, 3))
    clean = problem.run(floats)
    x = problem.x.copy()
    x[1, 129] = poison
    y = problem.run(floats, x)
    assert not np.isfinite(y[1]).any()
    same_bits(y[[0, 2]], clean[[0, 2]])


def test_each_takes_its_own_activations(gemv: CudaLibrary) -> None:
    assert workspace_of(gemv, 8, 64, 1, FLOAT) == -1
    assert "kernel binary_gemv was chosen, but it takes quantised activations" in gemv.error()
    gemv.select_kernel("float")
    assert workspace_of(gemv, 8, 64, 1, INT8) == -1
    assert "kernel float was chosen, but it takes activations as they are" in gemv.error()
