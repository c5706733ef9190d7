"""What native convolutions refuse: tensors in Python, every bad argument at the C interface."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch

from impl import functional, native
from impl.geometry import ConvGeometry
from impl.native import calls, convolution
from impl.native import library as native_library
from impl.packing import PackedWeight

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")


def square(kernel, padding=0, groups=1):
    """A 2d geometry without stride and dilation."""
    return ConvGeometry((kernel, kernel), (1, 1), ((padding, padding),) * 2, (1, 1), groups)


def random_weight(format="binary", group_size=None):
    """8 rows over 3 x 3 taps of 4 channels."""
    codes = torch.randint(0, 2, (1, 8, 36), dtype=torch.int8) * 2 - 1
    groups = 1 if group_size is None else -(-36 // group_size)
    return PackedWeight.from_codes(codes, torch.rand(1, 8, groups), format, group_size)


def test_tensors_that_do_not_fit_are_refused():
    weight, geometry = random_weight(), square(3)
    x = torch.randn(1, 4, 5, 5)
    bad = [
        (x.double(), weight, geometry, None, "must be float32"),
        (x[0], weight, geometry, None, r"2 spatial dimensions\], got \[4, 5, 5\]"),
        (x[:, :3], weight, geometry, None, "36 columns.*takes 27"),
        (x, weight, square(3, groups=3), None, "4 input and 8 output channels in 3 groups"),
        (x[..., :2], weight, geometry, None, "use a larger input"),
        (x, weight, geometry, torch.zeros(7), r"tensor \[8\]"),
        (x, weight, geometry, torch.zeros(8, dtype=torch.float64), "not torch.float64"),
    ]
    for bits in (None, 8):
        for *arguments, message in bad:
            with pytest.raises(ValueError, match=message):
                native.conv(*arguments, bits)
    grouped = random_weight(group_size=8)
    with pytest.raises(ValueError, match="group_size is 8"):
        native.conv(x, grouped, geometry, None, 8)
    with pytest.raises(native.NativeError, match="activation is 4"):
        native.conv(x, weight, geometry, None, 4)


class Call:
    """A correct call of the C operator that a test spoils in one place; y is poisoned before."""

    def __init__(self):
        self.held = (
            random_weight(),
            torch.randn(2, 4, 5, 6),
            torch.full((2, 8, 5, 6), 7.0),
        )
        self.weight = calls.describe(self.held[0])
        self.conv = convolution.describe_geometry(square(3, padding=1))
        self.x, self.y = (convolution.describe_image(tensor) for tensor in self.held[1:])
        self.operator, self.activation, self.bias, self.bias_dtype = "binary_conv", 8, None, 0
        self.memory = torch.empty(1 << 20, dtype=torch.uint8)
        self.workspace, self.bytes = self.memory.data_ptr(), self.memory.numel()

    def parts(self):
        return [None if part is None else ctypes.addressof(part) for part in (self.weight, self.conv, self.x)]

    def run(self, library):
        return library.function(self.operator)(
            *self.parts(), self.activation, self.bias, self.bias_dtype,
            None if self.y is None else ctypes.addressof(self.y), self.workspace, self.bytes,
        )  # fmt: skip


INVALID, UNSUPPORTED = 1, 2
BAD_CALLS = [
    ("weight", None, None, INVALID, "weight is null"),
    ("conv", None, None, INVALID, "conv is null"),
    ("x", None, None, INVALID, "x is null"),
    ("y", None, None, INVALID, "y is null"),
    (None, "operator", "ternary_conv", INVALID, "call bitimpl_binary_conv"),
    (None, "activation", 3, INVALID, "activation is 3"),
    (None, "activation", 0, UNSUPPORTED, "bitimpl_dequantize"),
    (None, "bias", 1, INVALID, "bias lies at 0x1: align"),
    (None, "workspace", None, INVALID, "size it with bitimpl_conv_workspace"),
    (None, "bytes", 100, INVALID, "workspace holds 100 bytes"),
    ("weight", "layout", 9, INVALID, "layout tag is 9"),
    ("weight", "group_size", 8, UNSUPPORTED, "group_size is 8.*use group_size 0"),
    ("conv", "groups", 0, INVALID, "groups is 0"),
    ("conv", "groups", 3, INVALID, "4 channels of x and 8 rows.*3 groups"),
    ("conv", "padding_value", 2, INVALID, "padding_value is 2: use -1, 0 or"),
    ("conv", "kernel", (1, 3, 4), INVALID, "36 columns, a kernel of 1 x 3 x 4 over 4 .* takes 48"),
    ("conv", "kernel", (1 << 30, 1 << 30, 1 << 30), INVALID, "36 columns.*takes"),
    ("conv", "stride", (1, 0, 1), INVALID, "stride 0.* in height"),
    ("conv", "dilation", (1, 1, -1), INVALID, "dilation -1.* in width"),
    ("conv", "dilation", (1, 1, 9), INVALID, "8 long in width, the dilated kernel 19"),
    ("conv", "padding_after", (-1, 0, 0), INVALID, "padding 0 and -1 in depth"),
    ("conv", "padding_before", (0, (1 << 31) - 1, (1 << 31) - 1), INVALID, "y would have .* less padding"),
    ("x", "dtype", 5, INVALID, "x has dtype 5"),
    ("x", "samples", -1, INVALID, "x is -1 x 4"),
    ("x", "channels", 5, INVALID, "36 columns"),
    ("x", "size", (1, 0, 6), INVALID, "x is 2 x 4 x 1 x 0 x 6"),
    ("x", "channel_stride", -30, INVALID, "x has a stride of -30"),
    ("x", "sample_stride", 1 << 62, INVALID, "x has 240 elements"),
    ("x", "data", None, INVALID, "x lies at"),
    ("x", "data", 3, INVALID, "x lies at 0x3: .* 4 bytes"),
    ("y", "dtype", -1, INVALID, "y has dtype -1"),
    ("y", "channels", 7, INVALID, "y is 2 x 7 x 1 x 5 x 6: make it 2 x 8 x 1 x 5 x 6"),
    ("y", "size", (1, 5, 5), INVALID, "make it 2 x 8 x 1 x 5 x 6"),
    ("y", "samples", 1, INVALID, "y is 1 x 8"),
    ("y", "sample_stride", 0, INVALID, "two elements in one place"),
    ("y", "channel_stride", 29, INVALID, "two elements in one place"),
    ("y", "data", None, INVALID, "y lies at"),
]


@pytest.mark.parametrize(("part", "field", "value", "status", "message"), BAD_CALLS)
def test_bad_arguments_of_the_c_interface(part, field, value, status, message):
    library, call = native_library.require(), Call()
    if part is None:
        setattr(call, field, value)
    elif field is None:
        setattr(call, part, value)
    else:
        kind = dict(getattr(call, part)._fields_)[field]
        setattr(getattr(call, part), field, kind(*value) if isinstance(value, tuple) else value)
    assert call.run(library) == status
    error = library.last_error().decode()
    assert re.search(message, error), error
    assert (call.held[2] == 7.0).all(), "a refused call wrote to y"
    if part not in ("y", None) and field != "data":
        assert library.conv_workspace(*call.parts(), 8) == -1
        assert re.search(message, library.last_error().decode())


def test_the_call_that_the_tests_spoil_is_correct():
    library, call = native_library.require(), Call()
    assert call.run(library) == 0
    assert library.last_error() == b""
    weight, x, y = call.held
    assert torch.equal(y, functional.binary_conv_python(x, weight, square(3, padding=1), None, 8))


def test_a_workspace_for_one_thread_serves():
    library, call = native_library.require(), Call()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        call.bytes = library.conv_workspace(*call.parts(), 8)
        torch.set_num_threads(4)
        assert library.conv_workspace(*call.parts(), 8) > call.bytes
        assert call.run(library) == 0
        call.bytes -= 1
        assert call.run(library) == INVALID
    finally:
        torch.set_num_threads(before)
