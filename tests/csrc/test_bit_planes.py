"""Sign and ternary activations: as planes of bits where the batch is large enough, else as bytes.

The tables of kernel_cases.py hold them as well; here are the batches around which the forms change, the
groups that bits can and cannot start with, and the name of what served.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from kernel_cases import FORMATS, Case, Problem
from kernel_checks import expected_of, same_bits
from kernel_library import BASE3, BF16, BINARY, F16, F32, SIGN, TERNARY, TWO_BIT, Library
from kernel_reference import quantize

PRODUCTS = [(fmt, act) for fmt in FORMATS for act in (SIGN, TERNARY) if (fmt, act) != (BINARY, SIGN)]

#: Tokens from which bits serve; absent where they do not.
LEAST_TOKENS = {
    "avx512": {
        (BINARY, TERNARY): 5,
        (TWO_BIT, SIGN): 8,
        (BASE3, SIGN): 8,
        (TWO_BIT, TERNARY): 12,
        (BASE3, TERNARY): 12,
    },
    "avx2": {(BINARY, TERNARY): 5, (TWO_BIT, SIGN): 8, (BASE3, SIGN): 8},
    "portable": {},
}
LEAST_TOKENS["neon"] = LEAST_TOKENS["neon_i8mm"] = LEAST_TOKENS["avx2"]


def _edges() -> list[Case]:
    """Every count of tokens around an inner product's, with rows and columns that end everywhere."""
    sizes = itertools.cycle([(1, 131, 65), (2, 79, 127), (1, 16, 33), (1, 81, 1), (3, 5, 96), (1, 100, 1031)])
    types = itertools.cycle([(F32, F32, -1), (BF16, F16, F16), (F16, BF16, F32)])
    cases = []
    for (fmt, activation), tokens in itertools.product(PRODUCTS, [*range(4, 38), 47, 48, 49, 96, 97]):
        x_dtype, y_dtype, bias_dtype = next(types)
        cases.append(Case(fmt, *next(sizes), 0, activation, tokens, x_dtype, y_dtype, 3, 5, bias_dtype))
    return cases


def _groups() -> list[Case]:
    """Groups of whole words of the activations, and others."""
    return [
        Case(fmt, components, rows, cols, group_size, activation, 17, bias_dtype=F32)
        for fmt, activation in PRODUCTS
        for components, rows, cols, group_size in [
            (1, 33, 193, 32), (2, 85, 520, 64), (1, 21, 1000, 96), (3, 17, 4096, 1024), (2, 64, 300, 40),
            (1, 80, 100, 8),
        ]
    ]  # fmt: skip


def _long() -> list[Case]:
    """More words than a byte can count the bits of, all +1 and mixed."""
    return [
        Case(fmt, 1, 20, cols, 0, activation, 13, extreme=extreme)
        for fmt, activation in PRODUCTS
        for cols, extreme in [(31 * 32, 1), (31 * 32 + 1, 1), (62 * 32 - 5, 0), (8191, 1), (70001, 0)]
    ]


@pytest.mark.parametrize("case", [*_edges(), *_groups(), *_long()], ids=lambda case: case.id)
def test_exact_and_served_as_said(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    same_bits(problem.run(library), expected_of(problem))
    least = LEAST_TOKENS[isa].get((case.format, case.activation))
    words = case.group_size % 32 == 0 or case.group_size >= case.cols
    bits = least is not None and case.tokens >= least and words
    form = "planes" if bits else "gemv" if case.tokens <= 4 else "gemm"
    assert library.last_kernel().split("/")[3:] == [form, isa]


@pytest.mark.parametrize(("fmt", "activation"), PRODUCTS)
def test_either_form_gives_the_same_bits(library: Library, fmt: int, activation: int) -> None:
    """A row's result does not hang on the form that its batch is served in, whatever its sums are."""
    case = Case(fmt, 1, 40, 3001, 0, activation, 40)
    problem = Problem(case)
    x = np.random.default_rng(0).standard_normal((40, 3001)).astype(np.float32)
    results = {}
    for name in library.supported():
        library.select(name)
        results[name] = problem.run(library, x)
        same_bits(
            np.concatenate([problem.run(library, x[i : i + 1]) for i in range(40)]), results[name], name
        )
    library.select(None)
    for name, y in results.items():
        same_bits(y, results["portable"], name)


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("fmt", list(FORMATS))
def test_ternary_thresholds(library: Library, isa: str, fmt: int, tokens: int) -> None:
    """On the threshold, all alike, all zeros, and values so small that the threshold rounds to zero."""
    problem = Problem(Case(fmt, 1, 9, 4, 0, TERNARY, tokens))
    tiny = np.float32(2.0**-149)
    for row in (
        [3, -3, 3.5, -6.5],
        [5, 5, -5, 5],
        [0, -0.0, 0, 0],
        [tiny, 0, 0, -0.0],
        [3e37, -3e37, 1e37, 1],
    ):
        x = np.tile(np.array([row], np.float32), (tokens, 1))
        problem.x = x
        same_bits(problem.run(library), expected_of(problem))
    assert quantize(np.array([[3, -3, 3.5, -6.5]], np.float32), TERNARY)[0].tolist() == [[0, 0, 1, -1]]
    assert quantize(np.array([[tiny, 0, 0, 0]], np.float32), TERNARY)[1].tolist() == [tiny]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("fmt", "activation"), PRODUCTS)
def test_what_is_not_finite_stays_in_its_row(
    library: Library, isa: str, fmt: int, activation: int, poison: float
) -> None:
    problem = Problem(Case(fmt, 2, 37, 1031, 0, activation, 16, bias_dtype=F32))
    clean = problem.run(library)
    x = problem.x.copy()
    x[1, 0] = x[4, -1] = poison
    y = problem.run(library, x)
    assert np.isnan(y[[1, 4]]).all()
    others = [i for i in range(16) if i not in (1, 4)]
    same_bits(y[others], clean[others])
