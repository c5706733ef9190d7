"""Every bad argument of bitimpl_cuda_conv: its status, and what the message says."""

from __future__ import annotations

import re
from collections.abc import Callable
from ctypes import byref, c_int64

import pytest
from conv_cases import ConvCase
from cuda_library import CudaLibrary
from descriptors import SIGNS, ConvCall
from kernel_library import FLOAT, INT8, INVALID_ARGUMENT, OK, SIGN, TERNARY, TWO_BIT, UNSUPPORTED, Guarded
from operator_problems import ConvProblem

CASE = ConvCase(
    TWO_BIT, 1, 6, 4, 2, INT8, 2, (2, 5, 6), (1, 3, 3), before=(0, 1, 1), after=(0, 1, 1), bias_dtype=0
)

QUERY = "bitimpl_cuda_conv_workspace"


class Call:
    """A correct call that a test spoils in one place."""

    def __init__(self, activation: int = INT8, x_signs: bool = False, y_signs: bool = False) -> None:
        case = ConvCase(**{**CASE.__dict__, "activation": activation})
        self.problem = ConvProblem(case, x_signs, y_signs)
        self.call, self.y, self.scale = self.problem._descriptors()
        self.memory = Guarded(1 << 20)
        self.call.workspace, self.call.workspace_bytes = self.memory.pointer, self.memory.bytes.size
        self.device = 0

    def run(self, cuda: CudaLibrary) -> int:
        return cuda.cuda.bitimpl_cuda_conv(byref(self.call), self.device, None)

    def needs(self, cuda: CudaLibrary) -> int:
        cuda.cuda.bitimpl_cuda_conv_workspace.restype = c_int64
        return cuda.cuda.bitimpl_cuda_conv_workspace(byref(self.call), self.device)

    def wrote_nothing(self) -> bool:
        self.y.check("y")
        return bool((self.y.bytes == 0xFF).all() and (self.scale.bytes == 0xFF).all())


def spoil(part: str, name: str, value: object, index: int | None = None) -> Callable[[ConvCall], None]:
    """Sets ``call.part.name``, or element ``index`` of it; pointers are followed."""

    def apply(call: ConvCall) -> None:
        target = getattr(call, part) if part else call
        target = target.contents if part in ("weight", "conv", "signs") else target
        if index is None:
            setattr(target, name, value)
        else:
            getattr(target, name)[index] = value

    return apply


def misalign(part: str, name: str) -> Callable[[ConvCall], None]:
    def apply(call: ConvCall) -> None:
        target = getattr(call, part) if part else call
        setattr(target, name, getattr(target, name) + 1)

    return apply


#: (what is wrong, how, message, status, whether the workspace query sees it too)
BAD_CALLS: list[tuple[str, Callable[[ConvCall], None], str, int, bool]] = [
    ("no weight", spoil("", "weight", None), "weight is null", INVALID_ARGUMENT, True),
    ("layout", spoil("weight", "layout", 7), "layout tag is 7.*reads 1", INVALID_ARGUMENT, True),
    ("no scales", spoil("weight", "scales", None), "scales is null", INVALID_ARGUMENT, False),
    (
        "scale groups",
        spoil("weight", "group_size", 8),
        "group_size is 8: convolutions take scales per tensor or row",
        UNSUPPORTED,
        True,
    ),
    (
        "activation",
        spoil("", "activation", 4),
        r"activation is 4: use 0 \(float\), 1",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "float",
        spoil("", "activation", FLOAT),
        "convolutions take sign, ternary, int8 or int16.*decode the weight",
        UNSUPPORTED,
        True,
    ),
    ("no conv", spoil("", "conv", None), "conv is null: pass a geometry", INVALID_ARGUMENT, True),
    ("groups", spoil("conv", "groups", 0), "groups is 0: use at least 1", INVALID_ARGUMENT, True),
    (
        "odd groups",
        spoil("conv", "groups", 4),
        "4 channels of x and 6 rows of the weight in 4 groups",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "kernel",
        spoil("conv", "kernel", 2, 2),
        "18 columns, a kernel of 1 x 3 x 2 over 2 channels.*takes 12",
        INVALID_ARGUMENT,
        True,
    ),
    ("stride", spoil("conv", "stride", 0, 1), "stride 0.*in height.*the others 1 to", INVALID_ARGUMENT, True),
    (
        "dilation",
        spoil("conv", "dilation", 9, 2),
        "padded input is 8 long in width, the dilated kernel 19",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "padding",
        spoil("conv", "before", -1, 0),
        "padding -1 and 0 in depth: padding must be 0 to",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "padding value",
        spoil("conv", "padding_value", 2),
        "padding_value is 2: use -1, 0 or",
        INVALID_ARGUMENT,
        True,
    ),
    ("x dtype", spoil("x", "dtype", 9), "x has dtype 9: use 0", INVALID_ARGUMENT, True),
    (
        "x samples",
        spoil("x", "samples", -1),
        "x is -1 x 4 x 2 x 5 x 6.*samples must be 0",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "x strides",
        spoil("x", "sample_stride", -8),
        "x has a stride of -8: strides must be at least 0",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "no x data",
        spoil("x", "data", None),
        "x lies at .*: pass data aligned to its elements of 4",
        INVALID_ARGUMENT,
        False,
    ),
    ("misaligned x", misalign("x", "data"), "x lies at", INVALID_ARGUMENT, False),
    (
        "y size",
        spoil("y", "size", 4, 1),
        "y is 2 x 6 x 2 x 4 x 6: make it 2 x 6 x 2 x 5 x 6",
        INVALID_ARGUMENT,
        True,
    ),
    (
        "y overlaps",
        spoil("y", "channel_stride", 0),
        "strides of y put two elements in one place",
        INVALID_ARGUMENT,
        True,
    ),
    ("no y data", spoil("y", "data", None), "y lies at", INVALID_ARGUMENT, False),
    ("bias dtype", spoil("", "bias_dtype", 5), "bias_dtype is 5", INVALID_ARGUMENT, False),
    ("misaligned bias", misalign("", "bias"), "bias.*align", INVALID_ARGUMENT, False),
]


