"""Integer activations: the same bits whatever the batch, the thread count and the instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from kernel_cases import ACTIVATIONS, FORMATS, Case, Problem
from kernel_library import FLOAT, Library

# Large enough for three threads to get work (see csrc/cpu/parallel.cpp).
KERNELS = [
    Case(fmt, 2, 331, 1543, group_size, activation, 19, bias_dtype=0)
    for fmt in FORMATS
    for activation in ACTIVATIONS
    if activation != FLOAT
    for group_size in (0, 136)
]
kernels = pytest.mark.parametrize("case", KERNELS, ids=lambda case: case.id)


def bits(y: np.ndarray) -> np.ndarray:
    return y.view(np.uint32)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@kernels
def test_batch_size(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    whole = problem.run(library)
    for begin, end in [(0, 1), (18, 19), (3, 5), (4, 9), (2, 18)]:
        part = problem.run(library, problem.x[begin:end])
        np.testing.assert_array_equal(bits(part), bits(whole[begin:end]))


@kernels
@pytest.mark.usefixtures("restore_threads")
def test_thread_count(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    torch.set_num_threads(1)
    assert library.c.bitimpl_threads() == 1
    alone = problem.run(library)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert library.c.bitimpl_threads() == threads
        np.testing.assert_array_equal(bits(problem.run(library)), bits(alone))


@kernels
def test_instruction_sets_agree(library: Library, case: Case) -> None:
    problem = Problem(case)
    results = {}
    for name in library.supported():
        library.select(name)
        results[name] = problem.run(library)
    library.select(None)
    for y in results.values():
        np.testing.assert_array_equal(bits(y), bits(results["portable"]))
