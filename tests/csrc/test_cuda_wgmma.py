"""The kernel for Hopper's warpgroup products, with twins of its instructions: what it computes if those do
what the manual says. Whether they do, only a GPU can tell; until one has, the library does not choose it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from ctypes import byref
from pathlib import Path

import pytest
from cuda_library import CudaLibrary, load_emulated
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem, weight_of
from kernel_checks import check_float
from kernel_library import BASE3, BF16, F16, F32, FLOAT, INT8, INT16, OK, SIGN, TERNARY, TWO_BIT, Guarded
from test_cuda_linear import check, ternary


@pytest.fixture(params=[(1, 1), (2, 3)], ids=["one_block", "three_blocks"])
def wgmma(request: pytest.FixtureRequest, cuda: CudaLibrary) -> CudaLibrary:
    seed, multiprocessors = request.param
    cuda.order(seed)
    cuda.emulate(90, multiprocessors)
    cuda.select_kernel("wgmma")
    return cuda


@pytest.fixture(autouse=True)
def as_it_was(cuda: CudaLibrary) -> Iterator[None]:
    yield
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


def run(library: CudaLibrary, case: Case, codes_offset: int) -> None:
    problem = Problem(case)
    check(problem, problem.run(library, codes_offset=codes_offset))
    assert library.last_kernel().endswith("/wgmma/sm_90")


def small(cases: list[Case]) -> list[Case]:
    """Those that take the emulator less than a second."""
    return [case for case in ternary(cases) if case.cols * case.tokens <= 60_000 and case.cols <= 20_000]


@pytest.mark.parametrize("case", small(CASES)[::5], ids=lambda case: case.id)
def test_a_fifth_of_the_small_shapes(wgmma: CudaLibrary, case: Case) -> None:
    run(wgmma, case, codes_offset=1)


#: Whole steps from aligned bytes, one scale a row: 64 columns at once. Row groups of less than a row block,
#: of less than a product, of one and of two tiles; tokens of one and of several tiles; one step, an odd and
#: an even number of them, more than stages.
WHOLE = [
    Case(TWO_BIT, 1, 9, 64, 0, INT8, 5),
    Case(BASE3, 1, 9, 64, 0, INT8, 5, bias_dtype=F32),
    Case(TWO_BIT, 1, 515, 192, 0, INT8, 67, y_dtype=BF16, bias_dtype=F16, scale_dtype=F16),
    Case(BASE3, 1, 645, 192, 0, INT8, 67, y_dtype=F16, bias_dtype=BF16),
    Case(TWO_BIT, 1, 1100, 128, 0, TERNARY, 130, y_dtype=F16, per_tensor=1),
    Case(BASE3, 1, 330, 640, 0, SIGN, 65, BF16, F32, 3, 5),
    Case(TWO_BIT, 1, 260, 704, 0, INT16, 70, F16, F32, 0, 4),
    Case(BASE3, 1, 330, 704, 0, INT16, 33, F16, BF16),
    Case(TWO_BIT, 1, 256, 1216, 1216, INT8, 64, F32, F32, 0, 3),
]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.id)
def test_whole_steps(wgmma: CudaLibrary, case: Case) -> None:
    run(wgmma, case, codes_offset=0)


#: Components and segments: of an odd number of steps, so that one ends in the middle of a pair; short steps.
SEGMENTED = [
    Case(TWO_BIT, 3, 300, 192, 0, INT8, 35),
    Case(BASE3, 2, 330, 256, 64, INT8, 35, bias_dtype=F32),
    Case(TWO_BIT, 2, 600, 320, 192, INT16, 18, y_dtype=BF16),
    Case(BASE3, 1, 20, 384, 128, INT16, 18, F16, F16),
    Case(TWO_BIT, 1, 17, 1300, 520, TERNARY, 40),
    Case(BASE3, 4, 11, 72, 8, SIGN, 4),
]


@pytest.mark.parametrize("codes_offset", [0, 1])
@pytest.mark.parametrize("case", SEGMENTED, ids=lambda case: case.id)
def test_components_and_segments(wgmma: CudaLibrary, case: Case, codes_offset: int) -> None:
    run(wgmma, case, codes_offset)


@pytest.mark.parametrize("case", small(EXTREME_CASES) + ternary(ZERO_CASES)[::4], ids=lambda case: case.id)
def test_long_sums_and_zeros(cuda: CudaLibrary, case: Case) -> None:
    cuda.emulate(90, 2)
    cuda.select_kernel("wgmma")
    run(cuda, case, codes_offset=0)


def codes_bytes(case: Case) -> int:
    rows_a_byte = 5 if case.format == BASE3 else 4
    return case.components * -(-case.rows // rows_a_byte) * case.cols


def workspace(library: CudaLibrary, case: Case) -> int:
    """That the library asks for, before there is memory."""
    weight = weight_of(case.layout, Guarded(8), None, F32, (case.components, case.rows, 1))
    weight.codes_bytes = codes_bytes(case)
    return library.cuda.bitimpl_cuda_linear_workspace(byref(weight), case.tokens, case.activation, 0)


@pytest.mark.parametrize(
    ("architecture", "case", "reason"),
    [
        (80, Case(TWO_BIT, 1, 64, 64, 0, INT8, 64), "it needs a device of architecture 9.0"),
        (100, Case(TWO_BIT, 1, 64, 64, 0, INT8, 64), "it needs a device of architecture 9.0"),
        (90, Case(TWO_BIT, 1, 64, 64, 0, FLOAT, 64), "it takes quantised activations"),
        (90, Case(TWO_BIT, 1, 64, 64, 0, INT8, 2**30 + 1), "it counts up to 2^30 tokens"),
        (90, Case(TWO_BIT, 1, 4, 131136, 0, INT8, 64), "its sums of two_bit weights hold 131072 columns"),
    ],
)
def test_refusals_say_why(cuda: CudaLibrary, architecture: int, case: Case, reason: str) -> None:
    cuda.emulate(architecture, 4)
    cuda.select_kernel("wgmma")
    needed = workspace(cuda, case)
    message = cuda.error()
    cuda.select_kernel(None)
    assert needed == -1
    assert message == f"kernel wgmma was chosen, but {reason}: choose another, or none"


def test_not_chosen_before_it_is_trusted(cuda: CudaLibrary, tmp_path: Path) -> None:
    case = Case(BASE3, 1, 300, 64, 0, INT8, 64)
    copy = load_emulated(Path(shutil.copy(cuda.path, tmp_path / "copy.so")))  # trust is for good
    copy.emulate(90, 1)
    problem = Problem(case)
    check(problem, problem.run(copy, codes_offset=0))
    assert "/wgmma/" not in copy.last_kernel()
    assert copy.cuda.bitimpl_cuda_trust(b"nothing") != OK
    assert 'there is no CUDA kernel "nothing": choose one of wgmma,' in copy.error()
    assert copy.cuda.bitimpl_cuda_trust(b"wgmma") == OK
    run(copy, case, codes_offset=0)
    floats = Problem(Case(BASE3, 1, 300, 64, 0, FLOAT, 64))  # which it refuses: another serves
    check_float(floats, floats.run(copy))
    assert "/float/float/" in copy.last_kernel()
