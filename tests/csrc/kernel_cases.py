"""The one table of shapes behind the tests of csrc, and the data of a case.

``LAYOUTS`` are weights (what packing sees), ``CASES`` are operator calls (what kernels see). The
sanitizer driver runs the same table, one line a case (``Case.line``).
"""

from __future__ import annotations

import itertools
import math
from ctypes import byref
from dataclasses import dataclass, fields, replace

import numpy as np
from kernel_library import (
    BASE3,
    BF16,
    BINARY,
    F16,
    F32,
    FLOAT,
    INT8,
    INT16,
    OK,
    SIGN,
    TERNARY,
    TWO_BIT,
    Guarded,
    Library,
    Matrix,
    Weight,
)
from kernel_reference import from_dtype, pack, to_dtype

FORMATS = {BINARY: "binary", TWO_BIT: "two_bit", BASE3: "base3"}
ACTIVATIONS = {FLOAT: "float", SIGN: "sign", TERNARY: "ternary", INT8: "int8", INT16: "int16"}
DTYPES = {F32: "f32", F16: "f16", BF16: "bf16"}

#: (components, rows, cols, group_size): one of everything small, primes, exact fits of every block
#: and step size, one more and one less than them, groups with short tails and of one octet.
SHAPES = [
    (1, 1, 1, 0),
    (1, 1, 7, 0),
    (1, 3, 8, 0),
    (1, 5, 9, 8),
    (1, 16, 64, 0),
    (1, 17, 65, 0),
    (2, 20, 63, 0),
    (1, 21, 127, 64),
    (3, 32, 128, 0),
    (1, 33, 129, 128),
    (1, 31, 256, 24),
    (2, 37, 257, 40),
    (1, 47, 511, 0),
    (1, 64, 512, 512),
    (4, 19, 513, 0),
    (1, 65, 1031, 0),
    (2, 23, 1040, 520),
    (1, 40, 1536, 640),
    (3, 11, 2049, 64),
    (1, 113, 577, 8),
    (1, 8, 4099, 1024),
]


@dataclass(frozen=True)
class Layout:
    format: int
    components: int
    rows: int
    cols: int
    group_size: int

    @property
    def id(self) -> str:
        group = f"-g{self.group_size}" if self.group_size else ""
        return f"{FORMATS[self.format]}-{self.components}x{self.rows}x{self.cols}{group}"

    def codes(self) -> np.ndarray:
        """int8 [components, rows, cols], the same on every call."""
        rng = np.random.default_rng([self.format, self.components, self.rows, self.cols])
        shape = (self.components, self.rows, self.cols)
        if self.format == BINARY:
            return (rng.integers(0, 2, shape) * 2 - 1).astype(np.int8)
        return rng.integers(-1, 2, shape).astype(np.int8)


@dataclass(frozen=True)
class Case:
    """One operator call. Paddings are extra elements between rows; ``extreme``: all +1, equal activations."""

    format: int
    components: int
    rows: int
    cols: int
    group_size: int
    activation: int
    tokens: int
    x_dtype: int = F32
    y_dtype: int = F32
    x_padding: int = 0
    y_padding: int = 0
    bias_dtype: int = -1  # -1: none
    scale_dtype: int = F32
    per_tensor: int = 0
    extreme: int = 0

    @property
    def layout(self) -> Layout:
        return Layout(self.format, self.components, self.rows, self.cols, self.group_size)

    @property
    def id(self) -> str:
        bias = "" if self.bias_dtype < 0 else f"-bias_{DTYPES[self.bias_dtype]}"
        scale = f"-{DTYPES[self.scale_dtype]}_per_{'tensor' if self.per_tensor else 'row'}"
        return (
            f"{self.layout.id}-{ACTIVATIONS[self.activation]}-m{self.tokens}"
            f"-{DTYPES[self.x_dtype]}_{DTYPES[self.y_dtype]}{bias}{scale}{'-extreme' * self.extreme}"
        )

    @property
    def line(self) -> str:
        """The case as the sanitizer driver reads it."""
        return " ".join(str(getattr(self, field.name)) for field in fields(self))


