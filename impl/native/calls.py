"""Calling the native operators on torch tensors.

A call costs about what ``nn.Linear`` costs before its arithmetic: the weight is described once
(:class:`PreparedLinear`), the argument memory is reused, and only the output is allocated.
"""

from __future__ import annotations

import ctypes
import functools
import struct

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


# bitimpl_linear_call, its two matrices written out. One structure filled in one go costs half of what
# ctypes takes to convert as many arguments.
_CALL = struct.Struct("@PPiiqqqPiiqqqPiiPq")


class _Frame:
    """Argument memory of one call in flight. Frames are taken from a free list and put back, so
    that threads never share one and a call allocates none."""

    __slots__ = ("call", "pointer", "workspace", "workspace_bytes", "workspace_pointer")

    def __init__(self) -> None:
        self.call = ctypes.create_string_buffer(_CALL.size)
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


class PreparedLinear:
    """One packed weight and bias, described to the library once and called many times.

    Holds the tensors it describes; :meth:`matches` says whether they are still the current ones.
    Safe to call from several threads.
    """

    __slots__ = (
        "_activation",
        "_bias_dtype",
        "_bias_pointer",
        "_call",
        "_codes_pointer",
        "_descriptor",
        "_float_bias",
        "_library",
        "_scales_pointer",
        "_served",
        "_weight_pointer",
        "_workspace",
        "activation_bits",
        "bias",
        "weight",
    )

    def __init__(self, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> None:
        self._library = native_library.require()
        self.weight, self.bias, self.activation_bits = weight, bias, activation_bits
        self._descriptor = describe(weight)
        self._weight_pointer = ctypes.addressof(self._descriptor)
        self._codes_pointer = weight.codes.data_ptr()
        self._scales_pointer = weight.scales.data_ptr()
        self._call = self._library.function("linear")
        self._activation = activation_bits or 0
        self._bias_pointer = 0
        self._bias_dtype = 0
        if bias is not None:
            if bias.dtype not in DTYPES or bias.shape != (weight.rows,) or not bias.is_contiguous():
                raise ValueError(
                    f"bias must be a contiguous float32, float16 or bfloat16 tensor [{weight.rows}], "
                    f"not {bias.dtype} {list(bias.shape)}"
                )
            self._bias_pointer = bias.data_ptr()
            self._bias_dtype = DTYPES[bias.dtype]
        self._workspace = (-1, -1, -1, 0)  # rows, instruction set generation, threads, bytes
        self._served: tuple[int, int, str] = (-1, -1, "")  # rows, generation, name of the kernel

    @property
    def kernel(self) -> str:
        """Name of the kernel that served the last call; "" before the first."""
        return self._served[2]

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
        # Sizes of a short list of numbers cost half of what a slice of x.shape costs.
        y = x.new_empty((rows, weight.rows) if x.dim() == 2 else (*x.shape[:-1], weight.rows))
        if rows == 0:
            return y
        row_stride = cols
        if not x.is_contiguous():
            x = x.reshape(rows, cols)
            row_stride = x.stride(0)
            if x.stride(1) != 1 or row_stride < cols:
                x = x.contiguous()
                row_stride = cols
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
        _CALL.pack_into(
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
                self._dequantize_into(part, begin, end)
                torch.mm(flat, part.t(), out=y[:, begin:end])
            if self.bias is not None:
                y += self.bias
        kernel = kernel_name(weight, None, f"decode+mm/{native_library.isa()}")
        self._served = (-1, -1, kernel)
        record_kernel(kernel)
        return y.to(x.dtype).view(*x.shape[:-1], weight.rows)

    def _dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        status = self._library.dequantize(self._weight_pointer, begin, end, out.data_ptr(), self.weight.cols)
        if status != 0:
            raise self._library.failed("dequantize")


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> Tensor:
    """y [..., rows] of x [..., cols] by the native kernels, in the dtype of x. No autograd.

    Raises NativeError where there is no library or it refuses, ValueError for tensors it cannot
    read. Layers keep a :class:`PreparedLinear` instead.
    """
    return PreparedLinear(weight, bias, activation_bits)(x)


def dequantize(weight: PackedWeight, begin: int, end: int) -> Tensor:
    """Float32 weights [end - begin, cols] of rows [begin, end) by the native kernels."""
    prepared = PreparedLinear(weight, None, None)
    out = weight.scales.new_empty((end - begin, weight.cols), dtype=torch.float32)
    if end > begin:
        prepared._dequantize_into(out, begin, end)
    return out
