"""Convolutions, and linear layers from and to signs, as calls that the CPU's library and the CUDA library
take alike.

Both give the same bits for integer activations, so the one that is tested elsewhere is the reference.
"""

from __future__ import annotations

import ctypes
import itertools
import re
import zlib
from ctypes import byref, c_int64, c_void_p
from dataclasses import dataclass

import numpy as np
from conv_cases import CHANNELS_FIRST, CHANNELS_LAST, ConvCase
from cuda_library import CudaLibrary
from descriptors import SIGNS, Conv, ConvCall, Image, SignsData
from kernel_cases import Case, Layout, weight_of
from kernel_library import (
    BINARY,
    F32,
    INVALID_ARGUMENT,
    OK,
    SIGN,
    TERNARY,
    Guarded,
    Library,
    LinearCall,
    Matrix,
)
from kernel_reference import pack, to_dtype

BYTES = {F32: 4, 1: 2, 2: 2}


@dataclass(frozen=True)
class Answer:
    """What a call wrote: y as stored, gaps included, and the scales of a y of signs."""

    y: np.ndarray
    scale: np.ndarray | None

    def same(self, other: Answer, what: str) -> None:
        np.testing.assert_array_equal(self.y, other.y, err_msg=what)
        if self.scale is not None:
            np.testing.assert_array_equal(self.scale, other.scale, err_msg=f"{what}: scales")


