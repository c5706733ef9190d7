"""Packing on the device, as the emulator runs it: the documented bytes, their inverse, floats out of them."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import byref, c_int32, c_int64, c_void_p

import numpy as np
import pytest
from cuda_library import CudaLibrary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import FORMATS, LAYOUTS, Layout, weight_of
from kernel_library import BASE3, BF16, BINARY, F16, F32, INVALID_ARGUMENT, OK, TWO_BIT, Guarded
from kernel_reference import codes_bytes, dequantize, from_dtype, pack, to_dtype

#: One multiprocessor starts 16 blocks of 256 threads, a word each: this one has more words than that.
LARGE = [Layout(BASE3, 1, 43, 2056, 0), Layout(TWO_BIT, 2, 35, 2305, 0), Layout(BINARY, 1, 41, 1025, 0)]
layouts = pytest.mark.parametrize("layout", [*LAYOUTS, *LARGE], ids=lambda layout: layout.id)


@pytest.fixture
def emulated(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    c = cuda.cuda
    size = c_int64
    c.bitimpl_cuda_pack.argtypes = [
        c_int32, c_int32, size, size, size, c_void_p, c_void_p, size, c_int32, c_void_p,
    ]  # fmt: skip
    c.bitimpl_cuda_unpack.argtypes = [c_void_p, c_void_p, c_int32, c_void_p]
    c.bitimpl_cuda_dequantize.argtypes = [
        c_void_p, size, size, c_void_p, c_int32, size, c_int32, c_void_p,
    ]  # fmt: skip
    cuda.emulate(80, 1)
    yield cuda
    cuda.emulate(80, 3)


def packed_by(library: CudaLibrary, layout: Layout, codes: np.ndarray, offset: int) -> np.ndarray:
    source = Guarded.of(codes, offset)
    out = Guarded(codes_bytes(layout.format, layout.components, layout.rows, layout.cols), offset)
    status = library.cuda.bitimpl_cuda_pack(
        layout.format, layout.components, layout.rows, layout.cols, layout.group_size,
        source.pointer, out.pointer, out.bytes.size, 0, None,
    )  # fmt: skip
    assert status == OK, library.error()
    out.check("packed codes")
    return out.bytes


@pytest.mark.parametrize("offset", [0, 1])
@layouts
def test_pack_writes_the_documented_bytes(emulated: CudaLibrary, layout: Layout, offset: int) -> None:
    codes = layout.codes()
    expected = pack(codes, layout.format, layout.group_size)
    np.testing.assert_array_equal(packed_by(emulated, layout, codes, offset), expected)


def unpacked_by(library: CudaLibrary, layout: Layout, packed: np.ndarray, offset: int) -> np.ndarray:
    source = Guarded.of(packed, offset)
    out = Guarded(layout.components * layout.rows * layout.cols, offset)
    weight = weight_of(layout, source, None, F32, (layout.components, 1, 1))
    assert library.cuda.bitimpl_cuda_unpack(byref(weight), out.pointer, 0, None) == OK, library.error()
    out.check("unpacked codes")
    return out.view(np.int8).reshape(layout.components, layout.rows, layout.cols)


@pytest.mark.parametrize("offset", [0, 1])
@layouts
def test_unpack_inverts_pack(emulated: CudaLibrary, layout: Layout, offset: int) -> None:
    codes = layout.codes()
    packed = pack(codes, layout.format, layout.group_size)
    np.testing.assert_array_equal(unpacked_by(emulated, layout, packed, offset), codes)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fmt=st.sampled_from(list(FORMATS)),
    components=st.integers(1, 3),
    rows=st.integers(1, 45),
    cols=st.integers(1, 200),
    group_octets=st.integers(0, 20),
    offset=st.integers(0, 4),
)
def test_any_shape_round_trips(
    emulated: CudaLibrary, fmt: int, components: int, rows: int, cols: int, group_octets: int, offset: int
) -> None:
    layout = Layout(fmt, components, rows, cols, 8 * group_octets)
    codes = layout.codes()
    packed = packed_by(emulated, layout, codes, offset)
    np.testing.assert_array_equal(packed, pack(codes, fmt, layout.group_size))
    np.testing.assert_array_equal(unpacked_by(emulated, layout, packed, offset), codes)


def test_every_base3_byte_decodes(emulated: CudaLibrary) -> None:
    codes = unpacked_by(emulated, Layout(BASE3, 1, 5, 243, 0), np.arange(243, dtype=np.uint8), 0)
    digits = (np.arange(243)[None, :] // 3 ** np.arange(5)[:, None]) % 3
    np.testing.assert_array_equal(codes[0], digits - 1)


@pytest.mark.parametrize("fmt", list(FORMATS), ids=list(FORMATS.values()))
def test_other_codes_become_the_digit_of_their_sign(emulated: CudaLibrary, fmt: int) -> None:
    layout = Layout(fmt, 1, 16, 16, 0)
    codes = np.arange(-128, 128).astype(np.int8).reshape(1, 16, 16)
    signs = np.where(codes >= 0, 1, -1) if fmt == BINARY else np.sign(codes)
    expected = pack(signs.astype(np.int8), fmt, 0)
    np.testing.assert_array_equal(packed_by(emulated, layout, codes, 0), expected)


def scales_for(layout: Layout, scale_dtype: int, rows: int) -> np.ndarray:
    groups = -(-layout.cols // (layout.group_size or layout.cols))
    rng = np.random.default_rng(5)
    return to_dtype(rng.uniform(-2, 2, (layout.components, rows, groups)), scale_dtype)


@pytest.mark.parametrize(
    ("out_dtype", "scale_dtype", "padding"),
    [(F32, F32, 0), (BF16, F16, 3), (F16, F32, 4)],
    ids=lambda value: str(value),
)
@layouts
def test_dequantize(
    emulated: CudaLibrary, layout: Layout, out_dtype: int, scale_dtype: int, padding: int
) -> None:
    stored = scales_for(layout, scale_dtype, layout.rows)
    codes, scales = Guarded.of(pack(layout.codes(), layout.format, layout.group_size)), Guarded.of(stored)
    weight = weight_of(layout, codes, scales, scale_dtype, stored.shape)
    floats = dequantize(layout.codes(), from_dtype(stored, scale_dtype), layout.group_size)
    expected = to_dtype(floats, out_dtype)
    stride = layout.cols + padding
    middle = layout.rows // 3
    for begin, end in [(0, layout.rows), (middle, layout.rows), (middle, middle + 1), (1, 1)]:
        elements = max(0, (end - begin - 1) * stride + layout.cols)
        out = Guarded(elements * expected.itemsize, fill=0xFF)
        status = emulated.cuda.bitimpl_cuda_dequantize(
            byref(weight), begin, end, out.pointer, out_dtype, stride, 0, None
        )
        assert status == OK, emulated.error()
        out.check("dequantized rows")
        for row in range(begin, end):
            at = (row - begin) * stride
            values = from_dtype(out.view(expected.dtype)[at : at + layout.cols], out_dtype)
            np.testing.assert_array_equal(values, from_dtype(expected[row], out_dtype))
            between = out.bytes[(at + layout.cols) * expected.itemsize : (at + stride) * expected.itemsize]
            assert (between == 0xFF).all(), "the padding between rows was written"


@pytest.mark.parametrize("fmt", list(FORMATS), ids=list(FORMATS.values()))
def test_dequantize_shares_a_scale_per_tensor(emulated: CudaLibrary, fmt: int) -> None:
    layout = Layout(fmt, 3, 22, 90, 32)
    stored = scales_for(layout, F32, 1)
    codes, scales = Guarded.of(pack(layout.codes(), fmt, 32)), Guarded.of(stored)
    weight = weight_of(layout, codes, scales, F32, stored.shape)
    out = Guarded(22 * 90 * 4)
    status = emulated.cuda.bitimpl_cuda_dequantize(byref(weight), 0, 22, out.pointer, F32, 90, 0, None)
    assert status == OK, emulated.error()
    expected = dequantize(layout.codes(), np.broadcast_to(stored, (3, 22, 3)), 32)
    np.testing.assert_array_equal(out.view(np.float32).reshape(22, 90), expected)


# ---- bad arguments -------------------------------------------------------------------------------------


@pytest.fixture
def small() -> tuple[Layout, Guarded, Guarded]:
    layout = Layout(TWO_BIT, 1, 5, 9, 0)
    return layout, Guarded.of(pack(layout.codes(), TWO_BIT, 0)), Guarded.of(np.ones(5, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format is 9: use 1 (binary), 2 (two_bit) or 3 (base3)"),
        ({"out_bytes": 17}, "codes hold 17 bytes, two_bit 1 x 5 x 9 takes 18"),
        ({"codes": None}, "codes is null: pass int8 [components, rows, cols]"),
        ({"out": None}, "codes is null: pass the packed bytes"),
        ({"group_size": 12}, "group_size is 12: use 0 (no groups) or a positive multiple of 8"),
        ({"device": 7}, "device 7: there are 2, counted from 0"),
    ],
)
def test_pack_says_what_is_wrong(
    emulated: CudaLibrary, small: tuple[Layout, Guarded, Guarded], change: dict[str, int | None], message: str
) -> None:
    layout, out, _ = small
    before = out.bytes.copy()
    codes = Guarded.of(layout.codes())
    arguments = {
        "format": TWO_BIT, "components": 1, "rows": 5, "cols": 9, "group_size": 0, "codes": codes.pointer,
        "out": out.pointer, "out_bytes": out.bytes.size, "device": 0, "stream": None, **change,
    }  # fmt: skip
    assert emulated.cuda.bitimpl_cuda_pack(*arguments.values()) != OK
    assert message in emulated.error()
    np.testing.assert_array_equal(out.bytes, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_end": 6}, "rows [0, 6) of a weight with 5: pass 0 <= row_begin <= row_end <= rows"),
        ({"row_begin": -1}, "rows [-1, 5) of a weight with 5"),
        ({"row_begin": 4, "row_end": 3}, "rows [4, 3) of a weight with 5"),
        ({"out": None}, "out lies at (nil): pass data aligned to its elements of 4 bytes"),
        ({"dtype": 8}, f"out has dtype 8: use {F32} (float32), {F16} (float16) or {BF16} (bfloat16)"),
        ({"stride": 8}, "out has row_stride 8 for 9 columns"),
        ({"device": -1}, "device -1: there are 2, counted from 0"),
    ],
)
def test_dequantize_says_what_is_wrong(
    emulated: CudaLibrary, small: tuple[Layout, Guarded, Guarded], change: dict[str, int | None], message: str
) -> None:
    layout, codes, scales = small
    weight = weight_of(layout, codes, scales, F32, (1, 5, 1))
    out = Guarded(5 * 9 * 4)
    arguments = {
        "weight": byref(weight), "row_begin": 0, "row_end": 5, "out": out.pointer, "dtype": F32, "stride": 9,
        "device": 0, "stream": None, **change,
    }  # fmt: skip
    assert emulated.cuda.bitimpl_cuda_dequantize(*arguments.values()) != OK
    assert message in emulated.error()


def test_unpack_says_what_is_wrong(emulated: CudaLibrary, small: tuple[Layout, Guarded, Guarded]) -> None:
    layout, codes, _ = small
    weight = weight_of(layout, codes, None, F32, (1, 1, 1))
    assert emulated.cuda.bitimpl_cuda_unpack(None, 1, 0, None) == INVALID_ARGUMENT
    assert emulated.error() == "weight is null: pass a descriptor"
    assert emulated.cuda.bitimpl_cuda_unpack(byref(weight), None, 0, None) == INVALID_ARGUMENT
    assert "codes is null" in emulated.error()
    weight.layout = 2
    assert emulated.cuda.bitimpl_cuda_unpack(byref(weight), 1, 0, None) == INVALID_ARGUMENT
    assert "layout tag is 2, this library reads 1" in emulated.error()
