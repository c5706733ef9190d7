"""bitimpl_cuda_quantize_int8 against the rule of impl.h, bit for bit, and the activations of every kernel."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import DTYPES, with_row_stride
from kernel_library import F16, F32, INT8, INVALID_ARGUMENT, OK, Guarded, Matrix
from kernel_reference import from_dtype, quantize, to_dtype


def run(
    cuda: CudaLibrary, x: np.ndarray, dtype: int = F32, padding: int = 0, offset: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """offset: bytes between q and the 64-byte boundary before it."""
    rows, cols = x.shape
    stored = with_row_stride(to_dtype(x, dtype), cols + padding)
    matrix = Matrix(stored.pointer, dtype, 0, rows, cols, cols + padding)
    q, scale = Guarded(rows * cols, offset), Guarded(rows * 4, fill=0x7B)
    status = cuda.cuda.bitimpl_cuda_quantize_int8(byref(matrix), q.pointer, scale.pointer, 0, None)
    assert status == OK, cuda.error()
    q.check("q")
    scale.check("scale")
    return q.view(np.int8).reshape(rows, cols), scale.view(np.float32)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
@pytest.mark.parametrize(
    ("rows", "cols", "padding", "offset"),
    [(1, 1, 0, 0), (3, 7, 2, 1), (5, 64, 0, 0), (2, 1031, 9, 3), (9, 4096, 0, 2), (3, 9000, 4, 4)],
)
def test_matches_the_rule(
    cuda: CudaLibrary, dtype: int, rows: int, cols: int, padding: int, offset: int
) -> None:
    rng = np.random.default_rng(rows * cols)
    x = rng.standard_normal((rows, cols)).astype(np.float32)
    x *= np.float32(10.0) ** rng.integers(-4, 4, (rows, 1))
    x = from_dtype(to_dtype(x, dtype), dtype)
    q, scale = run(cuda, x, dtype, padding, offset)
    expected, expected_scale = quantize(x, INT8)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, expected_scale)


def test_halves_round_to_even(cuda: CudaLibrary) -> None:
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, -0.0]], dtype=np.float32)
    q, scale = run(cuda, x)
    assert q.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, 0]]
    assert scale.tolist() == [1.0]


def test_tiny_zero_and_huge_rows(cuda: CudaLibrary) -> None:
    x = np.zeros((5, 33), dtype=np.float32)
    x[1] = 1e-7
    x[2] = np.float32(1e-5)
    x[3, 4] = -np.finfo(np.float32).max
    x[4] = np.float32(1e-45)  # subnormal
    q, scale = run(cuda, x)
    expected, expected_scale = quantize(x, INT8)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, expected_scale)


def test_every_magnitude_of_float16(cuda: CudaLibrary) -> None:
    bits = np.arange(0x7C00, dtype=np.uint16)
    x = from_dtype(bits, F16).reshape(31, 1024)
    q, scale = run(cuda, x, F16)
    expected, expected_scale = quantize(x, INT8)
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scale, expected_scale)


@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 40, 99])
def test_what_is_not_finite_stays_in_its_row(cuda: CudaLibrary, dtype: int, poison: float, at: int) -> None:
    x = np.random.default_rng(3).standard_normal((4, 100)).astype(np.float32)
    clean_q, clean_scale = run(cuda, x, dtype)
    x[2, at] = poison
    q, scale = run(cuda, x, dtype)
    assert np.isnan(scale[2])
    others = [0, 1, 3]
    np.testing.assert_array_equal(q[others], clean_q[others])
    np.testing.assert_array_equal(scale[others], clean_scale[others])


def test_no_rows(cuda: CudaLibrary) -> None:
    matrix = Matrix(None, F32, 0, 0, 8, 8)
    assert cuda.cuda.bitimpl_cuda_quantize_int8(byref(matrix), None, None, 0, None) == OK


@pytest.mark.parametrize(
    ("null", "message"),
    [("x", "x is null"), ("q", "q is null: pass 32 bytes"), ("scale", "scale is null: pass 16")],
)
def test_null_arguments(cuda: CudaLibrary, null: str, message: str) -> None:
    x, q, scale = Guarded(4 * 8 * 4), Guarded(4 * 8), Guarded(4 * 4)
    matrix = Matrix(x.pointer, F32, 0, 4, 8, 8)
    arguments = {"x": byref(matrix), "q": q.pointer, "scale": scale.pointer} | {null: None}
    assert cuda.cuda.bitimpl_cuda_quantize_int8(*arguments.values(), 0, None) == INVALID_ARGUMENT
    assert message in cuda.error()
    for buffer in (q, scale):
        assert (buffer.bytes == 0xA5).all(), "a refused call wrote"


def test_misplaced_arguments(cuda: CudaLibrary) -> None:
    x, q, scale = Guarded(4 * 8 * 4), Guarded(4 * 8), Guarded(4 * 4 + 1)
    matrix = Matrix(x.pointer, F32, 0, 4, 8, 8)
    call = cuda.cuda.bitimpl_cuda_quantize_int8
    assert call(byref(matrix), q.pointer, scale.pointer + 1, 0, None) == INVALID_ARGUMENT
    assert "align it to its 4 bytes" in cuda.error()
    assert call(byref(matrix), q.pointer, scale.pointer, 2, None) != OK
    assert "device 2: there are 2, counted from 0" in cuda.error()
    matrix.row_stride = 7
    assert call(byref(matrix), q.pointer, scale.pointer, 0, None) == INVALID_ARGUMENT
    assert "x has row_stride 7 for 8 columns" in cuda.error()
