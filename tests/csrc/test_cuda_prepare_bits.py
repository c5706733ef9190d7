"""Activations and binary weights as words of bits on CUDA: every layout, number of channels, groups and taps.

Through the simplest kernel of products of bits, to the bit what the CPU's kernels make of them.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conv_cases import CHANNELS_FIRST, CHANNELS_LAST, GAPS, ConvCase
from cuda_library import CudaLibrary
from kernel_cases import Case, Problem
from kernel_library import BF16, BINARY, F16, F32, SIGN, Guarded, Library
from kernel_reference import to_dtype
from operator_problems import ConvProblem, SignsProblem
from test_cuda_linear import check


@pytest.fixture
def words(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    """By the kernel that has everything prepared for it."""
    cuda.select_kernel("any")
    yield cuda
    cuda.select_kernel(None)


def image(
    rows: int,
    channels: int,
    groups: int,
    samples: int,
    size: tuple[int, int, int],
    kernel: int = 1,
    **more: Any,
) -> ConvCase:
    around = (0, kernel // 2, kernel // 2)
    return ConvCase(
        BINARY,
        1,
        rows,
        channels,
        groups,
        SIGN,
        samples,
        size,
        (1, kernel, kernel),
        before=around,
        after=around,
        **more,
    )


def same(cuda: CudaLibrary, library: Library, problem: ConvProblem) -> None:
    cuda.order(zlib.crc32(problem.case.line.encode()))
    problem.run_cuda(cuda).same(problem.run_cpu(library), problem.case.line)


LAYOUTS = [CHANNELS_FIRST, CHANNELS_LAST, GAPS]
#: Channels of a group, from one to several words and chunks of words, one less and one more than whole ones.
CHANNELS = [1, 3, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 384, 1024, 1025, 1100]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["first", "last", "gaps"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(words: CudaLibrary, library: Library, layout: int, channels: int) -> None:
    for samples, size, dtype in ((1, (1, 5, 7), F32), (3, (2, 1, 4), BF16), (2, (1, 1, 1), F16)):
        case = image(3, channels, 1, samples, size, x_dtype=dtype, x_layout=layout)
        same(words, library, ConvProblem(case))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["first", "last", "gaps"])
@pytest.mark.parametrize("groups", range(1, 10))
def test_groups(words: CudaLibrary, library: Library, layout: int, groups: int) -> None:
    for of_group in (1, 5, 32, 40, 65, 130):
        case = image(2 * groups, of_group * groups, groups, 2, (1, 3, 5), 3, padding_value=1, x_layout=layout)
        same(words, library, ConvProblem(case))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["first", "last", "gaps"])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize(
    ("channels", "groups", "size"),
    [
        (70, 1, (1, 24, 23)),
        (3, 1, (1, 23, 25)),
        (12, 1, (2, 16, 17)),
        (160, 2, (1, 20, 26)),
        (40, 40, (1, 24, 22)),
        (16, 2, (1, 32, 33)),
    ],
    ids=str,
)
def test_samples_of_several_blocks(
    words: CudaLibrary,
    library: Library,
    channels: int,
    groups: int,
    size: tuple[int, int, int],
    dtype: int,
    layout: int,
) -> None:
    """So many pixels that lanes of channels first load four at once, where they are a multiple of four."""
    case = image(groups, channels, groups, 2, size, x_dtype=dtype, x_layout=layout)
    same(words, library, ConvProblem(case))


def test_an_image_cut_from_a_higher_one(words: CudaLibrary, library: Library) -> None:
    """Its channels lie at multiples of four, and its pixels are none."""

    class Cut(ConvProblem):
        def _store(
            self, values: np.ndarray, dtype: int, layout: int, signs: bool
        ) -> tuple[Guarded, list[int]]:
            if values.shape[1] != self.case.channels:
                return super()._store(values, dtype, layout, signs)
            wide = np.full((2, 36, 1, 26, 22), np.nan, np.float32)
            inside = wide[:, :, :, :25]
            inside[...] = values
            return Guarded.of(wide), [stride // 4 for stride in inside.strides]

    same(words, library, Cut(image(2, 36, 1, 2, (1, 25, 22))))


class Poisoned(ConvProblem):
    """Sample 1 of three has ``poison`` at ``at``, the others are finite."""

    def __init__(self, case: ConvCase, at: int, poison: float) -> None:
        self.at, self.poison = at, poison
        super().__init__(case)

    def _store(self, values: np.ndarray, dtype: int, layout: int, signs: bool) -> tuple[Guarded, list[int]]:
        if values.shape[1] == self.case.channels:
            values[2][np.isnan(values[2])] = 0.5
            values[1].flat[self.at] = self.poison
        return super()._store(values, dtype, layout, signs)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["first", "last", "gaps"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_sample(
    words: CudaLibrary, library: Library, layout: int, poison: float
) -> None:
    for at in (0, 24 * 24 * 40 - 1, 7777):
        problem = Poisoned(image(4, 40, 1, 3, (1, 24, 24), x_layout=layout), at, poison)
        answer = problem.run_cuda(words)
        answer.same(problem.run_cpu(library), str(at))
        y = answer.y.view(np.float32).reshape(3, -1)
        assert np.isnan(y).any(axis=1).tolist() == [False, True, False]
        assert np.isnan(y[1]).all()


class Strided(ConvProblem):
    """x with gaps wherever there can be some, its dimensions in any order in memory."""

    order: tuple[int, ...] = (0, 1, 2, 3, 4)

    def _store(self, values: np.ndarray, dtype: int, layout: int, signs: bool) -> tuple[Guarded, list[int]]:
        if values.shape[1] != self.case.channels:
            return super()._store(values, dtype, layout, signs)
        stored = to_dtype(values, dtype)
        shape = [stored.shape[axis] + 1 + axis % 2 for axis in self.order]
        shape[0] -= 1
        wide = np.full(shape, 0xFFFF if stored.dtype == np.uint16 else np.nan, stored.dtype)
        inside = wide.transpose(np.argsort(self.order))[tuple(slice(size) for size in stored.shape)]
        inside[...] = stored
        return Guarded.of(wide), [stride // stored.itemsize for stride in inside.strides]


@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3, 4), (0, 2, 3, 4, 1), (0, 4, 1, 3, 2), (0, 3, 1, 4, 2), (1, 0, 2, 3, 4)], ids=str
)
def test_strides(words: CudaLibrary, library: Library, order: tuple[int, ...]) -> None:
    for channels, groups, dtype in ((37, 1, F32), (128, 1, BF16), (66, 2, F16), (6, 3, F32)):

        class Ordered(Strided):
            pass

        Ordered.order = order
        case = image(groups, channels, groups, 2, (2, 5, 6), x_dtype=dtype)
        same(words, library, Ordered(case))


@pytest.mark.parametrize("channels", [1, 9, 32, 100, 1500])
@pytest.mark.parametrize("groups", [1, 3])
def test_signs_are_copied(words: CudaLibrary, library: Library, channels: int, groups: int) -> None:
    case = image(2 * groups, channels * groups, groups, 2, (1, 5, 6), 3)
    for y_signs in (False, True):
        same(words, library, ConvProblem(case, True, y_signs))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("channels", [1, 2, 30, 33, 64, 100, 1040])
def test_taps_of_weights(words: CudaLibrary, library: Library, kernel: int, channels: int) -> None:
    """Rows of codes whose taps begin within bytes, and their sums under a border of 0."""
    for components, padding_value in ((1, 0), (2, -1)):
        case = image(5, channels, 1, 1, (1, 3, 3), kernel, padding_value=padding_value)
        same(words, library, ConvProblem(replace(case, components=components)))


#: (components, cols, group_size): as the chunks of a row go; segments that fill one with gaps, or several.
ROWS = [
    (1, 1023, 0), (2, 1024, 0), (1, 1025, 0), (1, 5000, 0), (1, 9001, 0), (1, 1280, 384), (2, 700, 96),
    (1, 3000, 1200), (1, 2048, 128), (1, 9000, 2056),
]  # fmt: skip


@pytest.mark.parametrize(("components", "cols", "group_size"), ROWS)
def test_tokens(words: CudaLibrary, library: Library, components: int, cols: int, group_size: int) -> None:
    for tokens, dtype, padding in ((1, F32, 0), (9, F16, 0), (3, BF16, 1), (2, F32, 3)):
        case = Case(BINARY, components, 3, cols, group_size, SIGN, tokens, dtype, x_padding=padding)
        for offset in (0, 1):
            problem = Problem(case)
            check(problem, problem.run(words, codes_offset=offset))
    for x_signs, y_signs in itertools.product((False, True), repeat=2):
        if x_signs or y_signs:
            problem_of_signs = SignsProblem(replace(case, x_padding=0), x_signs, y_signs)
            problem_of_signs.run_cuda(words).same(problem_of_signs.run_cpu(library), case.id)
