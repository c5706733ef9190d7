"""Signs from operator to operator: every bad argument, at the C interface.

What is computed is checked by the sanitizer driver (sanitize_signs.cpp), against the floats of the same
kernels and on every instruction set, and through Python by tests/impl/test_thresholds.py.
"""

from __future__ import annotations

import ctypes
import re
from ctypes import POINTER, Structure, byref, c_int, c_int32, c_int64, c_void_p

import numpy as np
import pytest
from kernel_cases import Layout, weight_of
from kernel_library import (
    BINARY,
    F32,
    INT8,
    INVALID_ARGUMENT,
    OK,
    SIGN,
    Guarded,
    Library,
    LinearCall,
    Matrix,
    Weight,
)
from kernel_reference import pack

SIGNS = 3
SIGNS_FIELDS = ("x_scale", "lower", "upper", "least", "most", "y_scale")
ROWS, COLS, TOKENS = 12, 36, 4  # columns: 4 channels x 3 x 3 taps, where it is a convolution's


class Data(Structure):
    """``bitimpl_signs``."""

    _fields_ = [(name, c_void_p) for name in SIGNS_FIELDS]


class Image(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("samples", c_int64),
        ("channels", c_int64),
        ("size", c_int64 * 3),
        ("sample_stride", c_int64),
        ("channel_stride", c_int64),
        ("spatial_stride", c_int64 * 3),
    ]


class Conv(Structure):
    _fields_ = [
        ("groups", c_int64),
        *((name, c_int64 * 3) for name in ("kernel", "stride", "dilation", "before", "after")),
        ("padding_value", c_int32),
        ("reserved", c_int32),
    ]


class Call:
    """Correct calls of signs to signs that a test spoils in one place."""

    def __init__(self) -> None:
        layout = Layout(BINARY, 1, ROWS, COLS, 0)
        codes, scales = Guarded.of(pack(layout.codes(), BINARY, 0)), Guarded.of(np.ones(ROWS, np.float32))
        self.buffers = [codes, scales]
        self.weight = weight_of(layout, codes, scales, F32, (1, ROWS, 1))
        self.memory = Guarded(1 << 20)
        self.x_data, self.y_data = Guarded(1 << 10), Guarded(1 << 10)
        self.scale = Guarded(4 * TOKENS)
        self.numbers = {
            "x_scale": np.ones(TOKENS), "lower": np.zeros(ROWS), "upper": np.full(ROWS, np.inf),
            "least": np.full(ROWS, -np.inf), "most": np.full(ROWS, np.inf),
        }  # fmt: skip
        held = {name: Guarded.of(value.astype(np.float32)) for name, value in self.numbers.items()}
        self.buffers += held.values()
        self.signs: Data | None = Data(*(held[name].pointer for name in self.numbers), self.scale.pointer)
        self.call: LinearCall | None = LinearCall(
            ctypes.pointer(self.weight),
            Matrix(self.x_data.pointer, SIGNS, 0, TOKENS, COLS, 40),
            Matrix(self.y_data.pointer, SIGNS, 0, TOKENS, ROWS, 16),
            None, 0, SIGN, self.memory.pointer, self.memory.bytes.size,
        )  # fmt: skip
        one = (1, 1, 1)
        self.conv = Conv(1, (1, 3, 3), one, one, (0, 1, 1), (0, 1, 1), 0, 0)
        # 4 channels in a byte, 2 samples of 3 x 4; 12 channels in two bytes.
        self.x = Image(self.x_data.pointer, SIGNS, 0, 2, 4, (1, 3, 4), 96, 1, (96, 32, 8))
        self.y = Image(self.y_data.pointer, SIGNS, 0, 2, ROWS, (1, 3, 4), 192, 1, (192, 64, 16))
        self.activation = SIGN

    def linear(self, library: Library) -> int:
        function = library.c.bitimpl_linear_signs
        function.restype = c_int
        function.argtypes = [POINTER(LinearCall), POINTER(Data)]
        return function(self.call, self.signs)

    def convolve(self, library: Library, name: str = "conv_signs") -> int:
        function = library.c[f"bitimpl_{name}"]
        function.restype = c_int
        function.argtypes = [
            POINTER(Weight), POINTER(Conv), POINTER(Image), c_int32, c_void_p, c_int32, POINTER(Image),
            *([POINTER(Data)] if name == "conv_signs" else []), c_void_p, c_int64,
        ]  # fmt: skip
        signs = [self.signs] if name == "conv_signs" else []
        return function(
            byref(self.weight), byref(self.conv), byref(self.x), self.activation, None, 0, byref(self.y),
            *signs, self.memory.pointer, self.memory.bytes.size,
        )  # fmt: skip


