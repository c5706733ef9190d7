"""bitimpl_cuda_binarize: signs of floats as bits, and their scales, against numpy."""

from __future__ import annotations

from ctypes import POINTER, Structure, byref, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np
import pytest
from cuda_library import CudaLibrary
from descriptors import SIGNS
from kernel_cases import DTYPES, with_row_stride
from kernel_library import BF16, F16, F32, INVALID_ARGUMENT, OK, Guarded, Matrix
from kernel_reference import from_dtype, to_dtype

GIVEN, TOKEN, TENSOR = 0, 1, 2


class BinarizeCall(Structure):
    """``bitimpl_cuda_binarize_call``."""

    _fields_ = [
        ("x", Matrix), ("bias", c_void_p), ("bias_dtype", c_int32), ("rule", c_int32), ("given", c_void_p),
        ("signs", Matrix), ("scale", c_void_p), ("workspace", c_void_p), ("workspace_bytes", c_int64),
    ]  # fmt: skip


class Binarization:
    """A call and its memory: NaN around x, garbage in every output, workspace and gap."""

    def __init__(
        self, x: np.ndarray, dtype: int, rule: int, bias: np.ndarray | None = None, bias_dtype: int = F32,
        given: float | None = None, padding: int = 0, offset: int = 0,
    ) -> None:  # fmt: skip
        self.rows, self.cols = x.shape
        self.x = with_row_stride(to_dtype(x, dtype), self.cols + padding)
        self.row_bytes = -(-self.cols // 8) + padding
        self.signs = Guarded(max(0, self.rows - 1) * self.row_bytes + -(-self.cols // 8), offset, fill=0x7B)
        self.scale = Guarded(4 * self.rows, fill=0x7B)
        self.bias = None if bias is None else Guarded.of(to_dtype(bias, bias_dtype))
        self.given = None if given is None else Guarded.of(np.array([given], np.float32))
        self.call = BinarizeCall(
            Matrix(self.x.pointer, dtype, 0, self.rows, self.cols, self.cols + padding),
            None if self.bias is None else self.bias.pointer, bias_dtype, rule,
            None if self.given is None else self.given.pointer,
            Matrix(self.signs.pointer, SIGNS, 0, self.rows, self.cols, 8 * self.row_bytes),
            self.scale.pointer, None, 0,
        )  # fmt: skip

    def run(self, cuda: CudaLibrary) -> tuple[np.ndarray, np.ndarray]:
        """Signs as bool [rows, cols] and scales."""
        size = workspace_bytes(cuda, self.rows, self.call.rule)
        workspace = Guarded(size, offset=1, fill=0xFF)
        self.call.workspace, self.call.workspace_bytes = workspace.pointer, size
        status = cuda.cuda.bitimpl_cuda_binarize(byref(self.call), 0, None)
        assert status == OK, cuda.error()
        for name, buffer in (("signs", self.signs), ("scale", self.scale), ("workspace", workspace)):
            buffer.check(name)
        used = -(-self.cols // 8)
        signs = np.zeros((self.rows, used), np.uint8)
        for row in range(self.rows):
            begin = row * self.row_bytes
            signs[row] = self.signs.bytes[begin : begin + used]
            gap = self.signs.bytes[begin + used : begin + self.row_bytes]
            assert (gap == 0x7B).all(), "bytes between rows of signs were written"
        bits = np.unpackbits(signs, axis=1, bitorder="little")
        assert not bits[:, self.cols :].any(), "bits beyond the columns are set"
        return bits[:, : self.cols].astype(bool), self.scale.view(np.float32).copy()


def workspace_bytes(cuda: CudaLibrary, rows: int, rule: int) -> int:
    query: Any = cuda.cuda.bitimpl_cuda_binarize_workspace
    query.argtypes, query.restype = [c_int64, c_int32], c_int64
    return int(query(rows, rule))


def mean(x: np.ndarray, axis: int | None) -> np.ndarray:
    return np.abs(x.astype(np.float64)).mean(axis=axis).astype(np.float32)


def dyadic(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Sums of them are the same in every order."""
    x = (rng.integers(-127, 128, shape) / 32).astype(np.float32)
    x[(x == 0) & (rng.random(shape) < 0.5)] = -0.0
    return x


#: One column; one less and more than a byte, a word, a load, a chunk; several warps, uneven shares of them.
COLUMNS = [1, 3, 7, 8, 31, 32, 33, 63, 65, 129, 1000, 1023, 1024, 1025, 2049, 4096, 9001]


@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
@pytest.mark.parametrize("cols", COLUMNS)
def test_signs_and_means(cuda: CudaLibrary, dtype: int, cols: int) -> None:
    rng = np.random.default_rng(cols)
    for rows, padding, offset in ((1, 0, 0), (3, 0, 1), (11, 5, 2)):
        x = dyadic(rng, (rows, cols))
        bits, scale = Binarization(x, dtype, TOKEN, padding=padding, offset=offset).run(cuda)
        np.testing.assert_array_equal(bits, x >= 0)
        np.testing.assert_array_equal(scale, mean(x, 1))


@pytest.mark.parametrize(
    "spread", [2.0**-149, 2.0**-127, 2.0**-24, 1.0, 3.0e38], ids=["subnormal", "tiny", "small", "one", "huge"]
)
@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
def test_means_of_every_magnitude(cuda: CudaLibrary, dtype: int, spread: float) -> None:
    rng = np.random.default_rng(1)
    with np.errstate(over="ignore"):
        x = (rng.integers(-9, 10, (5, 300)) * spread / (9 if spread > 1 else 1)).astype(np.float32)
    if dtype == F16:
        x = np.clip(x, -65504, 65504)
    x = from_dtype(to_dtype(x, dtype), dtype)
    bits, scale = Binarization(x, dtype, TOKEN).run(cuda)
    np.testing.assert_array_equal(bits, x >= 0)
    np.testing.assert_array_equal(scale, mean(x, 1))


def test_means_are_those_of_float64(cuda: CudaLibrary) -> None:
    """A sum in float32 would be off by far more than the one place that another order of summing may be."""
    x = np.random.default_rng(2).standard_normal((4, 50_000)).astype(np.float32)
    _, scale = Binarization(x, F32, TOKEN).run(cuda)
    expected = mean(x, 1)
    assert (np.abs(scale.view(np.int32) - expected.view(np.int32)) <= 1).all()
    _, alone = Binarization(x[2:3], F32, TOKEN).run(cuda)
    np.testing.assert_array_equal(alone, scale[2:3], err_msg="the number of rows changed a mean")


@pytest.mark.parametrize("bias_dtype", list(DTYPES), ids=list(DTYPES.values()))
@pytest.mark.parametrize(("dtype", "cols"), [(F32, 70), (F16, 1030), (BF16, 257)])
def test_bias_is_added_before_the_sign(cuda: CudaLibrary, dtype: int, cols: int, bias_dtype: int) -> None:
    rng = np.random.default_rng(cols)
    x, bias = dyadic(rng, (4, cols)), dyadic(rng, (cols,))
    bias[::5] = -x[0, ::5]  # sums of exactly 0
    bits, scale = Binarization(x, dtype, TOKEN, bias, bias_dtype).run(cuda)
    np.testing.assert_array_equal(bits, x + bias >= 0)
    assert (bits != (x >= 0)).any()
    np.testing.assert_array_equal(scale, mean(x, 1))


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_scales_of_each_rule(cuda: CudaLibrary, rows: int) -> None:
    x = dyadic(np.random.default_rng(rows), (rows, 40))
    _, scale = Binarization(x, F32, TENSOR).run(cuda)
    np.testing.assert_array_equal(scale, np.broadcast_to(mean(x, None), rows))
    _, scale = Binarization(x, F32, GIVEN).run(cuda)
    np.testing.assert_array_equal(scale, np.ones(rows, np.float32))
    _, scale = Binarization(x, F32, GIVEN, given=0.375).run(cuda)
    np.testing.assert_array_equal(scale, np.full(rows, 0.375, np.float32))


@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", list(DTYPES), ids=list(DTYPES.values()))
def test_what_is_not_finite_has_no_sign(cuda: CudaLibrary, dtype: int, poison: float) -> None:
    x = dyadic(np.random.default_rng(5), (6, 1100))
    others = [0, 1, 3, 4, 5]
    for at in (0, 517, 1099):
        bad = x.copy()
        bad[2, at] = poison
        for rule, given in ((TOKEN, None), (GIVEN, None), (GIVEN, 0.5)):
            clean, expected = Binarization(x, dtype, rule, given=given).run(cuda)
            bits, scale = Binarization(bad, dtype, rule, given=given).run(cuda)
            assert np.isnan(scale[2])
            np.testing.assert_array_equal(scale[others], expected[others])
            np.testing.assert_array_equal(bits[others], clean[others])
        assert np.isnan(Binarization(bad, dtype, TENSOR).run(cuda)[1]).all()


def test_a_bias_that_is_not_finite_leaves_no_sign(cuda: CudaLibrary) -> None:
    bias = np.zeros(40, np.float32)
    bias[39] = np.inf
    x = dyadic(np.random.default_rng(6), (3, 40))
    assert np.isnan(Binarization(x, F32, GIVEN, bias).run(cuda)[1]).all()


def test_no_rows(cuda: CudaLibrary) -> None:
    call = BinarizeCall(Matrix(None, F32, 0, 0, 8, 8), None, 0, TENSOR, None, Matrix(None, SIGNS, 0, 0, 8, 8))
    assert cuda.cuda.bitimpl_cuda_binarize(byref(call), 0, None) == OK
    assert workspace_bytes(cuda, 0, TENSOR) == 0


def change(call: BinarizeCall, path: str, value: object) -> None:
    *outer, name = path.split(".")
    target: Any = call
    for part in outer:
        target = getattr(target, part)
    setattr(target, name, value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rule", 3, "rule is 3: choose 0 (given)"),
        ("x.data", None, "x lies at (nil)"),
        ("x.dtype", SIGNS, "x has dtype 3"),
        ("x.row_stride", 7, "x has row_stride 7"),
        ("signs.dtype", F32, "signs has dtype 0: use 3"),
        ("signs.data", None, "signs lies at (nil)"),
        ("signs.row_stride", 12, "signs has row_stride 12"),
        ("signs.cols", 9, "signs is [4, 9] for x [4, 10]"),
        ("bias_dtype", 9, "bias_dtype is 9"),
        ("scale", None, "scale is null: pass 16 bytes"),
        ("given", 2, "align them to their 4 bytes"),
        ("workspace_bytes", 8, "bitimpl_cuda_binarize_workspace"),
    ],
)
def test_wrong_arguments(cuda: CudaLibrary, path: str, value: object, message: str) -> None:
    problem = Binarization(
        dyadic(np.random.default_rng(0), (4, 10)), F32, TENSOR, np.zeros(10, np.float32), given=1.0
    )
    workspace = Guarded(4096)
    problem.call.workspace, problem.call.workspace_bytes = workspace.pointer, 4096
    change(problem.call, path, value)
    assert cuda.cuda.bitimpl_cuda_binarize(byref(problem.call), 0, None) == INVALID_ARGUMENT
    assert message in cuda.error()
    for buffer in (problem.signs, problem.scale):
        assert (buffer.bytes == 0x7B).all(), "a refused call wrote"


def test_null_call_and_wrong_device(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_binarize(POINTER(BinarizeCall)(), 0, None) == INVALID_ARGUMENT
    assert "call is null" in cuda.error()
    problem = Binarization(np.ones((2, 3), np.float32), F32, TOKEN)
    assert cuda.cuda.bitimpl_cuda_binarize(byref(problem.call), 2, None) == INVALID_ARGUMENT
    assert "device 2" in cuda.error()
    assert workspace_bytes(cuda, -1, TOKEN) == -1
    assert "rows is -1" in cuda.error()
    assert workspace_bytes(cuda, 1, 7) == -1