@pytest.mark.parametrize(
    ("spoiled", "message", "status", "query"),
    [bad[1:] for bad in BAD_CALLS],
    ids=[bad[0] for bad in BAD_CALLS],
)
def test_bad_argument(
    cuda: CudaLibrary, spoiled: Callable[[ConvCall], None], message: str, status: int, query: bool
) -> None:
    call = Call()
    spoiled(call.call)
    assert call.run(cuda) == status
    assert re.search(message, cuda.error()), cuda.error()
    assert call.wrote_nothing()
    if query:
        assert call.needs(cuda) == -1
        assert re.search(message, cuda.error()), cuda.error()
    else:
        assert call.needs(cuda) > 0, cuda.error()


#: (which is of signs, what is wrong, how, message)
BAD_SIGNS: list[tuple[str, str, Callable[[ConvCall], None], str]] = [
    ("x", "no signs", spoil("", "signs", None), "signs is null: pass what goes with x or y of signs"),
    ("x", "activation", spoil("", "activation", TERNARY), r"activation is 2: x of signs takes 1 \(sign\)"),
    ("x", "no scales", spoil("signs", "x_scale", None), "x_scale of the signs lies at"),
    ("y", "no lower", spoil("signs", "lower", None), "lower of the signs lies at .*: pass aligned float32"),
    ("y", "no y_scale", spoil("signs", "y_scale", None), "y_scale of the signs lies at"),
    ("y", "stride", spoil("y", "sample_stride", 3), "y of signs has a stride of 3 bits: use 1 for channels"),
]


@pytest.mark.parametrize(
    ("which", "spoiled", "message"),
    [(bad[0], *bad[2:]) for bad in BAD_SIGNS],
    ids=[f"{bad[0]} {bad[1]}" for bad in BAD_SIGNS],
)
def test_bad_signs(cuda: CudaLibrary, which: str, spoiled: Callable[[ConvCall], None], message: str) -> None:
    call = Call(SIGN, which == "x", which == "y")
    spoiled(call.call)
    assert call.run(cuda) == INVALID_ARGUMENT
    assert re.search(message, cuda.error()), cuda.error()
    assert call.wrote_nothing()


@pytest.mark.parametrize("which", ["x", "y"])
def test_signs_want_what_goes_with_them(cuda: CudaLibrary, which: str) -> None:
    """An image said to be of signs in a call without."""
    call = Call(SIGN)
    getattr(call.call, which).dtype = SIGNS
    assert call.run(cuda) == INVALID_ARGUMENT
    assert call.wrote_nothing()


def test_no_call(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_conv(None, 0, None) == INVALID_ARGUMENT
    assert "call is null: pass a bitimpl_cuda_conv_call" in cuda.error()
    assert cuda.cuda.bitimpl_cuda_conv_workspace(None, 0) == -1
    assert "call is null" in cuda.error()


@pytest.mark.parametrize("kernel", ["any", None])
def test_workspace_too_small(cuda: CudaLibrary, kernel: str | None) -> None:
    call = Call()
    cuda.select_kernel(kernel)
    try:
        needed = call.needs(cuda)
        for workspace, size in (
            (None, needed),
            (call.memory.pointer, 10),
            (call.memory.pointer + 1, needed - 255),
        ):
            call.call.workspace, call.call.workspace_bytes = workspace, size
            assert call.run(cuda) == INVALID_ARGUMENT
            message = rf"workspace holds {size} bytes at .*needs {needed}: size it with {QUERY}"
            assert re.search(message, cuda.error()), cuda.error()
        assert call.wrote_nothing()
    finally:
        cuda.select_kernel(None)


def test_no_samples_are_served(cuda: CudaLibrary) -> None:
    call = Call()
    call.call.x.samples = call.call.y.samples = 0
    call.call.x.data = call.call.y.data = call.call.workspace = None
    call.call.workspace_bytes = 0
    assert call.run(cuda) == OK, cuda.error()
    assert call.wrote_nothing()


@pytest.mark.parametrize("device", [-1, 2, 64])
def test_wrong_device(cuda: CudaLibrary, device: int) -> None:
    call = Call()
    call.device = device
    message = f"device {device}: there are 2, counted from 0"
    assert call.run(cuda) == INVALID_ARGUMENT
    assert message in cuda.error()
    assert call.needs(cuda) == -1
    assert message in cuda.error()
    assert call.wrote_nothing()
