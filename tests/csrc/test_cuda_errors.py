"""Every bad argument of impl_cuda.h's library and linear calls: its status, and what the message says.

Packing and training have theirs beside their own tests.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator
from ctypes import POINTER, Structure, byref, c_int32, c_int64
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cuda_library import CudaLibrary, LinearCall, load_emulated
from kernel_cases import Layout, weight_of
from kernel_library import (
    BASE3,
    BINARY,
    F32,
    FLOAT,
    INT8,
    INT16,
    INVALID_ARGUMENT,
    OK,
    SIGN,
    TERNARY,
    TWO_BIT,
    UNSUPPORTED,
    Guarded,
    Matrix,
    Weight,
)
from kernel_reference import pack

ROWS, COLS, TOKENS = 10, 72, 3


class Device(Structure):
    _fields_ = [("architecture", c_int32), ("multiprocessors", c_int32), ("shared_bytes", c_int64)]


@dataclass
class Call:
    """A correct call that a test spoils in one place."""

    layout: Layout = field(default_factory=lambda: Layout(TWO_BIT, 1, ROWS, COLS, 0))
    activation: int = INT8
    bias: int | None = None
    bias_dtype: int = F32
    device: int = 0

    def __post_init__(self) -> None:
        self.codes = Guarded.of(pack(self.layout.codes(), self.layout.format, 0))
        self.scales = Guarded.of(np.ones(ROWS, dtype=np.float32))
        self.weight: Weight | None = weight_of(self.layout, self.codes, self.scales, F32, (1, ROWS, 1))
        self.x_data, self.y_data = Guarded(TOKENS * COLS * 4, fill=0), Guarded(TOKENS * ROWS * 4)
        self.x = Matrix(self.x_data.pointer, F32, 0, TOKENS, COLS, COLS)
        self.y = Matrix(self.y_data.pointer, F32, 0, TOKENS, ROWS, ROWS)
        self.memory = Guarded(1 << 20)
        self.workspace: int | None = self.memory.pointer
        self.workspace_bytes = self.memory.bytes.size

    def run(self, cuda: CudaLibrary) -> int:
        weight = POINTER(Weight)() if self.weight is None else ctypes.pointer(self.weight)
        call = LinearCall(
            weight, self.x, self.y, self.bias, self.bias_dtype, self.activation, self.workspace,
            self.workspace_bytes,
        )  # fmt: skip
        return cuda.cuda.bitimpl_cuda_linear(byref(call), self.device, None)

    def needs(self, cuda: CudaLibrary) -> int:
        assert self.weight is not None
        return cuda.cuda.bitimpl_cuda_linear_workspace(
            byref(self.weight), TOKENS, self.activation, self.device
        )


def spoil(part: str, name: str, value: object) -> Callable[[Call], None]:
    """Sets ``call.part.name`` (or ``call.name`` where part is empty)."""

    def apply(call: Call) -> None:
        setattr(getattr(call, part) if part else call, name, value)

    return apply


def oversize(call: Call) -> None:
    """2**65 bytes of codes."""
    assert call.weight is not None
    side = 2**31 - 1
    call.weight.components, call.weight.rows, call.weight.cols, call.weight.codes_bytes = 16, side, side, -1


def misalign(part: str, name: str) -> Callable[[Call], None]:
    def apply(call: Call) -> None:
        setattr(getattr(call, part), name, getattr(getattr(call, part), name) + 1)

    return apply


#: (what is wrong, how, message, whether the workspace query sees it too)
BAD_CALLS: list[tuple[str, Callable[[Call], None], str, bool]] = [
    ("no weight", spoil("", "weight", None), "weight is null", False),
    ("layout", spoil("weight", "layout", 7), "layout tag is 7.*reads 1.*pack", True),
    ("format", spoil("weight", "format", 9), "format is 9", True),
    ("no components", spoil("weight", "components", 0), "components is 0: use 1 to 16", True),
    ("components", spoil("weight", "components", 17), "components is 17: use 1 to 16", True),
    ("no rows", spoil("weight", "rows", 0), "0 x 72", True),
    ("negative columns", spoil("weight", "cols", -4), "10 x -4", True),
    ("group size", spoil("weight", "group_size", 12), "group_size is 12.*multiple of 8", True),
    ("negative group size", spoil("weight", "group_size", -8), "group_size is -8", True),
    ("no codes", spoil("weight", "codes", None), "codes is null", True),
    ("codes bytes", spoil("weight", "codes_bytes", 215), "215 bytes.*takes 216", True),
    ("rows against bytes", spoil("weight", "rows", 13), "216 bytes.*takes 288", True),
    ("too large", oversize, "more bytes than can be addressed", True),
    ("scale dtype", spoil("weight", "scale_dtype", 2), "scale_dtype is 2", False),
    ("no scales", spoil("weight", "scales", None), "scales is null", False),
    ("scale stride", spoil("weight", "scale_row_stride", -1), "scale_row_stride is -1", False),
    ("misaligned scales", misalign("weight", "scales"), "scales lie at .*align them to their 4", False),
    ("activation", spoil("", "activation", 4), r"activation is 4: use 0 \(float\), 1 \(sign\)", True),
    ("x dtype", spoil("x", "dtype", 3), "x has dtype 3", False),
    ("x columns", spoil("x", "cols", 71), "x has 71 columns, the weight 72", False),
    ("x rows", spoil("x", "rows", -1), "-1", False),
    ("x stride", spoil("x", "row_stride", 71), "x has row_stride 71 for 72 columns", False),
    ("no x data", spoil("x", "data", None), "x lies at", False),
    ("misaligned x", misalign("x", "data"), "x lies at .*aligned to its elements of 4", False),
    ("y dtype", spoil("y", "dtype", -1), "y has dtype -1", False),
    ("y rows", spoil("y", "rows", 2), "y is 2 x 10: make it 3 x 10", False),
    ("y columns", spoil("y", "cols", 9), "y is 3 x 9: make it 3 x 10", False),
    ("y stride", spoil("y", "row_stride", 9), "y has row_stride 9 for 10 columns", False),
    ("misaligned y", misalign("y", "data"), "y lies at", False),
]


@pytest.fixture
def any_kernel(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    """A kernel that needs a workspace."""
    cuda.select_kernel("any")
    yield cuda
    cuda.select_kernel(None)


@pytest.mark.parametrize(
    ("spoiled", "message", "query"), [bad[1:] for bad in BAD_CALLS], ids=[bad[0] for bad in BAD_CALLS]
)
def test_bad_linear_argument(
    cuda: CudaLibrary, spoiled: Callable[[Call], None], message: str, query: bool
) -> None:
    call = Call()
    spoiled(call)
    assert call.run(cuda) == INVALID_ARGUMENT
    assert re.search(message, cuda.error()), cuda.error()
    call.y_data.check("y")
    assert (call.y_data.bytes == 0xA5).all(), "a refused call wrote to y"
    if query:
        assert call.needs(cuda) == -1
        assert re.search(message, cuda.error()), cuda.error()


def test_bad_bias(cuda: CudaLibrary) -> None:
    assert Call(bias=64, bias_dtype=5).run(cuda) == INVALID_ARGUMENT
    assert "bias_dtype is 5" in cuda.error()
    assert Call(bias=65).run(cuda) == INVALID_ARGUMENT
    assert "bias" in cuda.error()
    assert "align" in cuda.error()


def test_no_call(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_linear(None, 0, None) == INVALID_ARGUMENT
    assert "call is null: pass a bitimpl_linear_call" in cuda.error()


def test_negative_tokens(cuda: CudaLibrary) -> None:
    call = Call()
    assert call.weight is not None
    assert cuda.cuda.bitimpl_cuda_linear_workspace(byref(call.weight), -1, INT8, 0) == -1
    assert "-1" in cuda.error()


def test_workspace_too_small(any_kernel: CudaLibrary) -> None:
    call = Call()
    needed = call.needs(any_kernel)
    assert needed > 0
    for workspace, size in (
        (None, needed),
        (call.memory.pointer, 10),
        (call.memory.pointer + 1, needed - 255),
    ):
        call.workspace, call.workspace_bytes = workspace, size
        assert call.run(any_kernel) == INVALID_ARGUMENT
        assert re.search(
            rf"workspace holds {size} bytes at .*needs {needed}: size it with bitimpl_cuda_linear_workspace",
            any_kernel.error(),
        ), any_kernel.error()
    assert (call.y_data.bytes == 0xA5).all(), "a refused call wrote to y"


@pytest.mark.parametrize("offset", range(0, 64, 13))
def test_workspace_as_large_as_asked_for_serves_wherever_it_lies(
    any_kernel: CudaLibrary, offset: int
) -> None:
    call = Call()
    memory = Guarded(call.needs(any_kernel), offset)
    call.workspace, call.workspace_bytes = memory.pointer, memory.bytes.size
    assert call.run(any_kernel) == OK, any_kernel.error()
    memory.check("workspace")


def test_success_clears_the_message(any_kernel: CudaLibrary) -> None:
    call = Call()
    call.workspace_bytes = 0
    assert call.run(any_kernel) == INVALID_ARGUMENT
    assert any_kernel.error() != ""
    call.workspace_bytes = call.memory.bytes.size
    assert call.run(any_kernel) == OK
    assert any_kernel.error() == ""


def test_no_tokens_are_served(cuda: CudaLibrary) -> None:
    call = Call()
    call.x.rows = call.y.rows = 0
    call.x.data = call.y.data = call.workspace = None
    call.workspace_bytes = 0
    assert call.run(cuda) == OK, cuda.error()


@pytest.mark.parametrize(
    ("activation", "kernel"),
    [(SIGN, "popcount"), (INT8, "binary_gemv"), (TERNARY, "binary_gemv"), (FLOAT, "float")],
)
def test_binary_weights_are_served(cuda: CudaLibrary, activation: int, kernel: str) -> None:
    call = Call(layout=Layout(BINARY, 1, ROWS, COLS, 0), activation=activation)
    assert call.run(cuda) == OK, cuda.error()
    assert cuda.last_kernel().split("/")[::3] == ["binary_linear", kernel]
    assert call.needs(cuda) >= 0


@pytest.mark.parametrize(
    ("fmt", "kernel", "activation", "message"),
    [
        (TWO_BIT, "popcount", INT8, "it has no part in such calls"),
        (TWO_BIT, "binary_gemv", INT8, "it has no part in such calls"),
        (TWO_BIT, "popcount", TERNARY, "it multiplies signs"),
        (BINARY, "popcount", INT8, "it has no part in such calls"),
        (BINARY, "binary_gemv", FLOAT, "it takes quantised activations"),
        (BINARY, "float", SIGN, "it takes activations as they are"),
    ],
)
def test_a_kernel_that_cannot_says_why(
    cuda: CudaLibrary, fmt: int, kernel: str, activation: int, message: str
) -> None:
    """Also where it stands in one of several tables that a call could be served from."""
    cuda.select_kernel(kernel)
    try:
        call = Call(layout=Layout(fmt, 1, ROWS, COLS, 0), activation=activation)
        assert call.run(cuda) == UNSUPPORTED
        assert cuda.error() == f"kernel {kernel} was chosen, but {message}: choose another, or none"
        assert call.needs(cuda) == -1
        assert (call.y_data.bytes == 0xA5).all(), "a refused call wrote to y"
    finally:
        cuda.select_kernel(None)


@pytest.mark.parametrize("device", [-1, 2, 64])
def test_wrong_device(cuda: CudaLibrary, device: int) -> None:
    call = Call(device=device)
    message = f"device {device}: there are 2, counted from 0"
    assert call.run(cuda) == INVALID_ARGUMENT
    assert message in cuda.error()
    assert call.needs(cuda) == -1
    assert message in cuda.error()
    assert cuda.cuda.bitimpl_cuda_describe(device, byref(Device())) == INVALID_ARGUMENT
    assert message in cuda.error()
    assert cuda.cuda.bitimpl_cuda_avoid(b"gemv", device) == INVALID_ARGUMENT
    assert message in cuda.error()
    assert (call.y_data.bytes == 0xA5).all(), "a refused call wrote to y"


def test_devices(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_devices() == 2
    assert cuda.cuda.bitimpl_cuda_describe(0, None) == INVALID_ARGUMENT
    assert "out is null: pass a bitimpl_cuda_device" in cuda.error()
    device = Device()
    assert cuda.cuda.bitimpl_cuda_describe(1, byref(device)) == OK
    assert (device.architecture, device.multiprocessors) == (80, 5)
    assert device.shared_bytes == 163 * 1024


def test_library(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_abi_version() == 2
    assert cuda.cuda.bitimpl_cuda_toolkit() == 0
    assert cuda.cuda.bitimpl_cuda_architectures() == b"emulated"
    assert {"gemv", "float", "any"} <= set(cuda.kernels())
    assert len(set(cuda.kernels())) == len(cuda.kernels())


def test_unknown_kernel(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_select_kernel(b"gemw") == INVALID_ARGUMENT
    names = ",".join(cuda.kernels())
    assert cuda.error() == f'there is no CUDA kernel "gemw": choose one of {names}'
    for call in (
        lambda name: cuda.cuda.bitimpl_cuda_avoid(name, 0),
        cuda.cuda.bitimpl_cuda_trust,
    ):
        for name in (b"gemw", None):
            assert call(name) == INVALID_ARGUMENT
            assert f'there is no CUDA kernel "{(name or b"").decode()}": choose' in cuda.error()


@pytest.mark.parametrize("kernel", ["gemv", "any"])
def test_refused_choice_never_falls_back(cuda: CudaLibrary, kernel: str) -> None:
    cuda.select_kernel(kernel)
    try:
        call = Call(activation=FLOAT)
        message = f"kernel {kernel} was chosen, but it takes quantised activations: choose another, or none"
        assert call.run(cuda) == UNSUPPORTED
        assert cuda.error() == message
        assert call.needs(cuda) == -1
        assert cuda.error() == message
        assert (call.y_data.bytes == 0xA5).all(), "a refused call wrote to y"
    finally:
        cuda.select_kernel(None)
    assert call.run(cuda) == OK, cuda.error()
    assert cuda.last_kernel() == "ternary_linear/two_bit/float/float/sm_80"


@pytest.mark.parametrize("fmt", [TWO_BIT, BASE3])
@pytest.mark.parametrize("activation", [INT8, INT16])
def test_sums_beyond_int32_are_refused_not_wrapped(cuda: CudaLibrary, fmt: int, activation: int) -> None:
    cols = 1 << 24
    weight = Weight(1, fmt, 1, F32, 1, cols, 0, 8, cols, None, 0, 0, 0)
    query = cuda.cuda.bitimpl_cuda_linear_workspace
    assert query(byref(weight), 1, activation, 0) == -1
    assert re.search("16777216 columns.*exact up to 16777215.*group_size", cuda.error()), cuda.error()
    assert query(byref(weight), 1, FLOAT, 0) >= 0
    weight.cols = weight.codes_bytes = cols - 1
    assert query(byref(weight), 1, activation, 0) >= 0, cuda.error()


def test_the_largest_sizes_are_counted_in_64_bits(cuda: CudaLibrary) -> None:
    side = 2**31 - 1
    weight = Weight(1, TWO_BIT, 1, F32, side, 64, 0, 8, -(-side // 4) * 64, None, 0, 0, 0)
    assert cuda.cuda.bitimpl_cuda_linear_workspace(byref(weight), side, INT8, 0) > 64 * side


def test_an_avoided_kernel_is_not_chosen(cuda: CudaLibrary, tmp_path: Path) -> None:
    """In a library of its own: it is for good."""
    copy = load_emulated(Path(shutil.copy(cuda.path, tmp_path / "copy.so")))
    call = Call()
    assert call.run(copy) == OK
    assert copy.last_kernel().split("/")[3] == "gemv"
    assert copy.cuda.bitimpl_cuda_avoid(b"gemv", 0) == OK
    assert call.run(copy) == OK
    assert copy.last_kernel().split("/")[3] != "gemv"
    call.device = 1
    assert call.run(copy) == OK
    assert copy.last_kernel().split("/")[3] == "gemv"
    copy.select_kernel("gemv")  # by name it still runs
    call.device = 0
    assert call.run(copy) == OK
    assert copy.last_kernel().split("/")[3] == "gemv"
