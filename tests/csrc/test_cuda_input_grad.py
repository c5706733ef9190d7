"""The int8 gradient towards the input, as the emulator runs it, against numpy: the same bits."""

from __future__ import annotations

from ctypes import POINTER, byref, c_int32, c_int64, c_void_p

import numpy as np
import pytest
from cuda_library import CudaLibrary
from kernel_cases import Layout, weight_of
from kernel_library import (
    BASE3,
    BF16,
    BINARY,
    F16,
    F32,
    INVALID_ARGUMENT,
    OK,
    TWO_BIT,
    Guarded,
    Matrix,
    Weight,
)
from kernel_reference import from_dtype, pack, segments, to_dtype

#: (components, rows, cols, group_size, tokens): tails of row groups, row blocks, chunks (32 and 160 rows),
#: steps and tiles of 32 tokens; both splits of the rows; more steps than a block has warps.
SHAPES = [
    (1, 1, 1, 0, 1),
    (2, 5, 9, 8, 3),
    (1, 16, 64, 0, 32),
    (1, 33, 65, 0, 33),
    (3, 47, 127, 64, 7),
    (1, 161, 300, 0, 5),
    (2, 200, 72, 24, 35),
    (1, 330, 40, 0, 2),
    (1, 64, 513, 0, 8),
]
FORMATS = pytest.mark.parametrize("fmt", [BINARY, TWO_BIT, BASE3], ids=["binary", "two_bit", "base3"])


@pytest.fixture(params=[1, 2], ids=["order1", "order2"])
def emulated(request: pytest.FixtureRequest, cuda: CudaLibrary) -> CudaLibrary:
    c = cuda.cuda
    c.bitimpl_cuda_input_grad_workspace.restype = c_int64
    c.bitimpl_cuda_input_grad_workspace.argtypes = [POINTER(Weight), c_int64]
    c.bitimpl_cuda_input_grad.argtypes = [
        POINTER(Weight), POINTER(Matrix), POINTER(Matrix), c_void_p, c_int64, c_int32, c_void_p,
    ]  # fmt: skip
    cuda.order(request.param)
    return cuda


def expected_of(dy: np.ndarray, codes: np.ndarray, scales: np.ndarray, group_size: int) -> np.ndarray:
    """float32 [M, K], from the text of impl_cuda.h."""
    components, _, cols = codes.shape
    dx = np.zeros((dy.shape[0], cols), np.float32)
    for g, (begin, end) in enumerate(segments(cols, group_size)):
        for c in range(components):
            values = dy * scales[c, :, g].astype(np.float32)[None, :]
            finite = np.isfinite(values).all(axis=1)
            values = np.where(finite[:, None], values, np.float32(0))
            amax = np.maximum(np.abs(values).max(axis=1), np.float32(1e-36))
            q = np.rint(values * (np.float32(127) / amax)[:, None]).astype(np.float64)
            dot = (q @ codes[c, :, begin:end].astype(np.float64)).astype(np.float32)
            scale = np.where(finite, amax / np.float32(127), np.float32(np.nan))
            dx[:, begin:end] += scale[:, None] * dot
    return dx


def gradient(
    library: CudaLibrary, layout: Layout, stored_scales: np.ndarray, scale_dtype: int, stored: np.ndarray,
    dy_dtype: int, dx_dtype: int, padding: int = 0, codes_offset: int = 0, codes: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """float32 [M, K]."""
    tokens, rows = stored.shape
    codes = layout.codes() if codes is None else codes
    packed = Guarded.of(pack(codes, layout.format, layout.group_size), codes_offset)
    scales = Guarded.of(stored_scales)
    weight = weight_of(layout, packed, scales, scale_dtype, stored_scales.shape)
    wide = np.zeros((tokens, rows + padding), stored.dtype)
    wide[:, :rows] = stored
    given = Guarded.of(wide)
    dy = Matrix(given.pointer, dy_dtype, 0, tokens, rows, rows + padding)
    kind = np.dtype(np.float32 if dx_dtype == F32 else np.uint16)
    stride = layout.cols + padding
    out = Guarded(tokens * stride * kind.itemsize, fill=0xFF)
    dx = Matrix(out.pointer, dx_dtype, 0, tokens, layout.cols, stride)
    size = library.cuda.bitimpl_cuda_input_grad_workspace(byref(weight), tokens)
    workspace = Guarded(size, offset=3)
    status = library.cuda.bitimpl_cuda_input_grad(
        byref(weight), byref(dy), byref(dx), workspace.pointer, size, 0, None
    )
    assert status == OK, library.error()
    for name, buffer in [("codes", packed), ("dy", given), ("dx", out), ("workspace", workspace)]:
        buffer.check(name)
    values = out.view(kind).reshape(tokens, stride)
    assert (values[:, layout.cols :].view(np.uint8) == 0xFF).all(), "the padding between rows was written"
    return from_dtype(np.ascontiguousarray(values[:, : layout.cols]), dx_dtype)


def check(actual: np.ndarray, expected: np.ndarray, dtype: int) -> None:
    np.testing.assert_array_equal(actual, from_dtype(to_dtype(expected, dtype), dtype))


@FORMATS
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_shape(emulated: CudaLibrary, shape: tuple[int, int, int, int, int], fmt: int) -> None:
    components, rows, cols, group_size, tokens = shape
    if fmt == BINARY:
        components = 1
    layout = Layout(fmt, components, rows, cols, group_size)
    rng = np.random.default_rng(list(shape))
    variant = rows + cols
    scale_dtype, dy_dtype, dx_dtype = (
        [F32, F16][variant % 2],
        [F32, BF16, F16][variant % 3],
        [F32, F16, BF16][rows % 3],
    )
    scale_rows = 1 if rows % 4 == 0 else rows
    groups = len(segments(cols, group_size))
    scales = to_dtype(rng.uniform(-2, 2, (components, scale_rows, groups)), scale_dtype)
    dy = to_dtype(rng.normal(0, 1e-3, (tokens, rows)).astype(np.float32), dy_dtype)
    actual = gradient(
        emulated,
        layout,
        scales,
        scale_dtype,
        dy,
        dy_dtype,
        dx_dtype,
        padding=variant % 4,
        codes_offset=variant % 2,
    )
    wide = np.broadcast_to(from_dtype(scales, scale_dtype), (components, rows, groups))
    check(actual, expected_of(from_dtype(dy, dy_dtype), layout.codes(), wide, group_size), dx_dtype)


@FORMATS
def test_a_row_that_is_not_finite_makes_its_own_row_nan(emulated: CudaLibrary, fmt: int) -> None:
    layout = Layout(fmt, 1, 40, 20, 0)
    dy = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    dy[1, 39], dy[3, 0] = np.nan, np.inf
    scales = np.ones((1, 40, 1), np.float32)
    actual = gradient(emulated, layout, scales, F32, dy, F32, F32)
    np.testing.assert_array_equal(np.isnan(actual).all(axis=1), [False, True, False, True])
    assert not np.isnan(actual[[0, 2]]).any()
    clean = [0, 2]
    check(actual[clean], expected_of(dy[clean], layout.codes(), scales, 0), F32)


def test_small_gradients_keep_their_digits_and_zeros_stay(emulated: CudaLibrary) -> None:
    layout = Layout(BASE3, 1, 12, 30, 0)
    dy = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32) * np.float32(1e-30)
    dy[1] = 0
    scales = np.ones((1, 12, 1), np.float32)
    actual = gradient(emulated, layout, scales, F32, dy, F32, F32)
    check(actual, expected_of(dy, layout.codes(), scales, 0), F32)
    assert (actual[1] == 0).all()
    exact = dy.astype(np.float64) @ layout.codes()[0].astype(np.float64)
    np.testing.assert_allclose(actual[0], exact[0], atol=12 * np.abs(dy[0]).max() / 250)


