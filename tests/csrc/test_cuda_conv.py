"""Convolutions of bytes on CUDA: windows gathered for the linear kernels, and straight from the image, floats
and signs in and out, against the CPU's kernels, to the bit."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conv_cases import CHANNELS_FIRST, CHANNELS_LAST, CONV_CASES, GAPS, ConvCase
from cuda_library import CudaLibrary, load_emulated
from kernel_library import (
    BASE3,
    BF16,
    BINARY,
    F16,
    F32,
    INT8,
    INT16,
    OK,
    SIGN,
    TERNARY,
    TWO_BIT,
    Guarded,
    Library,
)
from operator_problems import ConvProblem

BYTE_CASES = [case for case in CONV_CASES if not (case.format == BINARY and case.activation == SIGN)]


def gathers(case: ConvCase) -> bool:
    """Whether a group's rows are whole row blocks."""
    return case.groups == 1 or case.rows // case.groups % (20 if case.format == BASE3 else 16) == 0


def _gathered_cases() -> list[ConvCase]:
    """Groups of whole row blocks; channels in pieces of 16, words and bytes; windows at every border; y as
    the kernels write it, and not; tokens of one and of several steps."""
    layouts = itertools.cycle(itertools.product((CHANNELS_FIRST, CHANNELS_LAST, GAPS), repeat=2))
    values = itertools.cycle([1, 0, -1, 1])
    kinds = itertools.product((BINARY, TWO_BIT, BASE3), (SIGN, TERNARY, INT8, INT16))
    cases = []
    for (fmt, activation), channels in itertools.product(kinds, (32, 12, 9)):
        if fmt == BINARY and activation == SIGN:
            continue
        rows = 40 if fmt == BASE3 else 32
        geometry = ((1, 6, 5), (1, 3, 3), (1, 2, 1), (1, 1, 2), (0, 1, 2), (0, 1, 1))
        cases.append(
            ConvCase(
                fmt, 2, 2 * rows, 2 * channels, 2, activation, 2, *geometry, next(values), BF16, F16, F32,
                *next(layouts),
            )
        )  # fmt: skip
        cases.append(
            ConvCase(
                fmt, 1, rows + 3, channels, 1, activation, 2, *geometry, next(values), F32, F32, -1,
                *next(layouts),
            )
        )  # fmt: skip
    return cases


GATHERED_CASES = _gathered_cases() + [case for case in BYTE_CASES if gathers(case)][::4]

#: Those that wgmma's emulation does in less than a second.
SMALL_CASES = [case for case in GATHERED_CASES if math.prod(case.size) < 100][::2]
#: 180 positions under windows of 288 columns.
SEVERAL_CHUNKS = ConvCase(
    TWO_BIT, 1, 64, 32, 1, INT8, 2, (1, 9, 10), (1, 3, 3), before=(0, 1, 1), after=(0, 1, 1), padding_value=1
)


def name_of(case: ConvCase) -> str:
    return case.line.replace(" ", "_")


def compare(
    cuda: CudaLibrary, library: Library, case: ConvCase, served: str, few_bytes: bool = False
) -> None:
    """Floats and signs in and out; ``few_bytes``: with no more workspace than the call needs."""
    cuda.order(zlib.crc32(case.line.encode()))
    for x_signs, y_signs in ((False, False), (True, False), (False, True), (True, True)):
        if x_signs and case.activation != SIGN:
            continue
        problem = ConvProblem(case, x_signs, y_signs)
        bytes_passed = problem.least_workspace(cuda) if few_bytes and case.samples > 0 else None
        answer = problem.run_cuda(cuda, bytes_passed)
        answer.same(problem.run_cpu(library), f"signs {x_signs} {y_signs}: {case.line}")
        assert cuda.last_kernel().split("/")[3] == served