def _cases() -> list[Case]:
    """Every format x activation x shape at one token and at a few; the rest of the fields rotates."""
    tokens = itertools.cycle([2, 3, 5, 12, 4, 7, 13, 1, 25, 6])
    x_dtypes = itertools.cycle([F32, BF16, F32, F16, F32])
    y_dtypes = itertools.cycle([F32, F16, BF16])
    biases = itertools.cycle([-1, F32, -1, F16, BF16, F32, -1])
    scales = itertools.cycle([(F32, 0), (F16, 0), (F32, 1), (F32, 0), (F16, 1), (F16, 0)])
    paddings = itertools.cycle([(0, 0), (3, 0), (0, 5), (1, 1), (16, 64)])
    cases = []
    for fmt, activation in itertools.product(FORMATS, ACTIVATIONS):
        for components, rows, cols, group_size in SHAPES:
            for count in (1, next(tokens)):
                scale_dtype, per_tensor = next(scales)
                x_padding, y_padding = next(paddings)
                case = Case(
                    fmt, components, rows, cols, group_size, activation, count,
                    next(x_dtypes), next(y_dtypes), x_padding, y_padding, next(biases),
                    scale_dtype, per_tensor,
                )  # fmt: skip
                cases.append(case)
    return list(dict.fromkeys(cases))


#: As SHAPES, for batches: rows that fill a panel (64 or 80), one more, a few; one and several vectors.
BATCH_SHAPES = [(1, 7, 3, 0), (1, 80, 64, 0), (1, 161, 129, 0), (2, 83, 200, 64), (3, 33, 77, 8)]


def _batch_cases() -> list[Case]:
    """Enough tokens for the kernels that decode a panel of weights once for all of them."""
    tokens = itertools.cycle([97, 110, 132])
    dtypes = itertools.cycle([(F32, F32, -1), (BF16, F32, F32), (F16, BF16, F16), (F32, F16, BF16)])
    cases = []
    for fmt, activation in itertools.product(FORMATS, (INT8, INT16, SIGN, TERNARY)):
        for shape in BATCH_SHAPES:
            x_dtype, y_dtype, bias_dtype = next(dtypes)
            cases.append(
                Case(fmt, *shape, activation, next(tokens), x_dtype, y_dtype, 3, 5, bias_dtype=bias_dtype)
            )
    return cases


def _extreme_cases() -> list[Case]:
    """The longest sums: all +1 against the largest activation, without and with groups."""
    cases = []
    for fmt, activation in itertools.product(FORMATS, (INT8, INT16, SIGN, TERNARY)):
        for tokens in (1, 3):
            cases.append(Case(fmt, 1, 21, 262144, 0, activation, tokens, extreme=1))
        cases.append(Case(fmt, 2, 5, 65536 + 8, 32768, activation, 14, extreme=1))
        cases.append(Case(fmt, 1, 17, 16384 + 4, 0, activation, 100, extreme=1))
    return cases


def _zero_cases() -> list[Case]:
    """Sums that are often 0 under a scale that is often negative: 0 + (-0) is 0, in every kernel."""
    return [
        Case(fmt, 1, 70, cols, 0, activation, tokens)
        for fmt, activation in itertools.product(FORMATS, (INT8, INT16, SIGN, TERNARY))
        for cols in (1, 2)
        for tokens in (1, 9, 100)
    ]


LAYOUTS = [Layout(fmt, *shape) for fmt in FORMATS for shape in SHAPES]
CASES = _cases() + _batch_cases()
EXTREME_CASES = _extreme_cases()
ZERO_CASES = _zero_cases()


def quantised(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.activation != FLOAT]