@FORMATS
def test_the_longest_sums(emulated: CudaLibrary, fmt: int) -> None:
    """All +1 and all -1 against the largest integers, many rows."""
    layout = Layout(fmt, 1, 20003, 3, 0)
    codes = np.ones((1, 20003, 3), np.int8)
    codes[0, :, 1] = -1
    dy = np.full((1, 20003), -2.5, np.float32)
    scales = np.ones((1, 1, 1), np.float32)
    actual = gradient(emulated, layout, scales, F32, dy, F32, F32, codes=codes)
    check(actual, expected_of(dy, codes, np.broadcast_to(scales, (1, 20003, 1)), 0), F32)


def test_no_tokens_no_work(emulated: CudaLibrary) -> None:
    layout = Layout(TWO_BIT, 1, 5, 9, 0)
    assert (
        gradient(
            emulated, layout, np.ones((1, 5, 1), np.float32), F32, np.zeros((0, 5), np.float32), F32, F32
        ).size
        == 0
    )


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"dy.cols": 4}, INVALID_ARGUMENT, "dy has 4 columns, the weight 5 rows: they must agree"),
        ({"dx.cols": 8}, INVALID_ARGUMENT, "dx is 2 x 8: make it 2 x 9"),
        ({"dx.rows": 1}, INVALID_ARGUMENT, "dx is 1 x 9: make it 2 x 9"),
        ({"dx.dtype": 7}, INVALID_ARGUMENT, "dx has dtype 7: use 0 (float32), 1 (float16) or 2 (bfloat16)"),
        ({"size": 10}, INVALID_ARGUMENT, "size it with bitimpl_cuda_input_grad_workspace"),
        ({"device": 2}, INVALID_ARGUMENT, "device 2: there are 2, counted from 0"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    emulated: CudaLibrary, change: dict[str, int], status: int, message: str
) -> None:
    layout = Layout(TWO_BIT, 1, 5, 9, 0)
    packed, scales = Guarded.of(pack(layout.codes(), TWO_BIT, 0)), Guarded.of(np.ones(5, np.float32))
    weight = weight_of(layout, packed, scales, F32, (1, 5, 1))
    given, out = Guarded(2 * 5 * 4), Guarded(2 * 9 * 4)
    dy, dx = Matrix(given.pointer, F32, 0, 2, 5, 5), Matrix(out.pointer, F32, 0, 2, 9, 9)
    size = emulated.cuda.bitimpl_cuda_input_grad_workspace(byref(weight), 2)
    workspace = Guarded(size)
    arguments = {"size": size, "device": 0}
    for name, value in change.items():
        owner, _, field = name.rpartition(".")
        if name in arguments:
            arguments[name] = value
        else:
            setattr({"": weight, "dy": dy, "dx": dx}[owner], field, value)
    done = emulated.cuda.bitimpl_cuda_input_grad(
        byref(weight), byref(dy), byref(dx), workspace.pointer, arguments["size"], arguments["device"], None
    )
    assert done == status
    assert message in emulated.error()


def test_too_many_rows_are_refused(emulated: CudaLibrary) -> None:
    rows = 1 << 24
    weight = Weight(1, TWO_BIT, 1, F32, rows, 1, 0, 64, rows // 4, 64, 0, 0, 0)
    assert emulated.cuda.bitimpl_cuda_input_grad_workspace(byref(weight), 1) == -1
    assert "the weight has 16777216 rows; its int8 gradient is exact up to 16777215" in emulated.error()