@pytest.fixture
def choice(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    """The library, which a test may tell what to choose and what to be."""
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


@pytest.mark.parametrize("case", BYTE_CASES, ids=name_of)
def test_directly(choice: CudaLibrary, library: Library, case: ConvCase) -> None:
    choice.select_kernel("any")
    compare(choice, library, case, "any")


@pytest.mark.parametrize("case", GATHERED_CASES, ids=name_of)
def test_gathered_for_small_batch(choice: CudaLibrary, library: Library, case: ConvCase) -> None:
    choice.select_kernel("small_batch")
    compare(choice, library, case, "gather+small_batch")


#: Rows of a group are whole row blocks (of 20), but their signs are no whole bytes.
UNEVEN_BYTES = ConvCase(BASE3, 1, 200, 128, 2, INT8, 2, (1, 3, 2), (1, 1, 1), y_layout=CHANNELS_LAST)


def test_signs_of_groups_that_share_a_byte(choice: CudaLibrary, library: Library) -> None:
    expected = ConvProblem(UNEVEN_BYTES, False, True).run_cpu(library)
    ConvProblem(UNEVEN_BYTES, False, True).run_cuda(choice).same(expected, UNEVEN_BYTES.line)
    assert choice.last_kernel().split("/")[3] == "any"
    ConvProblem(UNEVEN_BYTES, False, False).run_cuda(choice)
    assert choice.last_kernel().split("/")[3].startswith("gather+")
    choice.select_kernel("gemm")
    problem = ConvProblem(UNEVEN_BYTES, False, True)
    with pytest.raises(AssertionError, match="share a byte"):
        problem.run_cuda(choice)


@pytest.mark.parametrize("case", GATHERED_CASES[::2], ids=name_of)
def test_gathered_for_gemm(choice: CudaLibrary, library: Library, case: ConvCase) -> None:
    choice.emulate(80, 2)
    choice.select_kernel("gemm")
    compare(choice, library, case, "gather+gemm")


@pytest.mark.parametrize("case", GATHERED_CASES[1::3], ids=name_of)
def test_gathered_for_gemv(choice: CudaLibrary, library: Library, case: ConvCase) -> None:
    choice.select_kernel("gemv")
    compare(choice, library, case, "gather+gemv")


@pytest.mark.parametrize("case", SMALL_CASES, ids=name_of)
def test_gathered_for_wgmma(choice: CudaLibrary, library: Library, case: ConvCase) -> None:
    choice.emulate(90, 2)
    choice.select_kernel("wgmma")
    compare(choice, library, case, "gather+wgmma")


@pytest.mark.parametrize("case", GATHERED_CASES[::2], ids=name_of)
def test_gathered_in_small_chunks(choice: CudaLibrary, library: Library, case: ConvCase) -> None:
    choice.select_kernel("small_batch")
    compare(choice, library, case, "gather+small_batch", few_bytes=True)


class SpacedProblem(ConvProblem):
    """With room between the samples of x and of y."""

    def _store(self, values: np.ndarray, dtype: int, layout: int, signs: bool) -> tuple[Guarded, list[int]]:
        memory, strides = super()._store(np.repeat(values, 2, axis=0), dtype, layout, signs)
        return memory, [2 * strides[0], *strides[1:]]


@pytest.mark.parametrize("kernel", ["any", "small_batch"])
@pytest.mark.parametrize("layout", [CHANNELS_FIRST, CHANNELS_LAST])
def test_samples_apart(choice: CudaLibrary, library: Library, kernel: str, layout: int) -> None:
    choice.select_kernel(kernel)
    problem = SpacedProblem(replace(SEVERAL_CHUNKS, size=(1, 4, 5), x_layout=layout, y_layout=layout))
    problem.run_cuda(choice).same(problem.run_cpu(library), kernel)


@pytest.mark.parametrize("activation", [INT8, INT16])
@pytest.mark.parametrize("value", [-1, 0, 1])
def test_padding_larger_than_every_activation(
    choice: CudaLibrary, library: Library, activation: int, value: int
) -> None:
    problem = ConvProblem(replace(SEVERAL_CHUNKS, activation=activation, padding_value=value))
    problem.x.view(np.float32)[:] *= np.float32(0.01)
    problem.run_cuda(choice).same(problem.run_cpu(library), f"padding {value}")


@pytest.mark.parametrize("activation", [SIGN, TERNARY, INT8, INT16])
@pytest.mark.parametrize("layout", [CHANNELS_FIRST, CHANNELS_LAST])
def test_a_sample_of_more_tiles_than_pieces(
    choice: CudaLibrary, library: Library, activation: int, layout: int
) -> None:
    case = ConvCase(
        TWO_BIT, 1, 1, 3, 1, activation, 2, (1, 1, 64 * 130), (1, 1, 1), (1, 1, 4), x_layout=layout
    )
    compare(choice, library, case, "any")


def test_a_workspace_of_any_size_between_serves(choice: CudaLibrary, library: Library) -> None:
    choice.select_kernel("gemm")
    problem = ConvProblem(SEVERAL_CHUNKS)
    expected = problem.run_cpu(library)
    least, most = problem.least_workspace(choice), problem.cuda_workspace(choice)
    assert 3 * least < most
    for size in range(least, most, (most - least) // 5):
        problem.run_cuda(choice, size).same(expected, f"{size} bytes")


def test_the_librarys_own_choice(choice: CudaLibrary, library: Library) -> None:
    """Tensor cores where they have enough to do; the kernel for any convolution elsewhere."""
    served = {
        "gather+gemm": replace(SEVERAL_CHUNKS, activation=INT16, rows=68),
        "gather+small_batch": replace(SEVERAL_CHUNKS, size=(1, 2, 3)),
        "gather+gemv": replace(SEVERAL_CHUNKS, size=(1, 1, 1), samples=2),
        "any": replace(SEVERAL_CHUNKS, rows=15),
    }
    others = [
        replace(SEVERAL_CHUNKS, groups=4),  # 16 rows of a group
        replace(SEVERAL_CHUNKS, channels=7),  # 63 columns
        replace(SEVERAL_CHUNKS, format=BINARY, activation=SIGN, rows=16, groups=16),  # a channel a group
    ]
    choice.emulate(80, 1)
    for name, case in [*served.items(), *(("any", other) for other in others)]:
        compare(choice, library, case, name)


@pytest.mark.parametrize("kernel", ["gemm", "float"])
def test_a_refused_choice_never_falls_back(choice: CudaLibrary, library: Library, kernel: str) -> None:
    problem = ConvProblem(replace(SEVERAL_CHUNKS, groups=2, rows=40))
    choice.select_kernel(kernel)
    why = {"gemm": "the rows of its groups are no whole row blocks", "float": "it has no part in such calls"}
    message = f"kernel {kernel} was chosen, but {why[kernel]}: choose another, or none"
    assert problem.cuda_workspace(choice) == -1
    assert choice.error() == message
    with pytest.raises(AssertionError, match=re.escape(message)):
        problem.run_cuda(choice, 1 << 20)
    choice.select_kernel(None)
    problem.run_cuda(choice).same(problem.run_cpu(library), "afterwards")


def test_the_reason_is_that_of_the_kernel_that_was_chosen(choice: CudaLibrary) -> None:
    """Products of bits, which are asked first, have no kernel of that name."""
    problem = ConvProblem(ConvCase(BINARY, 1, 1, 131080, 1, SIGN, 1, (1, 1, 1), (1, 1, 1)))
    choice.select_kernel("gemm")
    assert problem.cuda_workspace(choice) == -1
    assert "it adds at most 131072 columns of two_bit weights for one scale" in choice.error()


def test_an_avoided_kernel_is_not_chosen(cuda: CudaLibrary, library: Library, tmp_path: Path) -> None:
    """In a library of its own: it is for good."""
    copy = load_emulated(Path(shutil.copy(cuda.path, tmp_path / "copy.so")))
    gathered, direct = (
        ConvProblem(replace(SEVERAL_CHUNKS, size=(1, 2, 3))),
        ConvProblem(replace(SEVERAL_CHUNKS, groups=4)),
    )
    assert copy.cuda.bitimpl_cuda_avoid(b"small_batch", 0) == OK
    gathered.run_cuda(copy).same(gathered.run_cpu(library), "without small_batch")
    assert copy.last_kernel() == "ternary_conv/two_bit/int8/any/sm_80"
    assert copy.cuda.bitimpl_cuda_avoid(b"any", 0) == OK
    assert direct.cuda_workspace(copy) == -1
    assert "no CUDA kernel takes two_bit weights with int8 activations here" in copy.error()
