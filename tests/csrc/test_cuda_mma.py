"""The kernels on tensor cores, run by the emulator: every case, instance and way of sharing the work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem, quantised
from kernel_checks import check_grouped, expected_of, same_bits
from kernel_library import BASE3, BF16, BINARY, F16, F32, INT8, INT16, TWO_BIT

KERNELS = ["gemm", "small_batch"]
#: Longest sums only of the largest activations: what sign and ternary ones come to are smaller integers.
ALL = [
    case
    for case in quantised(CASES + EXTREME_CASES + ZERO_CASES)
    if case.format != BINARY and not (case.extreme and case.activation not in (INT8, INT16))
]
MOST_COLUMNS_OF_GEMM = 131072


@pytest.fixture
def emulated(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


def run(
    cuda: CudaLibrary, kernel: str, case: Case, codes_offset: int, multiprocessors: int, order: int
) -> None:
    cuda.select_kernel(kernel)
    cuda.emulate(80, multiprocessors)
    cuda.order(order)
    problem = Problem(case)
    y = problem.run(cuda, codes_offset=codes_offset)
    assert served_by(cuda) == kernel
    if case.group_size:
        check_grouped(problem, y)
    else:
        same_bits(y, expected_of(problem), case.id)


def served_by(cuda: CudaLibrary) -> str:
    return cuda.cuda.bitimpl_cuda_last_kernel().decode().split("/")[3]


def fits(kernel: str, case: Case) -> bool:
    """Whether gemm takes it; base3 rows as long as those it refuses of two_bit only take long to emulate."""
    return kernel != "gemm" or (case.group_size or case.cols) <= MOST_COLUMNS_OF_GEMM


@pytest.mark.parametrize(
    ("kernel", "case"),
    [pytest.param(k, case, id=f"{k}-{case.id}") for k in KERNELS for case in ALL if fits(k, case)],
)
def test_every_case(emulated: CudaLibrary, kernel: str, case: Case) -> None:
    turn = ALL.index(case)
    run(emulated, kernel, case, turn % 2, [3, 1, 40][turn % 3], turn)


#: (components, rows, cols, group_size, tokens): one and two tiles of rows with the last row group short, all
#: widths of products, whole and short steps, columns that 16 divides and 64 does not; rows for eight warps
#: side by side, and columns for several blocks.
SHARES = [
    (1, 64, 256, 0, 8),
    (1, 203, 1040, 0, 17),
    (2, 79, 1088, 0, 33),
    (1, 130, 2048, 0, 64),
    (1, 161, 528, 0, 65),
    (1, 321, 192, 0, 130),
    (1, 1290, 128, 0, 9),
    (2, 90, 1024, 128, 11),
    (1, 81, 1040, 80, 40),
    (3, 655, 256, 64, 20),
]


@pytest.mark.parametrize("multiprocessors", [1, 7, 132])
@pytest.mark.parametrize("activation", [INT8, INT16], ids=["int8", "int16"])
@pytest.mark.parametrize("fmt", [TWO_BIT, BASE3], ids=["two_bit", "base3"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_way_of_sharing(
    emulated: CudaLibrary, kernel: str, fmt: int, activation: int, multiprocessors: int
) -> None:
    for index, shape in enumerate(SHARES):
        if (index + multiprocessors) % 2 and multiprocessors != 7:
            continue
        components, rows, cols, group_size, tokens = shape
        case = Case(
            fmt, components, rows, cols, group_size, activation, tokens, F32, [F32, F16, BF16][index % 3],
            y_padding=[0, 0, 4, 3][index % 4] if rows % 4 == 0 else 4 - rows % 4,
            bias_dtype=[-1, F32, BF16][index % 3],
        )  # fmt: skip
        run(emulated, kernel, case, [0, 0, 16, 8][index % 4], multiprocessors, index)


def test_sums_beyond_the_operands_of_one_warp(emulated: CudaLibrary) -> None:
    """More columns than the eight warps of a block add up within int32: parts of a unit."""
    case = Case(TWO_BIT, 1, 4, 8 * 132300, 0, INT8, 1, extreme=1)
    run(emulated, "small_batch", case, 0, 1, 1)


def test_gemm_refuses_sums_beyond_int32(emulated: CudaLibrary) -> None:
    emulated.select_kernel("gemm")
    case = Case(TWO_BIT, 1, 1, MOST_COLUMNS_OF_GEMM + 1, 0, INT8, 1)
    with pytest.raises(AssertionError, match="gemm was chosen, but it adds at most 131072 columns"):
        Problem(case).run(emulated)


@pytest.mark.parametrize(
    ("tokens", "multiprocessors", "kernel"),
    [(5, 1, "small_batch"), (64, 1, "small_batch"), (65, 1, "gemm"), (65, 40, "small_batch")],
)
def test_the_kernel_chosen(emulated: CudaLibrary, tokens: int, multiprocessors: int, kernel: str) -> None:
    emulated.emulate(80, multiprocessors)
    Problem(Case(TWO_BIT, 1, 9, 64, 0, INT8, tokens)).run(emulated)
    assert served_by(emulated) == kernel


def test_not_a_number_stays_in_its_token(emulated: CudaLibrary) -> None:
    case = Case(BASE3, 1, 23, 80, 0, INT8, 19)
    for kernel in KERNELS:
        emulated.select_kernel(kernel)
        problem = Problem(case)
        x = problem.x.copy()
        x[7, 3] = np.nan
        y = problem.run(emulated, x)
        assert np.isnan(y[7]).all()
        assert not np.isnan(np.delete(y, 7, 0)).any()
