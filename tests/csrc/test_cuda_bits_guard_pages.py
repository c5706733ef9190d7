"""Products of bits and what is prepared for them touch nothing beside their buffers.

Pages without access follow each. The calls run in a process of their own, which a stray access would end.
"""

from __future__ import annotations

import subprocess
import sys
from ctypes import c_uint8
from pathlib import Path

import kernel_cases
import numpy as np
import operator_problems
import test_cuda_binarize
from conv_cases import CHANNELS_FIRST, CHANNELS_LAST, GAPS, ConvCase
from cuda_library import CudaLibrary, load_emulated
from kernel_cases import Case
from kernel_library import BF16, BINARY, F16, F32, REPOSITORY, SIGN, Guarded
from test_cuda_guard_pages import PageEnd

#: As ConvCase has them: (rows, channels, groups, size, kernel), with ends within every load.
IMAGES = [
    (3, 1, 1, (1, 1, 1), 1), (5, 33, 1, (1, 3, 5), 3), (4, 64, 2, (1, 4, 4), 1), (9, 27, 9, (1, 5, 3), 3),
    (2, 20, 1, (1, 24, 22), 1), (2, 1030, 1, (1, 2, 3), 2),
]  # fmt: skip
TOKENS = [(1, 3, 1, 0, 1), (2, 7, 130, 0, 3), (1, 5, 1100, 0, 2), (1, 9, 300, 24, 4)]


def convolutions() -> list[ConvCase]:
    return [
        ConvCase(
            BINARY, 1, rows, channels, groups, SIGN, 2, size, (1, kernel, kernel), before=(0, kernel // 2, 0),
            x_dtype=dtype, x_layout=layout,
        )
        for rows, channels, groups, size, kernel in IMAGES
        for layout in (CHANNELS_FIRST, CHANNELS_LAST, GAPS)
        for dtype in (F32, BF16)
    ]  # fmt: skip


def linear() -> list[Case]:
    return [
        Case(BINARY, components, rows, cols, group_size, SIGN, tokens, dtype)
        for components, rows, cols, group_size, tokens in TOKENS
        for dtype in (F32, F16)
    ]


def test_nothing_beside_the_buffers_is_touched(cuda: CudaLibrary) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(cuda.path)],
        capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode} after {done.stdout.splitlines()[-1:]}: {done.stderr}"
    calls = 3 * (len(convolutions()) + len(linear()))
    assert len(done.stdout.splitlines()) == calls


class GuardPages(Guarded):
    """Memory whose last byte is the last before such a page; ``offset`` would move it away."""

    def __init__(self, size: int, offset: int = 0, fill: int = 0xA5) -> None:
        self._page = PageEnd(np.full(size, fill, np.uint8))
        self.bytes = np.ctypeslib.as_array((c_uint8 * size).from_address(self.pointer))

    @property
    def pointer(self) -> int:
        return self._page.pointer

    def check(self, name: str) -> None:
        """Nothing to add to what the page has done."""


def main(path: str) -> None:
    for module in (kernel_cases, operator_problems, test_cuda_binarize):
        module.Guarded = GuardPages  # type: ignore[attr-defined]
    library = load_emulated(Path(path))
    library.select_kernel("any")
    for case in convolutions():
        for x_signs, y_signs in ((False, False), (True, False), (False, True)):
            print(case.line, x_signs, y_signs, flush=True)
            operator_problems.ConvProblem(case, x_signs, y_signs).run_cuda(library)
    for token in linear():
        for x_signs, y_signs in ((True, False), (False, True)):
            print(token.id, x_signs, y_signs, flush=True)
            operator_problems.SignsProblem(token, x_signs, y_signs).run_cuda(library)
        print(token.id, "binarize", flush=True)
        x = np.ones((token.tokens, token.cols), np.float32)
        problem = test_cuda_binarize.Binarization(
            x, token.x_dtype, test_cuda_binarize.TENSOR, x[0], token.x_dtype
        )
        problem.run(library)


if __name__ == "__main__":
    main(sys.argv[1])