def test_correct_calls(library: Library) -> None:
    call = Call()
    assert call.linear(library) == OK, library.error()
    assert call.scale.view(np.float32).tolist() == [1.0] * TOKENS
    assert call.convolve(library) == OK, library.error()
    for buffer in (call.x_data, call.y_data, call.scale, call.memory):
        buffer.check("a buffer")


def test_no_tokens_need_no_scales(library: Library) -> None:
    call = Call()
    assert call.call is not None
    assert call.signs is not None
    call.call.x.rows = call.call.y.rows = call.x.samples = call.y.samples = 0
    call.signs.x_scale = call.signs.y_scale = None
    assert call.linear(library) == OK, library.error()
    assert call.convolve(library) == OK, library.error()


def test_a_scale_of_x_that_is_not_a_number(library: Library) -> None:
    """NaN goes on to the scale of y, of its own row alone."""
    call = Call()
    x_scale = np.array([1.0, np.nan, 1.0, 1.0], dtype=np.float32)
    assert call.signs is not None
    held = Guarded.of(x_scale)
    call.signs.x_scale = held.pointer
    assert call.linear(library) == OK, library.error()
    np.testing.assert_array_equal(call.scale.view(np.float32), x_scale)
    assert (call.y_data.bytes.reshape(-1, 2)[1] == 0).all()


BAD = [
    ("linear", "call", None, None, "call is NULL"),
    ("both", "signs", None, None, "signs is null"),
    *(("both", "signs", name, None, f"{name} of the signs lies at") for name in SIGNS_FIELDS),
    ("both", "signs", "lower", 6, "lower of the signs lies at 0x6: pass aligned"),
    ("linear", "call.x", "row_stride", 36, "x has row_stride 36: rows of signs start on bytes"),
    ("linear", "call.y", "row_stride", 15, "y has row_stride 15: .* multiple of 8"),
    ("linear", "call.y", "row_stride", 8, "y has row_stride 8 for 12 columns"),
    ("linear", "call.x", "cols", 35, "x has 35 columns, the weight 36"),
    ("linear", "call.x", "dtype", 4, "x has dtype 4"),
    ("linear", "call", "activation", INT8, "activation is 8: x of signs takes 1"),
    ("linear", "call", "workspace_bytes", 10, "workspace holds 10 bytes"),
    ("convolve", "", "activation", INT8, "activation is 8: x of signs takes 1"),
    ("convolve", "x", "channel_stride", 8, "x of signs has a stride of 8 bits: use 1 for channels"),
    ("convolve", "x", "sample_stride", 95, "x of signs has a stride of 95 bits: .* multiples of 8"),
    ("convolve", "y", "spatial_stride", (192, 64, 12), "y of signs has a stride of 12 bits"),
    ("convolve", "y", "spatial_stride", (192, 64, 8), "two elements in one place"),
    ("convolve", "y", "channels", 11, "y is 2 x 11"),
]  # fmt: skip


@pytest.mark.parametrize(("which", "part", "name", "value", "message"), BAD)
def test_bad_arguments(
    library: Library, which: str, part: str, name: str | None, value: object, message: str
) -> None:
    for run in ("linear", "convolve") if which == "both" else (which,):
        call = Call()
        if name is None:
            setattr(call, part, value)
        else:
            target: object = call
            for attribute in part.split(".") if part else []:
                target = getattr(target, attribute)
            setattr(target, name, value)
        before = call.y_data.bytes.copy()
        assert getattr(call, run)(library) == INVALID_ARGUMENT
        assert re.search(message, library.error()), library.error()
        np.testing.assert_array_equal(call.y_data.bytes, before)


def test_floats_alone_are_for_the_other_operators(library: Library) -> None:
    call = Call()
    assert call.call is not None
    call.call.x.dtype = call.call.y.dtype = call.x.dtype = call.y.dtype = F32
    assert call.linear(library) == INVALID_ARGUMENT
    assert "neither x nor y is of signs (dtype 3): call bitimpl_linear" in library.error()
    assert call.convolve(library) == INVALID_ARGUMENT
    assert "call bitimpl_conv" in library.error()


@pytest.mark.parametrize("side", ["x", "y"])
def test_other_operators_refuse_signs(library: Library, side: str) -> None:
    call = Call()
    assert call.call is not None
    # The other side as floats.
    other = "y" if side == "x" else "x"
    for image in (getattr(call, other), getattr(call.call, other)):
        image.dtype = F32
    getattr(call.call, other).row_stride = 40
    library.c.bitimpl_linear.restype = c_int
    assert library.c.bitimpl_linear(byref(call.call)) == INVALID_ARGUMENT
    assert f"{side} has dtype 3" in library.error()
    assert call.convolve(library, "binary_conv") == INVALID_ARGUMENT
    assert f"{side} is of signs (dtype 3): call bitimpl_conv_signs" in library.error()
