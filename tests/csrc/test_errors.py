"""Every bad argument: its status, and a message with the value, the limit or the remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from ctypes import byref
from dataclasses import dataclass, field

import numpy as np
import pytest
from kernel_cases import Layout, weight_of
from kernel_library import (
    BASE3,
    BINARY,
    F32,
    FLOAT,
    INT8,
    INVALID_ARGUMENT,
    OK,
    TWO_BIT,
    Guarded,
    Library,
    Matrix,
    Weight,
)
from kernel_reference import pack

ROWS, COLS, TOKENS = 10, 72, 3


@dataclass
class Call:
    """A correct ternary call that a test spoils in one place."""

    operator: str = "ternary"
    layout: Layout = field(default_factory=lambda: Layout(TWO_BIT, 1, ROWS, COLS, 0))
    activation: int = INT8
    bias: int | None = None
    bias_dtype: int = F32

    def __post_init__(self) -> None:
        self.codes = Guarded.of(pack(self.layout.codes(), self.layout.format, 0))
        self.scales = Guarded.of(np.ones(ROWS, dtype=np.float32))
        self.weight: Weight | None = weight_of(self.layout, self.codes, self.scales, F32, (1, ROWS, 1))
        self.x_data, self.y_data = Guarded(TOKENS * COLS * 4), Guarded(TOKENS * ROWS * 4)
        self.x: Matrix | None = Matrix(self.x_data.pointer, F32, 0, TOKENS, COLS, COLS)
        self.y: Matrix | None = Matrix(self.y_data.pointer, F32, 0, TOKENS, ROWS, ROWS)
        self.memory = Guarded(1 << 20)
        self.workspace: int | None = self.memory.pointer
        self.workspace_bytes = self.memory.bytes.size

    def run(self, library: Library) -> int:
        def address(struct: Weight | Matrix | None) -> object:
            return None if struct is None else byref(struct)

        operator = getattr(library.c, f"bitimpl_{self.operator}_linear")
        return operator(
            address(self.weight), address(self.x), self.activation, self.bias, self.bias_dtype,
            address(self.y), self.workspace, self.workspace_bytes,
        )  # fmt: skip


def spoil(part: str, name: str, value: object) -> Callable[[Call], None]:
    """Sets ``call.part.name`` (or ``call.name`` where part is empty)."""

    def apply(call: Call) -> None:
        setattr(getattr(call, part) if part else call, name, value)

    return apply


def oversize(weight: Weight | None) -> None:
    """2**65 bytes of codes."""
    assert weight is not None
    weight.components, weight.rows, weight.cols, weight.codes_bytes = 16, 2**31 - 1, 2**31 - 1, -1


BAD_CALLS: list[tuple[str, Callable[[Call], None], str]] = [
    ("no weight", spoil("", "weight", None), "weight is null"),
    ("no x", spoil("", "x", None), "x is null"),
    ("no y", spoil("", "y", None), "y is null"),
    ("layout", spoil("weight", "layout", 7), "layout tag is 7.*reads 1.*pack"),
    ("format", spoil("weight", "format", 9), "format is 9"),
    ("no components", spoil("weight", "components", 0), "components is 0: use 1 to 16"),
    ("components", spoil("weight", "components", 17), "components is 17: use 1 to 16"),
    ("no rows", spoil("weight", "rows", 0), "0 x 72"),
    ("negative columns", spoil("weight", "cols", -4), "10 x -4"),
    ("group size", spoil("weight", "group_size", 12), "group_size is 12.*multiple of 8"),
    ("negative group size", spoil("weight", "group_size", -8), "group_size is -8"),
    ("no codes", spoil("weight", "codes", None), "codes is null"),
    ("codes bytes", spoil("weight", "codes_bytes", 215), "215 bytes.*takes 216"),
    ("rows against bytes", spoil("weight", "rows", 13), "216 bytes.*takes 288"),
    ("scale dtype", spoil("weight", "scale_dtype", 2), "scale_dtype is 2"),
    ("no scales", spoil("weight", "scales", None), "scales is null"),
    ("scale stride", spoil("weight", "scale_row_stride", -1), "scale_row_stride is -1"),
    ("too large", lambda call: oversize(call.weight), "more bytes than can be addressed"),
    ("activation", spoil("", "activation", 4), "activation is 4"),
    ("x dtype", spoil("x", "dtype", 3), "x has dtype 3"),
    ("x columns", spoil("x", "cols", 71), "x has 71 columns, the weight 72"),
    ("x rows", spoil("x", "rows", -1), "-1"),
    ("x stride", spoil("x", "row_stride", 71), "x has row_stride 71 for 72 columns"),
    ("x data", spoil("x", "data", None), "x lies at"),
    ("y dtype", spoil("y", "dtype", -1), "y has dtype -1"),
    ("y rows", spoil("y", "rows", 2), "y is 2 x 10: make it 3 x 10"),
    ("y columns", spoil("y", "cols", 9), "y is 3 x 9: make it 3 x 10"),
    ("y stride", spoil("y", "row_stride", 9), "y has row_stride 9 for 10 columns"),
    ("no workspace", spoil("", "workspace", None), "workspace.*bitimpl_linear_workspace"),
    ("workspace", spoil("", "workspace_bytes", 10), "workspace holds 10 bytes.*bitimpl_linear_workspace"),
]


@pytest.mark.parametrize(("spoiled", "message"), [b[1:] for b in BAD_CALLS], ids=[b[0] for b in BAD_CALLS])
def test_bad_operator_argument(library: Library, spoiled: Callable[[Call], None], message: str) -> None:
    call = Call()
    spoiled(call)
    assert call.run(library) == INVALID_ARGUMENT
    assert re.search(message, library.error()), library.error()
    call.y_data.check("y")
    assert (call.y_data.bytes == 0xA5).all(), "a refused call wrote to y"


def test_bad_bias(library: Library) -> None:
    call = Call(bias=1, bias_dtype=5)
    assert call.run(library) == INVALID_ARGUMENT
    assert "bias_dtype is 5" in library.error()


def test_arguments_in_one_structure(library: Library) -> None:
    assert library.c.bitimpl_linear(None) == INVALID_ARGUMENT
    assert "call is NULL: pass a bitimpl_linear_call" in library.error()
    assert library.c.bitimpl_linear(bytes(120)) == INVALID_ARGUMENT
    assert "weight is null" in library.error()


def test_misaligned_data(library: Library) -> None:
    call = Call()
    assert call.x is not None
    call.x.data = call.x_data.pointer + 1
    assert call.run(library) == INVALID_ARGUMENT
    assert re.search("x lies at .*align", library.error()), library.error()


@pytest.mark.parametrize(
    ("operator", "fmt", "remedy"),
    [
        ("binary", TWO_BIT, "call bitimpl_ternary_linear"),
        ("binary", BASE3, "call bitimpl_ternary_linear"),
        ("ternary", BINARY, "call bitimpl_binary_linear"),
    ],
)
def test_format_of_the_other_operator(library: Library, operator: str, fmt: int, remedy: str) -> None:
    call = Call(operator=operator, layout=Layout(fmt, 1, ROWS, COLS, 0))
    assert call.run(library) == INVALID_ARGUMENT
    assert remedy in library.error()


@pytest.mark.parametrize("activation", [-1, 3, 4, 32])
def test_unknown_activation(library: Library, activation: int) -> None:
    assert Call(activation=activation).run(library) == INVALID_ARGUMENT
    assert f"activation is {activation}: use 0 (float), 1 (sign), 2 (ternary)" in library.error()


def test_sums_beyond_int32_are_refused_not_wrapped(library: Library) -> None:
    cols = 1 << 24
    weight = Weight(1, BINARY, 1, F32, 1, cols, 0, 8, cols // 8, None, 0, 0, 0)
    assert library.c.bitimpl_linear_workspace(byref(weight), 1, INT8) == -1
    assert re.search("16777216 columns.*exact up to 16777215.*group_size", library.error()), library.error()
    assert library.c.bitimpl_linear_workspace(byref(weight), 1, FLOAT) > 0


def test_success_clears_the_message(library: Library) -> None:
    call = Call()
    call.workspace_bytes = 0
    assert call.run(library) == INVALID_ARGUMENT
    assert library.error() != ""
    call.workspace_bytes = call.memory.bytes.size
    assert call.run(library) == OK
    assert library.error() == ""


@pytest.mark.parametrize(
    ("fmt", "components", "rows", "cols", "group_size"),
    [(0, 1, 4, 8, 0), (4, 1, 4, 8, 0), (1, 0, 4, 8, 0), (2, 17, 4, 8, 0), (3, 1, 0, 8, 0), (1, 1, 4, 0, 0),
     (2, 1, -1, 8, 0), (3, 1, 4, 8, 7), (1, 1, 4, 8, -8), (1, 1, 1 << 40, 8, 0), (2, 1, 8, 1 << 62, 0)],
)  # fmt: skip
def test_codes_bytes_of_what_cannot_be(
    library: Library, fmt: int, components: int, rows: int, cols: int, group_size: int
) -> None:
    assert library.codes_bytes(fmt, components, rows, cols, group_size) == -1


def test_codes_bytes_at_the_limits(library: Library) -> None:
    side = 2**31 - 1
    assert library.codes_bytes(BINARY, 16, side, side, 0) == 16 * side * 2**28
    assert library.codes_bytes(BASE3, 8, side, side, 0) == 8 * -(-side // 5) * side
    assert library.codes_bytes(BASE3, 16, side, side, 0) == -1  # past int64


BAD_PACKS: list[tuple[str, dict[str, object], str]] = [
    ("format", {"format": 5}, "format is 5"),
    ("components", {"components": 0}, "components is 0"),
    ("rows", {"rows": 0}, "0 x 72"),
    ("group size", {"group_size": 4}, "group_size is 4"),
    ("codes", {"codes": None}, "codes is null"),
    ("out", {"out": None}, "codes is null"),
    ("out bytes", {"out_bytes": 100}, "100 bytes.*takes 216"),
]


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD_PACKS], ids=[b[0] for b in BAD_PACKS])
def test_bad_pack_argument(library: Library, change: dict[str, object], message: str) -> None:
    codes, out = Guarded(ROWS * COLS, fill=1), Guarded(216)
    arguments = {
        "format": TWO_BIT, "components": 1, "rows": ROWS, "cols": COLS, "group_size": 0,
        "codes": codes.pointer, "out": out.pointer, "out_bytes": 216,
    } | change  # fmt: skip
    assert library.c.bitimpl_pack(*arguments.values()) == INVALID_ARGUMENT
    assert re.search(message, library.error()), library.error()
    assert (out.bytes == 0xA5).all(), "a refused call wrote"


@pytest.mark.parametrize(
    ("begin", "end", "stride", "message"),
    [
        (-1, 4, COLS, r"rows \[-1, 4\) of a weight with 10"),
        (5, 4, COLS, r"rows \[5, 4\)"),
        (0, 11, COLS, r"rows \[0, 11\)"),
        (0, 10, COLS - 1, "out_row_stride is 71 for 72 columns"),
    ],
)
def test_bad_dequantize_range(library: Library, begin: int, end: int, stride: int, message: str) -> None:
    out = Guarded(ROWS * COLS * 4)
    call = Call()
    assert call.weight is not None
    status = library.c.bitimpl_dequantize(byref(call.weight), begin, end, out.pointer, stride)
    assert status == INVALID_ARGUMENT
    assert re.search(message, library.error()), library.error()
    assert (out.bytes == 0xA5).all(), "a refused call wrote"


def test_null_outputs(library: Library) -> None:
    call = Call()
    assert call.weight is not None
    assert call.x is not None
    assert library.c.bitimpl_dequantize(byref(call.weight), 0, 1, None, COLS) == INVALID_ARGUMENT
    assert "out is null" in library.error()
    assert library.c.bitimpl_unpack(byref(call.weight), None) == INVALID_ARGUMENT
    assert "codes is null" in library.error()
    assert library.c.bitimpl_quantize_int8(byref(call.x), None, None) == INVALID_ARGUMENT
    assert "q is null" in library.error()


def test_unknown_isa(library: Library) -> None:
    before = library.isa()
    assert library.c.bitimpl_select_isa(b"sse9") != OK
    assert "sse9" in library.error()
    assert library.isa() == before


def run_with_isa(library: Library, name: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process sees under BITIMPL_ISA=name: the set in use, then the status of a call."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import kernel_library, test_errors\n"
        "from pathlib import Path\n"
        "library = kernel_library.load(Path(sys.argv[2]))\n"
        "status = test_errors.Call().run(library)\n"
        "print(library.isa(), status, library.error(), sep='|')\n"
    )
    command = [sys.executable, "-c", script, os.path.dirname(__file__), str(library.path)]
    environment = os.environ | {"BITIMPL_ISA": name}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_environment_chooses_the_isa(library: Library) -> None:
    isa, status, _ = run_with_isa(library, "portable").stdout.strip().split("|")
    assert (isa, int(status)) == ("portable", OK)


def test_environment_never_falls_back(library: Library) -> None:
    _, status, message = run_with_isa(library, "sse9").stdout.strip().split("|")
    assert int(status) != OK
    assert "sse9" in message
    assert "BITIMPL_ISA" in message


def test_abi_version(library: Library) -> None:
    assert library.c.bitimpl_abi_version() == 4