class Problem:
    """The data of a case and one call of its operator; every buffer guarded, exactly as large as needed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng([11, case.rows, case.cols, case.activation, case.tokens])
        groups = math.ceil(case.cols / (case.group_size or case.cols))
        self.codes = case.layout.codes()
        if case.extreme:
            self.codes = np.ones_like(self.codes)
        self.packed = pack(self.codes, case.format, case.group_size)

        stored_rows = 1 if case.per_tensor else case.rows
        values = rng.uniform(-1.0, 2.0, (case.components, stored_rows, groups)).astype(np.float32)
        self.stored_scales = to_dtype(values, case.scale_dtype)
        scales = from_dtype(self.stored_scales, case.scale_dtype)
        self.scales = np.broadcast_to(scales, (case.components, case.rows, groups))

        # Sign and ternary activations: dyadic values, whose sum is exact in any order. The others: anything.
        if case.extreme:
            x = np.full((case.tokens, case.cols), 1.5, dtype=np.float32)
        elif case.activation in (SIGN, TERNARY):
            x = rng.integers(-127, 128, (case.tokens, case.cols)).astype(np.float32) / 32
        else:
            x = rng.standard_normal((case.tokens, case.cols), dtype=np.float32)
            x[rng.random(x.shape) < 0.05] = 0.0
        x[(x == 0) & (rng.random(x.shape) < 0.5)] = -0.0
        self.x = from_dtype(to_dtype(x, case.x_dtype), case.x_dtype)

        self.bias = None
        if case.bias_dtype >= 0:
            bias = rng.standard_normal(case.rows, dtype=np.float32)
            self.bias = from_dtype(to_dtype(bias, case.bias_dtype), case.bias_dtype)

    def run(self, library: Library, x: np.ndarray | None = None, codes_offset: int = 1) -> np.ndarray:
        """The operator on ``x`` (default: the case's own): float32 [tokens, rows] as stored in y's type.

        codes_offset: bytes between the codes and the 64-byte boundary before them.
        """
        case = self.case
        x = self.x if x is None else x
        tokens = x.shape[0]
        codes, scales = Guarded.of(self.packed, codes_offset), Guarded.of(self.stored_scales)
        weight = weight_of(case.layout, codes, scales, case.scale_dtype, self.stored_scales.shape)

        x_stored = with_row_stride(to_dtype(x, case.x_dtype), case.cols + case.x_padding)
        y_stored = with_row_stride(
            to_dtype(np.zeros((tokens, case.rows)), case.y_dtype), case.rows + case.y_padding
        )
        y_stored.bytes[:] = 0xFF  # NaN in every format
        bias = None if self.bias is None else Guarded.of(to_dtype(self.bias, case.bias_dtype))
        x_matrix = Matrix(x_stored.pointer, case.x_dtype, 0, tokens, case.cols, case.cols + case.x_padding)
        y_matrix = Matrix(y_stored.pointer, case.y_dtype, 0, tokens, case.rows, case.rows + case.y_padding)
        workspace_bytes = library.c.bitimpl_linear_workspace(byref(weight), tokens, case.activation)
        assert workspace_bytes >= 0, library.error()
        workspace = Guarded(workspace_bytes, offset=1, fill=0xFF)

        operator = (
            library.c.bitimpl_binary_linear if case.format == BINARY else library.c.bitimpl_ternary_linear
        )
        status = operator(
            byref(weight), byref(x_matrix), case.activation, None if bias is None else bias.pointer,
            max(case.bias_dtype, 0), byref(y_matrix), workspace.pointer, workspace_bytes,
        )  # fmt: skip
        assert status == OK, library.error()
        assert library.error() == ""
        workspace.check("workspace")
        y_stored.check("y")
        y, padding = split_rows(y_stored, case.y_dtype, tokens, case.rows, case.rows + case.y_padding)
        assert (padding == 0xFF).all(), "the padding between rows of y was written"
        return from_dtype(y, case.y_dtype)


def weight_of(
    layout: Layout, codes: Guarded, scales: Guarded | None, scale_dtype: int, stored: tuple[int, ...]
) -> Weight:
    """The descriptor of packed bytes with contiguous scales [components, rows or 1, groups]."""
    _, scale_rows, groups = stored
    return Weight(
        1, layout.format, layout.components, scale_dtype, layout.rows, layout.cols, layout.group_size,
        codes.pointer, codes.bytes.size, None if scales is None else scales.pointer,
        scale_rows * groups, 0 if scale_rows == 1 else groups, 1,
    )  # fmt: skip


def with_row_stride(values: np.ndarray, stride: int) -> Guarded:
    """Rows at ``stride`` elements with NaN bytes between them; the last row carries no padding."""
    rows, cols = values.shape
    size = values.itemsize
    buffer = Guarded(max(0, ((rows - 1) * stride + cols) * size), fill=0xFF)
    for row in range(rows):
        begin = row * stride * size
        buffer.bytes[begin : begin + cols * size] = np.ascontiguousarray(values[row]).view(np.uint8)
    return buffer


def split_rows(
    buffer: Guarded, dtype: int, rows: int, cols: int, stride: int
) -> tuple[np.ndarray, np.ndarray]:
    """The values of a strided buffer, contiguous, and the bytes of its padding."""
    kind = np.dtype(np.float32 if dtype == F32 else np.uint16)
    if rows == 0:
        return np.empty((0, cols), kind), np.empty(0, np.uint8)
    whole = np.full(rows * stride * kind.itemsize, 0xFF, dtype=np.uint8)
    whole[: buffer.bytes.size] = buffer.bytes
    by_row = whole.reshape(rows, stride * kind.itemsize)
    values = np.ascontiguousarray(by_row[:, : cols * kind.itemsize]).view(kind)
    return values, by_row[:, cols * kind.itemsize :]


def with_tokens(case: Case, tokens: int) -> Case:
    return replace(case, tokens=tokens)