class ConvProblem:
    """A convolution's data; ``x_signs`` and ``y_signs``: of bits instead of the case's dtypes."""

    def __init__(self, case: ConvCase, x_signs: bool = False, y_signs: bool = False) -> None:
        self.case, self.x_signs, self.y_signs = case, x_signs, y_signs
        rng = np.random.default_rng(zlib.crc32(case.line.encode()))
        taps = int(np.prod(case.kernel))
        self.layout = Layout(case.format, case.components, case.rows, taps * case.channels // case.groups, 0)
        self.codes = Guarded.of(pack(self.layout.codes(), case.format, 0), offset=1)
        scales = rng.uniform(-1.0, 2.0, (case.components, case.rows, 1)).astype(np.float32)
        self.scales, self.scales_shape = Guarded.of(scales), scales.shape
        self.out = tuple(
            (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for size, before, after, dilation, kernel, stride in zip(
                case.size, case.before, case.after, case.dilation, case.kernel, case.stride, strict=True
            )
        )
        self.bias = None
        if case.bias_dtype >= 0:
            values = rng.standard_normal(case.rows, dtype=np.float32)
            self.bias = Guarded.of(to_dtype(values, case.bias_dtype))
        shape = (case.samples, case.channels, *case.size)
        x = rng.standard_normal(shape, dtype=np.float32)
        if case.activation in (SIGN, TERNARY):  # dyadic: means are exact in any order
            x = np.round(x * 32).astype(np.float32) / 32
        x[(x == 0) & (rng.random(shape) < 0.5)] = -0.0
        if case.samples > 1 and not x_signs:
            x[-1].flat[0] = np.nan
        self.x, self.x_strides = self._store(x, case.x_dtype, case.x_layout, x_signs)
        spread = 4.0 * self.layout.cols**0.5
        self.intervals = {
            "lower": rng.uniform(-spread, spread, case.rows), "upper": np.full(case.rows, np.inf),
            "least": np.full(case.rows, -np.inf), "most": np.full(case.rows, np.inf),
            "x_scale": rng.uniform(0.5, 2.0, case.samples),
        }  # fmt: skip
        self.intervals["upper"][::3] = self.intervals["lower"][::3] + spread
        self.held = {name: Guarded.of(value.astype(np.float32)) for name, value in self.intervals.items()}

    def _store(self, values: np.ndarray, dtype: int, layout: int, signs: bool) -> tuple[Guarded, list[int]]:
        """The memory of [samples, channels, *size] and its strides, in elements (of signs: in bits)."""
        if signs:
            bits = np.packbits(np.moveaxis(values, 1, -1) >= 0, axis=-1, bitorder="little")
            steps = [8 * stride for stride in _strides(bits.shape)]
            return Guarded.of(bits, offset=1), [steps[0], 1, *steps[1:4]]
        stored = to_dtype(values, dtype)
        if layout == CHANNELS_FIRST:
            return Guarded.of(stored), _strides(stored.shape)
        gap = 0 if layout == CHANNELS_LAST else 3
        order = np.moveaxis(stored, 1, -1)
        wide = np.zeros((*order.shape[:-1], order.shape[-1] + gap), order.dtype)
        wide[..., : order.shape[-1]] = order
        steps = _strides(wide.shape)
        return Guarded.of(wide), [steps[0], 1, *steps[1:4]]

    def _descriptors(self) -> tuple[ConvCall, Guarded, Guarded]:
        case = self.case
        self.weight = weight_of(self.layout, self.codes, self.scales, F32, self.scales_shape)
        triple = c_int64 * 3
        self.conv = Conv(
            case.groups, triple(*case.kernel), triple(*case.stride), triple(*case.dilation),
            triple(*case.before), triple(*case.after), case.padding_value, 0,
        )  # fmt: skip
        empty = np.zeros((case.samples, case.rows, *self.out), np.float32)
        y, y_strides = self._store(empty, case.y_dtype, case.y_layout, self.y_signs)
        y.bytes[:] = 0xFF
        scale = Guarded(4 * case.samples, fill=0xFF)
        x_image, y_image = (
            Image(
                memory.pointer, SIGNS if signs else dtype, 0, case.samples, channels, triple(*size),
                strides[0], strides[1], triple(*strides[2:]),
            )
            for memory, signs, dtype, channels, size, strides in (
                (self.x, self.x_signs, case.x_dtype, case.channels, case.size, self.x_strides),
                (y, self.y_signs, case.y_dtype, case.rows, self.out, y_strides),
            )
        )  # fmt: skip
        self.signs = SignsData(
            **{name: buffer.pointer for name, buffer in self.held.items()}, y_scale=scale.pointer
        )
        call = ConvCall(
            ctypes.pointer(self.weight), ctypes.pointer(self.conv), x_image, y_image,
            None if self.bias is None else self.bias.pointer, max(case.bias_dtype, 0), case.activation,
            ctypes.pointer(self.signs) if self.x_signs or self.y_signs else None, None, 0,
        )  # fmt: skip
        return call, y, scale

    def _answer(self, y: Guarded, scale: Guarded) -> Answer:
        y.check("y")
        scale.check("scales of y")
        return Answer(y.bytes.copy(), scale.view(np.float32).copy() if self.y_signs else None)

    def run_cpu(self, library: Library) -> Answer:
        call, y, scale = self._descriptors()
        c = library.c
        c.bitimpl_conv_workspace.restype = c_int64
        size = c.bitimpl_conv_workspace(call.weight, call.conv, byref(call.x), call.activation)
        assert size >= 0, library.error()
        workspace = Guarded(size)
        arguments = [
            call.weight,
            call.conv,
            byref(call.x),
            call.activation,
            c_void_p(call.bias),
            call.bias_dtype,
            byref(call.y),
        ]
        if call.signs:
            arguments.append(call.signs)
        operator = (
            c.bitimpl_conv_signs
            if call.signs
            else (c.bitimpl_binary_conv if self.case.format == BINARY else c.bitimpl_ternary_conv)
        )
        assert operator(*arguments, c_void_p(workspace.pointer), c_int64(size)) == OK, library.error()
        return self._answer(y, scale)

    def cuda_workspace(self, library: CudaLibrary) -> int:
        """What the library asks for; -1 with a message."""
        call, _, _ = self._descriptors()
        library.cuda.bitimpl_cuda_conv_workspace.restype = c_int64
        return library.cuda.bitimpl_cuda_conv_workspace(byref(call), 0)

    def least_workspace(self, library: CudaLibrary) -> int:
        """The fewest bytes that will do, as the library says where it gets none."""
        call, y, _ = self._descriptors()
        assert library.cuda.bitimpl_cuda_conv(byref(call), 0, None) == INVALID_ARGUMENT
        assert (y.bytes == 0xFF).all(), "a refused call wrote to y"
        found = re.search(
            r"workspace holds 0 bytes at .*, the call needs (\d+): size it with", library.error()
        )
        assert found, library.error()
        return int(found[1])

    def run_cuda(self, library: CudaLibrary, workspace_bytes: int | None = None) -> Answer:
        """``workspace_bytes``: what to pass instead of what the library asks for."""
        call, y, scale = self._descriptors()
        c = library.cuda
        size = self.cuda_workspace(library) if workspace_bytes is None else workspace_bytes
        assert size >= 0, library.error()
        workspace = Guarded(size, offset=1, fill=0xFF)
        call.workspace, call.workspace_bytes = workspace.pointer, size
        assert c.bitimpl_cuda_conv(byref(call), 0, None) == OK, library.error()
        workspace.check("workspace")
        return self._answer(y, scale)


class SignsProblem:
    """A linear layer whose x, y or both are of signs."""

    def __init__(self, case: Case, x_signs: bool, y_signs: bool) -> None:
        self.case, self.x_signs, self.y_signs = case, x_signs, y_signs
        rng = np.random.default_rng([5, case.rows, case.cols, case.tokens])
        self.codes = Guarded.of(pack(case.layout.codes(), case.format, case.group_size), offset=1)
        groups = -(-case.cols // (case.group_size or case.cols))
        scales = rng.uniform(-1.0, 2.0, (case.components, case.rows, groups)).astype(np.float32)
        self.scales, self.scales_shape = Guarded.of(scales), scales.shape
        x = np.round(rng.standard_normal((case.tokens, case.cols)) * 32).astype(np.float32) / 32
        if case.tokens > 1:
            x[-1, 0] = np.nan
        bits = np.packbits(
            np.pad(x >= 0, ((0, 0), (0, 24))), axis=-1, bitorder="little"
        )  # a gap between rows
        self.x = Guarded.of(bits if x_signs else to_dtype(x, case.x_dtype), offset=1 if x_signs else 0)
        self.x_stride = 8 * bits.shape[1] if x_signs else case.cols
        spread = 2.0 * case.cols**0.5
        values = {
            "lower": rng.uniform(-spread, spread, case.rows), "upper": np.full(case.rows, np.inf),
            "least": np.full(case.rows, -np.inf), "most": np.full(case.rows, np.inf),
            "x_scale": np.where(np.arange(case.tokens) % 4 == 3, np.nan, rng.uniform(0.5, 2.0, case.tokens)),
        }  # fmt: skip
        self.held = {name: Guarded.of(value.astype(np.float32)) for name, value in values.items()}

    def _run(self, workspace_of, operator) -> Answer:  # type: ignore[no-untyped-def] - two ctypes functions
        case = self.case
        weight = weight_of(case.layout, self.codes, self.scales, F32, self.scales_shape)
        row = -(-case.rows // 8) + 2 if self.y_signs else case.rows * BYTES[case.y_dtype]
        y = Guarded(case.tokens * row, offset=1 if self.y_signs else 0, fill=0xFF)
        scale = Guarded(4 * case.tokens, fill=0xFF)
        signs = SignsData(
            **{name: buffer.pointer for name, buffer in self.held.items()}, y_scale=scale.pointer
        )
        x_matrix = Matrix(
            self.x.pointer, SIGNS if self.x_signs else case.x_dtype, 0, case.tokens, case.cols, self.x_stride
        )
        y_matrix = Matrix(
            y.pointer, SIGNS if self.y_signs else case.y_dtype, 0, case.tokens, case.rows,
            8 * row if self.y_signs else case.rows,
        )  # fmt: skip
        size = workspace_of(weight)
        assert size >= 0
        workspace = Guarded(size, offset=1, fill=0xFF)
        call = LinearCall(
            ctypes.pointer(weight), x_matrix, y_matrix, None, 0, case.activation, workspace.pointer, size
        )
        operator(call, signs)
        for name, buffer in (("y", y), ("scales of y", scale), ("workspace", workspace)):
            buffer.check(name)
        return Answer(y.bytes.copy(), scale.view(np.float32).copy() if self.y_signs else None)

    def run_cpu(self, library: Library) -> Answer:
        def call_operator(call: LinearCall, signs: SignsData) -> None:
            assert library.c.bitimpl_linear_signs(byref(call), byref(signs)) == OK, library.error()

        library.c.bitimpl_linear_workspace.restype = c_int64
        case = self.case
        return self._run(
            lambda weight: library.c.bitimpl_linear_workspace(
                byref(weight), c_int64(case.tokens), case.activation
            ),
            call_operator,
        )

    def run_cuda(self, library: CudaLibrary) -> Answer:
        def call_operator(call: LinearCall, signs: SignsData) -> None:
            status = library.cuda.bitimpl_cuda_linear_signs(byref(call), byref(signs), 0, None)
            assert status == OK, library.error()

        library.cuda.bitimpl_cuda_linear_signs_workspace.restype = c_int64
        case = self.case
        return self._run(
            lambda weight: library.cuda.bitimpl_cuda_linear_signs_workspace(
                byref(weight), c_int64(case.tokens), case.activation, 0
            ),
            call_operator,
        )


def _strides(shape: tuple[int, ...]) -> list[int]:
    """Of contiguous memory, in elements."""
    return list(itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1]
