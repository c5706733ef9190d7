"""Whether an operator's answer is right: shared by the tests of this machine and of emulated ones."""

from __future__ import annotations

import numpy as np
from kernel_cases import Problem
from kernel_library import FLOAT
from kernel_reference import float_linear, from_dtype, linear, to_dtype

#: Rounding of the output type, relative: half a unit in the last place.
OUTPUT_ROUNDING = {0: 2.0**-24, 1: 2.0**-11, 2: 2.0**-8}


def same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "") -> None:
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected), err_msg=what)
    clean = ~np.isnan(expected)
    np.testing.assert_array_equal(
        actual[clean].view(np.uint32), expected[clean].view(np.uint32), err_msg=what
    )


def expected_of(problem: Problem) -> np.ndarray:
    """Integer activations: y as it is stored, back in float32."""
    case = problem.case
    y = linear(problem.x, problem.codes, problem.scales, case.group_size, case.activation, problem.bias)
    return from_dtype(to_dtype(y, case.y_dtype), case.y_dtype)


def check_float(problem: Problem, y: np.ndarray) -> None:
    """Float activations: within float32 rounding of the sum."""
    case = problem.case
    expected, size = float_linear(problem.x, problem.codes, problem.scales, case.group_size, problem.bias)
    # Sums in any order: a few roundings of the whole, growing as a random walk over the columns.
    bound = (
        size * 2.0**-24 * (8 + 2 * case.cols**0.5) + np.abs(expected) * OUTPUT_ROUNDING[case.y_dtype] * 1.01
    )
    bound += 2.0**-24  # below the normal range of float16
    assert (np.abs(y - expected) <= bound).all(), f"{case.id}: {np.abs(y - expected).max()}"


def check_grouped(problem: Problem, y: np.ndarray) -> None:
    """Integer activations whose products with several scales are added in any order."""
    case = problem.case
    expected = expected_of(problem)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected), err_msg=case.id)
    groups = case.components * -(-case.cols // case.group_size)
    size = linear(
        np.abs(problem.x), np.abs(problem.codes), np.abs(problem.scales), case.group_size,
        case.activation, None if problem.bias is None else np.abs(problem.bias),
    )  # fmt: skip
    bound = size * 2.0**-24 * groups + np.abs(expected) * OUTPUT_ROUNDING[case.y_dtype] * 2.02 + 2.0**-24
    assert (np.abs(y - expected) <= bound).all(), f"{case.id}: {np.abs(y - expected).max()}"


def check(problem: Problem, y: np.ndarray) -> None:
    """``y``: float32 [tokens, rows] as stored in the case's output type."""
    if problem.case.activation == FLOAT:
        check_float(problem, y)
    else:
        same_bits(y, expected_of(problem), problem.case.id)
