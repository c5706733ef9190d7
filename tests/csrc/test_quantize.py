"""bitimpl_quantize_int8 against the rule of impl.h, bit for bit."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from kernel_cases import DTYPES, with_row_stride
from kernel_library import INT8, OK, Guarded, Library, Matrix
from kernel_reference import F32, from_dtype, quantize, to_dtype


def run(library: Library, x: np.ndarray, dtype: int = F32, padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows, cols = x.shape
    stored = with_row_stride(to_dtype(x, dtype), cols + padding)
    matrix = Matrix(stored.pointer, dtype, 0, rows, cols, cols + padding)
    q, scale = Guarded(rows * cols), Guarded(rows * 4, fill=0x7B)
    status = library.c.bitimpl_quantize_int8(byref(matrix), q.pointer, scale.pointer)
    assert status == OK, library.error()
    q.check("q")
    scale.check("scale")
    return q.view(np.int8).reshape(rows, cols), scale.view(np.float32)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
@pytest.mark.parametrize(
    ("rows", "cols", "padding"), [(1, 1, 0), (3, 7, 2), (5, 64, 0), (2, 1031, 9), (9, 4096, 0)]
)
def test_matches_the_rule(library: Library, isa: str, dtype: int, rows: int, cols: int, padding: int) -> None:
    rng = np.random.default_rng(rows * cols)
    x = rng.standard_normal((rows, cols)).astype(np.float32) * np.float32(10.0) ** rng.integers(
        -4, 4, (rows, 1)
    )
    x = from_dtype(to_dtype(x, dtype), dtype)
    q, scale = run(library, x, dtype, padding)
    expected, expected_scale = quantize(x, INT8)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, expected_scale)


def test_halves_round_to_even(library: Library, isa: str) -> None:
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, -0.0]], dtype=np.float32)
    q, scale = run(library, x)
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, 0]]
    assert scale.tolist() == [1.0]


def test_tiny_zero_and_huge_rows(library: Library, isa: str) -> None:
    x = np.zeros((5, 33), dtype=np.float32)
    x[1] = 1e-7
    x[2] = np.float32(1e-5)
    x[3, 4] = -np.finfo(np.float32).max
    x[4] = np.float32(1e-45)  # subnormal
    q, scale = run(library, x)
    expected, expected_scale = quantize(x, INT8)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, expected_scale)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 40, 99])
def test_what_is_not_finite_stays_in_its_row(library: Library, isa: str, poison: float, at: int) -> None:
    x = np.random.default_rng(3).standard_normal((4, 100)).astype(np.float32)
    clean_q, clean_scale = run(library, x)
    x[2, at] = poison
    q, scale = run(library, x)
    assert np.isnan(scale[2])
    others = [0, 1, 3]
    np.testing.assert_array_equal(q[others], clean_q[others])
    np.testing.assert_array_equal(scale[others], clean_scale[others])
