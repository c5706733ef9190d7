"""Calling the native operators on torch tensors.

A call costs about what ``nn.Linear`` costs before its arithmetic: the weight is described once
(:class:`PreparedLinear`), the argument memory is reused, and only the output is allocated.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from impl.native import library as native_library
from impl.native.backends import kernel_name, operator_of, record_kernel
from impl.packing import FORMATS, PackedWeight
from impl.tiles import row_tiles

LAYOUT_V1 = 1

#: Dtypes of activations, outputs and bias that the kernels read and write (``bitimpl_dtype``).
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

#: Float activations with more rows, times components, than this are served by decoding tiles of the
#: weight and torch's own matrix product, whose arithmetic then makes up for the decoding. Measured on
#: shapes from 64x192 to 2048x2048: at the limit the kernels of AVX-512 take half the time of the
#: detour, the others as long. NEON has the limit of AVX2, whose vectors are of its kind: not measured.
FLOAT_ROWS = {"avx512": 128, "avx2": 12, "neon_i8mm": 12, "neon": 12, "portable": 2}

#: Scratch kept for reuse by the next call; larger workspaces go back to torch's allocator.
_KEPT_WORKSPACE = 1 << 20


# bitimpl_linear_call, its two matrices written out: one structure filled in one go takes less time than
# ctypes does to convert as many arguments.
LINEAR_CALL = struct.Struct("@PPiiqqqPiiqqqPiiPq")


class _Frame:
    """Argument memory of one call in flight. Frames are taken from a free list and put back, so
    that threads never share one and a call allocates none."""

    __slots__ = ("call", "pointer", "workspace", "workspace_bytes", "workspace_pointer")

    def __init__(self) -> None:
        self.call = ctypes.create_string_buffer(LINEAR_CALL.size)
        self.pointer = ctypes.addressof(self.call)
        self.reserve(0)

    def reserve(self, size: int) -> None:
        self.workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.workspace_pointer = self.workspace.data_ptr()
        self.workspace_bytes = size


_frames: list[_Frame] = []


def describe(weight: PackedWeight) -> native_library.Weight:
    """``bitimpl_weight`` of ``weight``. The caller keeps the tensors alive.

    Raises ValueError for tensors the kernels cannot read.
    """
    codes, scales = weight.codes, weight.scales
    if not codes.is_contiguous():
        raise ValueError(f"packed codes must be contiguous, got stride {codes.stride()}: call .contiguous()")
    component, row, group = scales.stride()
    return native_library.Weight(
        layout=LAYOUT_V1,
        format=FORMATS[weight.format],
        components=weight.components,
        scale_dtype=DTYPES[scales.dtype],
        rows=weight.rows,
        cols=weight.cols,
        group_size=weight.group_size or 0,
        codes=codes.data_ptr(),
        codes_bytes=codes.numel(),
        scales=scales.data_ptr(),
        scale_component_stride=component,
        scale_row_stride=0 if scales.shape[1] == 1 else row,
        scale_group_stride=group,
    )


@functools.cache
def most_float_rows(components: int, generation: int) -> int:  # noqa: ARG001 - the isa of a generation
    """Rows of float activations up to which the kernels in use read the packed bytes themselves."""
    return max(1, FLOAT_ROWS[native_library.isa()] // components)


def strided_rows(x: Tensor, cols: int) -> tuple[Tensor, int]:
    """``x`` [..., cols] as rows that are contiguous in themselves, and the stride between them; copied where
    it cannot be seen so."""
    x = x.reshape(-1, cols)
    if x.stride(1) != 1 or x.stride(0) < cols:
        x = x.contiguous()
    return x, x.stride(0)


class Described:
    """One packed weight and bias as the C interface takes them, on any device.

    Holds the tensors it describes; :meth:`matches` says whether they are still the current ones.

    Raises ValueError for tensors the kernels cannot read.
    """

    __slots__ = (
        "_bias_dtype",
        "_bias_pointer",
        "_codes_pointer",
        "_descriptor",
        "_scales_pointer",
        "_weight_pointer",
        "activation_bits",
        "bias",
        "weight",
    )

    def __init__(self, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> None:
        self.weight, self.bias, self.activation_bits = weight, bias, activation_bits
        self._descriptor = describe(weight)
        self._weight_pointer = ctypes.addressof(self._descriptor)
        self._codes_pointer = weight.codes.data_ptr()
        self._scales_pointer = weight.scales.data_ptr()
        self._bias_pointer = 0
        self._bias_dtype = 0
        if bias is not None:
            if bias.dtype not in DTYPES or bias.shape != (weight.rows,) or not bias.is_contiguous():
                raise ValueError(
                    f"bias must be a contiguous float32, float16 or bfloat16 tensor [{weight.rows}], "
                    f"not {bias.dtype} {list(bias.shape)}"
                )
            if bias.device != weight.codes.device:
                raise ValueError(
                    f"the bias is on {bias.device}, the packed weight on {weight.codes.device}: move one "
                    "with .to()"
                )
            self._bias_pointer = bias.data_ptr()
            self._bias_dtype = DTYPES[bias.dtype]

    def matches(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> bool:
        """Whether these are the tensors, at the addresses, that were described."""
        return (
            codes is self.weight.codes
            and scales is self.weight.scales
            and bias is self.bias
            and codes.data_ptr() == self._codes_pointer
            and scales.data_ptr() == self._scales_pointer
            and (bias is None or bias.data_ptr() == self._bias_pointer)
        )


class DescribedLinear(Described, ABC):
    """What :class:`PreparedLinear` and its like for other devices share."""

    __slots__ = ("_activation", "_served")

    def __init__(self, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> None:
        super().__init__(weight, bias, activation_bits)
        self._activation = activation_bits or 0
        # Of an earlier call: its rows, what else the choice of the kernel hung on, the kernel's name.
        self._served: tuple[int, Any, str] = (-1, -1, "")

    @property
    def kernel(self) -> str:
        """Name of the kernel that served the last call; "" before the first."""
        return self._served[2]

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """y [..., rows] of x [..., cols], in the dtype of x. No autograd."""

    @abstractmethod
    def dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        """Write the weights of rows [begin, end) to float32 ``out`` [end - begin, cols], contiguous."""


def dequantize_on_cpu(described: Described, out: Tensor, begin: int, end: int) -> None:
    """Write the weights of rows [begin, end) to float32 ``out`` [end - begin, cols], contiguous."""
    library = native_library.require()
    cols = described.weight.cols
    if library.dequantize(described._weight_pointer, begin, end, out.data_ptr(), cols) != 0:
        raise library.failed("dequantize")


class PreparedLinear(DescribedLinear):
    """One packed weight and bias on the CPU, described to the library once and called many times.

    Safe to call from several threads.
    """

    __slots__ = ("_call", "_library", "_workspace")

    def __init__(self, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> None:
        self._library = native_library.require()
        super().__init__(weight, bias, activation_bits)
        self._call = self._library.function("linear")
        self._workspace = (-1, -1, -1, 0)  # rows, instruction set generation, threads, bytes

    def __call__(self, x: Tensor) -> Tensor:
        """y [..., rows] of x [..., cols], in the dtype of x. No autograd.

        x: float32, float16 or bfloat16 on the CPU, any leading dimensions and strides; the caller
        has checked dtype and last dimension.
        """
        weight = self.weight
        cols = weight.cols
        rows = x.numel() // cols
        generation = native_library.isa_generation
        if self.activation_bits is None and rows > most_float_rows(weight.components, generation):
            return self._by_tiles(x)
        # A short list of numbers is quicker to make than a slice of x.shape.
        y = x.new_empty((rows, weight.rows) if x.dim() == 2 else (*x.shape[:-1], weight.rows))
        if rows == 0:
            return y
        row_stride = cols
        if not x.is_contiguous():
            x, row_stride = strided_rows(x, cols)
        threads = torch.get_num_threads()
        known_rows, known_generation, known_threads, size = self._workspace
        if known_rows != rows or known_generation != generation or known_threads != threads:
            size = self._library.linear_workspace(self._weight_pointer, rows, self._activation)
            if size < 0:
                raise self._library.failed(f"{weight.format} weights, activation_bits={self.activation_bits}")
            self._workspace = (rows, generation, threads, size)
        try:
            frame = _frames.pop()
        except IndexError:
            frame = _Frame()
        if frame.workspace_bytes < size:
            frame.reserve(size)
        dtype = DTYPES[x.dtype]
        LINEAR_CALL.pack_into(
            frame.call, 0, self._weight_pointer,
            x.data_ptr(), dtype, 0, rows, cols, row_stride,
            y.data_ptr(), dtype, 0, rows, weight.rows, weight.rows,
            self._bias_pointer, self._bias_dtype, self._activation,
            frame.workspace_pointer, frame.workspace_bytes,
        )  # fmt: skip
        status = self._call(frame.pointer)
        if frame.workspace_bytes > _KEPT_WORKSPACE:
            frame.reserve(0)
        _frames.append(frame)
        if status != 0:
            raise self._library.failed(operator_of(weight.format))
        # One tuple, read and replaced whole: threads may call with other numbers of rows.
        known_rows, known_generation, kernel = self._served
        if known_rows != rows or known_generation != generation:
            kernel = self._library.last_kernel().decode()
            self._served = (rows, generation, kernel)
        record_kernel(kernel)
        return y

    def _by_tiles(self, x: Tensor) -> Tensor:
        """Float activations, many rows: decode a tile of the weight, multiply, reuse the tile."""
        weight = self.weight
        flat = x.reshape(-1, weight.cols).to(torch.float32)
        y = flat.new_empty((flat.shape[0], weight.rows))
        tiles = list(row_tiles(weight))
        buffer = flat.new_empty((tiles[0][1], weight.cols))
        with torch.no_grad():
            for begin, end in tiles:
                part = buffer[: end - begin]
                self.dequantize_into(part, begin, end)
                torch.mm(flat, part.t(), out=y[:, begin:end])
            if self.bias is not None:
                y += self.bias
        kernel = kernel_name(weight, None, f"decode+mm/{native_library.isa()}")
        self._served = (-1, -1, kernel)
        record_kernel(kernel)
        return y.to(x.dtype).view(*x.shape[:-1], weight.rows)

    def dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        """Write the weights of rows [begin, end) to float32 ``out`` [end - begin, cols], contiguous."""
        dequantize_on_cpu(self, out, begin, end)
