"""Packing: the documented bytes, their inverse, their size, and float weights out of them."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import FORMATS, LAYOUTS, Layout, weight_of
from kernel_library import BASE3, BINARY, F16, F32, INVALID_ARGUMENT, OK, TWO_BIT, Guarded, Library
from kernel_reference import codes_bytes, dequantize, from_dtype, pack, to_dtype

layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.id)


def unpack(library: Library, layout: Layout, packed: np.ndarray) -> tuple[int, np.ndarray]:
    codes = Guarded.of(packed, offset=3)
    out = Guarded(layout.components * layout.rows * layout.cols)
    weight = weight_of(layout, codes, None, F32, (layout.components, 1, 1))
    status = library.c.bitimpl_unpack(byref(weight), out.pointer)
    out.check("unpacked codes")
    return status, out.view(np.int8).reshape(layout.components, layout.rows, layout.cols)


@layouts
def test_pack_writes_the_documented_bytes(library: Library, layout: Layout) -> None:
    codes = layout.codes()
    packed = library.pack(codes, layout.format, layout.group_size)
    np.testing.assert_array_equal(packed, pack(codes, layout.format, layout.group_size))


@layouts
def test_unpack_inverts_pack(library: Library, layout: Layout) -> None:
    codes = layout.codes()
    status, again = unpack(library, layout, pack(codes, layout.format, layout.group_size))
    assert status == OK, library.error()
    np.testing.assert_array_equal(again, codes)


@layouts
def test_codes_bytes(library: Library, layout: Layout) -> None:
    expected = codes_bytes(layout.format, layout.components, layout.rows, layout.cols)
    size = library.codes_bytes(layout.format, layout.components, layout.rows, layout.cols, layout.group_size)
    assert size == expected == pack(layout.codes(), layout.format, layout.group_size).size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fmt=st.sampled_from(list(FORMATS)),
    components=st.integers(1, 4),
    rows=st.integers(1, 45),
    cols=st.integers(1, 200),
    group_octets=st.integers(0, 20),
)
def test_any_shape_round_trips(
    library: Library, fmt: int, components: int, rows: int, cols: int, group_octets: int
) -> None:
    layout = Layout(fmt, components, rows, cols, 8 * group_octets)
    codes = layout.codes()
    packed = library.pack(codes, fmt, layout.group_size)
    np.testing.assert_array_equal(packed, pack(codes, fmt, layout.group_size))
    status, again = unpack(library, layout, packed)
    assert status == OK, library.error()
    np.testing.assert_array_equal(again, codes)


def test_every_base3_byte_decodes(library: Library) -> None:
    layout = Layout(BASE3, 1, 5, 243, 0)
    status, codes = unpack(library, layout, np.arange(243, dtype=np.uint8))
    assert status == OK, library.error()
    digits = (np.arange(243)[None, :] // 3 ** np.arange(5)[:, None]) % 3
    np.testing.assert_array_equal(codes[0], digits - 1)


@pytest.mark.parametrize(("fmt", "byte"), [(TWO_BIT, 0x03), (TWO_BIT, 0xC0), (BASE3, 243), (BASE3, 255)])
def test_unpack_refuses_a_byte_that_no_weight_has(library: Library, fmt: int, byte: int) -> None:
    layout = Layout(fmt, 1, 10 if fmt == BASE3 else 8, 70, 0)
    packed = pack(layout.codes(), fmt, 0)
    packed[97] = byte
    status, _ = unpack(library, layout, packed)
    assert status == INVALID_ARGUMENT
    assert "digit above 2" in library.error()


@pytest.mark.parametrize(
    ("fmt", "value"),
    [(fmt, value) for fmt in FORMATS for value in (2, -2, 127, -128)] + [(BINARY, 0)],
)
def test_pack_names_the_first_bad_code(library: Library, fmt: int, value: int) -> None:
    layout = Layout(fmt, 2, 21, 77, 0)
    codes = layout.codes()
    codes[1, 5, 76] = codes[1, 20, 3] = value
    out = Guarded(codes_bytes(fmt, 2, 21, 77))
    status = library.c.bitimpl_pack(fmt, 2, 21, 77, 0, codes.ctypes.data, out.pointer, out.bytes.size)
    assert status == INVALID_ARGUMENT
    assert f"codes[1, 5, 76] is {value}" in library.error()


def scales_for(layout: Layout, scale_dtype: int, rows: int) -> np.ndarray:
    groups = -(-layout.cols // (layout.group_size or layout.cols))
    rng = np.random.default_rng(5)
    return to_dtype(rng.uniform(-2, 2, (layout.components, rows, groups)), scale_dtype)


@pytest.mark.parametrize("scale_dtype", [F32, F16], ids=["f32", "f16"])
@layouts
def test_dequantize(library: Library, layout: Layout, scale_dtype: int) -> None:
    stored = scales_for(layout, scale_dtype, layout.rows)
    codes, scales = Guarded.of(pack(layout.codes(), layout.format, layout.group_size)), Guarded.of(stored)
    weight = weight_of(layout, codes, scales, scale_dtype, stored.shape)
    expected = dequantize(layout.codes(), from_dtype(stored, scale_dtype), layout.group_size)
    stride = layout.cols + 3
    middle = layout.rows // 3
    for begin, end in [
        (0, layout.rows),
        (middle, layout.rows),
        (0, middle + 1),
        (middle, middle + 1),
        (1, 1),
    ]:
        out = Guarded(max(0, ((end - begin - 1) * stride + layout.cols) * 4), fill=0xFF)
        status = library.c.bitimpl_dequantize(byref(weight), begin, end, out.pointer, stride)
        assert status == OK, library.error()
        out.check("dequantized rows")
        for row in range(begin, end):
            at = (row - begin) * stride
            np.testing.assert_array_equal(out.view(np.float32)[at : at + layout.cols], expected[row])
            padding = out.bytes[(at + layout.cols) * 4 : (at + stride) * 4]
            assert (padding == 0xFF).all(), "the padding between rows was written"


@pytest.mark.parametrize("fmt", list(FORMATS), ids=list(FORMATS.values()))
def test_dequantize_shares_a_scale_per_tensor(library: Library, fmt: int) -> None:
    layout = Layout(fmt, 3, 22, 90, 32)
    stored = scales_for(layout, F32, 1)
    codes, scales = Guarded.of(pack(layout.codes(), fmt, 32)), Guarded.of(stored)
    weight = weight_of(layout, codes, scales, F32, stored.shape)
    out = Guarded(22 * 90 * 4)
    assert library.c.bitimpl_dequantize(byref(weight), 0, 22, out.pointer, 90) == OK, library.error()
    expected = dequantize(layout.codes(), np.broadcast_to(stored, (3, 22, 3)), 32)
    np.testing.assert_array_equal(out.view(np.float32).reshape(22, 90), expected)
