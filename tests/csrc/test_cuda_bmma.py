"""Products of bits on tensor cores (mma.sync): every size of block, width of copy and way to store."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from conv_cases import CHANNELS_FIRST, CHANNELS_LAST, GAPS, ConvCase
from cuda_library import CudaLibrary
from kernel_cases import Case, Problem
from kernel_library import BASE3, BF16, BINARY, F16, F32, SIGN, TERNARY, TWO_BIT, Library
from operator_problems import ConvProblem, SignsProblem
from test_cuda_linear import check

Shape = tuple[int, ...]


@pytest.fixture
def bmma(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("bmma")
    yield cuda
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


#: (multiprocessors, components, rows, cols, group_size, tokens), by the blocks they are given: whole ones and
#: several, one less and one more than whole, sums of one step, of several and of a part of one.
LARGE: list[Shape] = [(1, 1, 128, 6656, 0, 256), (1, 1, 127, 6657, 0, 255), (1, 1, 250, 7100, 0, 500)]
MEDIUM: list[Shape] = [
    (1, 1, 128, 128, 0, 128),
    (1, 1, 129, 1025, 0, 257),
    (1, 1, 127, 70, 0, 121),
    (2, 1, 250, 512, 0, 500),
]
SMALL: list[Shape] = [
    (1, 1, 64, 512, 0, 64),
    (1, 1, 65, 513, 0, 65),
    (7, 1, 63, 511, 0, 190),
    (1, 1, 60, 4100, 0, 59),
]
FEW: list[Shape] = [
    (1, 1, 32, 1024, 0, 32),
    (40, 1, 33, 1025, 0, 33),
    (132, 1, 31, 255, 0, 9),
    (1, 1, 100, 9000, 0, 20),
]
#: Several components and segments, which end within a step: in small blocks and in those of few positions.
UNITS: list[Shape] = [
    (1, 3, 65, 513, 0, 66), (1, 1, 64, 1024, 128, 64), (3, 2, 40, 1500, 520, 70), (1, 1, 63, 2049, 2048, 65),
    (1, 4, 33, 600, 0, 32), (40, 1, 64, 1536, 256, 34), (132, 2, 31, 3000, 1032, 16), (1, 1, 8, 264, 8, 12),
]  # fmt: skip
LINEAR = LARGE + MEDIUM + SMALL + FEW + UNITS


def linear_case(fmt: int, activation: int, index: int, shape: Shape) -> Case:
    _, components, rows, cols, group_size, tokens = shape
    return Case(
        fmt, components, rows, cols, group_size, activation, tokens, F32, [F32, F16, BF16][index % 3],
        y_padding=[0, 4, 3][index // 2 % 3] if rows % 4 == 0 else [4 - rows % 4, 0][index % 2],
        bias_dtype=[-1, F32, BF16, F16][index % 4], scale_dtype=[F32, F16][index % 2],
    )  # fmt: skip


@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_linear(bmma: CudaLibrary, shape: Shape) -> None:
    index = LINEAR.index(shape)
    bmma.emulate([80, 90][index % 2], shape[0])
    for order in (index, index + 100):
        bmma.order(order)
        problem = Problem(linear_case(BINARY, SIGN, index, shape))
        check(problem, problem.run(bmma, codes_offset=[0, 1, 16, 4][(index + order) % 4]))


@pytest.mark.parametrize("shape", LINEAR[::2] + UNITS[1::2], ids=str)
def test_linear_from_and_to_signs(bmma: CudaLibrary, library: Library, shape: Shape) -> None:
    bmma.emulate(80, shape[0])
    index = LINEAR.index(shape)
    bmma.order(index)
    for x_signs in (False, True):
        problem = SignsProblem(linear_case(BINARY, SIGN, index, shape), x_signs, True)
        problem.run_cuda(bmma).same(problem.run_cpu(library), str(shape))


@pytest.mark.parametrize("fmt", [TWO_BIT, BASE3], ids=["two_bit", "base3"])
@pytest.mark.parametrize("shape", LINEAR[1::3] + UNITS, ids=str)
def test_ternary_values_as_planes(bmma: CudaLibrary, fmt: int, shape: Shape) -> None:
    index = LINEAR.index(shape)
    bmma.emulate(80, shape[0])
    bmma.order(index)
    problem = Problem(linear_case(fmt, TERNARY, index, shape))
    check(problem, problem.run(bmma))


@pytest.mark.parametrize(
    ("cols", "tokens"), [(262144, 9), (32768, 40), (16384, 128)], ids=["few", "small", "medium"]
)
def test_longest_sums(bmma: CudaLibrary, cols: int, tokens: int) -> None:
    """All +1: every set bit counts, up to 256 steps one after another."""
    bmma.emulate(80, 1)
    problem = Problem(Case(BINARY, 1, tokens % 100, cols, 0, SIGN, tokens, extreme=1))
    check(problem, problem.run(bmma, codes_offset=0))


#: (multiprocessors, components, rows, channels, groups, samples, size, kernel, stride, dilation, before,
#: after).
CONVS: list[tuple[Any, ...]] = [
    # the widths of a copy (channels of 1, 2 and 4 words), in blocks of every size
    (1, 1, 128, 64, 1, 2, (1, 10, 12), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 127, 20, 1, 1, (1, 16, 16), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 128, 128, 1, 1, (1, 16, 16), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 128, 900, 1, 1, (1, 16, 16), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 130, 136, 1, 3, (1, 13, 13), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 64, 33, 1, 1, (1, 8, 8), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 120, 200, 1, 1, (1, 11, 11), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (132, 1, 33, 256, 1, 1, (1, 7, 7), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (132, 1, 40, 5, 1, 1, (1, 6, 6), (1, 5, 5), (1, 1, 1), (1, 1, 1), (0, 2, 2), (0, 2, 2)),
    # single taps, with and without strides
    (1, 1, 70, 300, 1, 2, (1, 9, 8), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (1, 1, 128, 256, 1, 1, (1, 16, 16), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (1, 1, 70, 64, 1, 2, (1, 9, 9), (1, 1, 1), (1, 2, 2), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    # more taps than a mask has bits, strides, dilations, three dimensions, single outputs
    (1, 1, 64, 3, 1, 1, (1, 21, 23), (1, 7, 7), (1, 2, 2), (1, 1, 1), (0, 3, 3), (0, 3, 3)),
    (1, 1, 64, 40, 1, 1, (1, 11, 12), (1, 3, 3), (1, 2, 1), (1, 2, 3), (0, 2, 3), (0, 2, 3)),
    (1, 1, 30, 70, 1, 2, (4, 5, 6), (2, 3, 3), (2, 1, 1), (1, 2, 1), (1, 2, 0), (0, 1, 2)),
    (132, 1, 65, 96, 1, 3, (1, 3, 3), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (1, 1, 16, 32, 1, 1, (1, 1, 40), (1, 1, 33), (1, 1, 1), (1, 1, 1), (0, 0, 17), (0, 0, 40)),
    # groups, of whole bytes of signs and not
    (1, 1, 64, 64, 2, 1, (1, 8, 8), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (3, 1, 36, 390, 3, 2, (1, 6, 6), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 1, 144, 512, 2, 1, (1, 16, 16), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    # components
    (1, 2, 64, 64, 1, 1, (1, 8, 9), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (132, 3, 24, 16, 1, 1, (1, 6, 6), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 2, 66, 130, 1, 1, (1, 9, 9), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (1, 2, 64, 20, 1, 1, (1, 8, 8), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (132, 2, 20, 50, 1, 1, (1, 5, 5), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
]  # fmt: skip
LAYOUTS = [
    (CHANNELS_FIRST, CHANNELS_FIRST, F32), (CHANNELS_LAST, CHANNELS_LAST, F32), (GAPS, GAPS, F32),
    (CHANNELS_FIRST, CHANNELS_FIRST, BF16), (CHANNELS_LAST, CHANNELS_LAST, F16),
    (CHANNELS_LAST, CHANNELS_FIRST, F16),
]  # fmt: skip


def conv_case(index: int, value: int, layout: tuple[int, int, int]) -> ConvCase:
    _, components, rows, channels, groups, samples, size, kernel, stride, dilation, before, after = CONVS[
        index
    ]
    x_layout, y_layout, y_dtype = layout
    return ConvCase(
        BINARY, components, rows, channels, groups, SIGN, samples, size, kernel,
        stride, dilation, before, after, value, F32, y_dtype,
        [-1, F32, BF16][index % 3], x_layout, y_layout,
    )  # fmt: skip


def run_conv(cuda: CudaLibrary, library: Library, case: ConvCase, x_signs: bool, y_signs: bool) -> None:
    cuda.order(zlib.crc32(case.line.encode()))
    problem = ConvProblem(case, x_signs, y_signs)
    problem.run_cuda(cuda).same(problem.run_cpu(library), f"signs {x_signs} {y_signs}: {case.line}")


@pytest.mark.parametrize("index", range(len(CONVS)), ids=lambda index: str(CONVS[index]))
def test_convolutions(bmma: CudaLibrary, library: Library, index: int) -> None:
    bmma.emulate(80, CONVS[index][0])
    for turn, value in enumerate((-1, 0, 1)):
        run_conv(bmma, library, conv_case(index, value, LAYOUTS[(index + turn) % len(LAYOUTS)]), False, False)
    case = conv_case(index, 0, LAYOUTS[1])
    run_conv(bmma, library, case, True, False)
    if case.groups == 1 or case.rows // case.groups % 8 == 0:
        run_conv(bmma, library, case, True, True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_way_to_store(bmma: CudaLibrary, library: Library, layout: tuple[int, int, int]) -> None:
    """Four positions at once, four channels, one by one; positions and rows that four divides and not."""
    bmma.emulate(80, 1)
    for index in (0, 4, 5, 7, 20):
        run_conv(bmma, library, conv_case(index, 0, layout), False, False)
        run_conv(bmma, library, replace(conv_case(index, 0, layout), rows=62), False, False)


def test_bytes_of_signs_are_of_one_group(cuda: CudaLibrary, library: Library) -> None:
    case = conv_case(18, 0, LAYOUTS[1])
    cuda.select_kernel("bmma")
    try:
        with pytest.raises(AssertionError, match="a byte of its signs is of one group"):
            ConvProblem(case, False, True).run_cuda(cuda)
    finally:
        cuda.select_kernel(None)
    run_conv(cuda, library, case, False, True)
