"""Every operator, format, activation and instruction set against the reference.

Integer activations: equal bits, for every shape of the table. Float activations: within float32
rounding of the sum.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernel_cases import (
    ACTIVATIONS,
    CASES,
    EXTREME_CASES,
    FORMATS,
    ZERO_CASES,
    Case,
    Problem,
    quantised,
    with_tokens,
)
from kernel_checks import check_float, expected_of, same_bits
from kernel_library import BINARY, F32, FLOAT, SIGN, TERNARY, Library
from kernel_reference import linear


@pytest.mark.parametrize("case", quantised(CASES), ids=lambda case: case.id)
def test_integer_activations_are_exact(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    same_bits(problem.run(library), expected_of(problem))


@pytest.mark.parametrize("case", EXTREME_CASES, ids=lambda case: case.id)
def test_longest_sums_do_not_overflow(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    same_bits(problem.run(library), expected_of(problem))


@pytest.mark.parametrize("case", ZERO_CASES, ids=lambda case: case.id)
def test_no_sum_is_minus_zero(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    same_bits(problem.run(library), expected_of(problem))


@pytest.mark.parametrize("case", [c for c in CASES if c.activation == FLOAT], ids=lambda case: case.id)
def test_float_activations(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    check_float(problem, problem.run(library))


@pytest.mark.parametrize("case", [c for c in CASES if c.rows == 65], ids=lambda case: case.id)
def test_empty_batch(library: Library, isa: str, case: Case) -> None:
    problem = Problem(with_tokens(case, 0))
    assert problem.run(library).shape == (0, case.rows)


def _one_case_per_kernel() -> list[Case]:
    return [
        Case(fmt, 2, 37, 1031, group_size, activation, 6, bias_dtype=F32, x_padding=2)
        for fmt in FORMATS
        for activation in ACTIVATIONS
        for group_size in (0, 72)
    ]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", _one_case_per_kernel(), ids=lambda case: case.id)
def test_what_is_not_finite_stays_in_its_row(library: Library, isa: str, case: Case, poison: float) -> None:
    problem = Problem(case)
    clean = problem.run(library)
    x = problem.x.copy()
    x[1, 0] = x[4, -1] = poison
    y = problem.run(library, x)
    if case.activation == FLOAT:
        assert not np.isfinite(y[[1, 4]]).any()
    else:
        assert np.isnan(y[[1, 4]]).all()
    same_bits(y[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])


@pytest.mark.parametrize("case", _one_case_per_kernel(), ids=lambda case: case.id)
def test_all_zero_activations_give_the_bias(library: Library, isa: str, case: Case) -> None:
    problem = Problem(case)
    assert problem.bias is not None
    x = np.zeros_like(problem.x)
    x[::2] = -0.0
    y = problem.run(library, x)
    np.testing.assert_array_equal(y, np.broadcast_to(problem.bias, y.shape))


def test_negative_zero_counts_as_plus_one(library: Library, isa: str) -> None:
    problem = Problem(Case(BINARY, 1, 9, 131, 0, SIGN, 2))
    x = np.full((2, 131), 1.0, dtype=np.float32)
    x[0, 7] = 0.0
    x[1, 7] = -0.0
    y = problem.run(library, x)
    np.testing.assert_array_equal(y[0], y[1])
    case = problem.case
    same_bits(y, linear(x, problem.codes, problem.scales, 0, case.activation, None))


@pytest.mark.parametrize("case", _one_case_per_kernel(), ids=lambda case: case.id)
def test_last_kernel_says_what_served(library: Library, isa: str, case: Case) -> None:
    Problem(case).run(library)
    operator, fmt, activation, form, name = library.last_kernel().split("/")
    assert operator == ("binary_linear" if case.format == BINARY else "ternary_linear")
    assert (fmt, activation, name) == (FORMATS[case.format], ACTIVATIONS[case.activation], isa)
    assert form == "gemm" or (form == "planes" and case.activation == TERNARY and case.group_size == 0)
