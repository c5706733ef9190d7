"""Calling the CUDA operators on torch tensors.

Every call goes into the current stream of the weight's device and takes its output and workspace from
torch's allocator; nothing waits. So calls can be captured into a CUDA graph.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from impl.native.backends import kernel_name, operator_of, record_kernel
from impl.native.calls import DTYPES, LAYOUT_V1, LINEAR_CALL, Described, DescribedLinear, strided_rows
from impl.native.cuda import library as cuda_library
from impl.native.library import Weight
from impl.packing import FORMATS, PackedWeight, codes_bytes
from impl.tiles import row_tiles

#: Float activations with more rows, times components, than this are served by decoding tiles of the
#: weight and torch's own matrix product. Where the two take as long was not measured yet.
FLOAT_ROWS = 16


class PreparedCudaLinear(DescribedLinear):
    """One packed weight and bias on a CUDA device, described to the library once and called many times.

    Safe to call from several threads and streams. Whether the device was found to compute what it should
    is for the caller to know (:func:`impl.native.uses_native`).
    """

    __slots__ = ("_float_rows", "_index", "_library", "_workspace")

    def __init__(self, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> None:
        self._library = cuda_library.require()
        super().__init__(weight, bias, activation_bits)
        self._index = self._library.index_of(weight.codes)
        self._float_rows = max(1, FLOAT_ROWS // weight.components)
        self._workspace: tuple[int, Any, int] = (-1, None, 0)  # rows, choice of kernels, bytes

    def __call__(self, x: Tensor) -> Tensor:
        """y [..., rows] of x [..., cols], in the dtype of x. No autograd.

        x: float32, float16 or bfloat16 on the weight's device, any leading dimensions and strides; the
        caller has checked dtype and last dimension. Float activations in large batches are multiplied by
        torch: bfloat16 in bfloat16, others in float32.
        """
        weight, library = self.weight, self._library
        if library.index_of(x) != self._index:
            raise apart(x, weight)
        cols = weight.cols
        rows = x.numel() // cols
        if self.activation_bits is None and rows > self._float_rows and not library.selection.name:
            return self._by_tiles(x)
        y = x.new_empty((rows, weight.rows) if x.dim() == 2 else (*x.shape[:-1], weight.rows))
        if rows == 0:
            return y
        row_stride = cols
        if not x.is_contiguous():
            x, row_stride = strided_rows(x, cols)
        choice = library.choice
        known_rows, known_choice, size = self._workspace
        if known_rows != rows or known_choice != choice:
            size = self.workspace_bytes(rows)
            self._workspace = (rows, choice, size)
        # Back to torch's allocator on return: what is next in this stream may have it.
        workspace = x.new_empty(size, dtype=torch.uint8)
        dtype = DTYPES[x.dtype]
        call = LINEAR_CALL.pack(
            self._weight_pointer,
            x.data_ptr(), dtype, 0, rows, cols, row_stride,
            y.data_ptr(), dtype, 0, rows, weight.rows, weight.rows,
            self._bias_pointer, self._bias_dtype, self._activation,
            workspace.data_ptr(), size,
        )  # fmt: skip
        if library.linear(call, self._index, library.stream(self._index)) != 0:
            raise library.failed(operator_of(weight.format))
        known_rows, known_choice, kernel = self._served
        if known_rows != rows or known_choice != choice:
            kernel = library.last_kernel().decode()
            self._served = (rows, choice, kernel)
        record_kernel(kernel)
        return y

    def workspace_bytes(self, rows: int) -> int:
        """Bytes of scratch for so many rows. Raises NativeError where the kernel chosen refuses the call."""
        size: int = self._library.linear_workspace(self._weight_pointer, rows, self._activation, self._index)
        if size < 0:
            raise self._library.failed(
                f"{self.weight.format} weights, activation_bits={self.activation_bits}"
            )
        return size

    def _by_tiles(self, x: Tensor) -> Tensor:
        """Float activations, many rows: decode a tile of the weight, multiply, reuse the tile."""
        weight = self.weight
        dtype = decoded_dtype(x)
        flat = x.reshape(-1, weight.cols).to(dtype)
        y = flat.new_empty((flat.shape[0], weight.rows))
        tiles = list(row_tiles(weight))
        buffer = flat.new_empty((tiles[0][1], weight.cols))
        with torch.no_grad():
            bias = None if self.bias is None else self.bias.to(dtype)
            for begin, end in tiles:
                part = buffer[: end - begin]
                self.dequantize_into(part, begin, end)
                if bias is None:
                    torch.mm(flat, part.t(), out=y[:, begin:end])
                else:
                    torch.addmm(bias[begin:end], flat, part.t(), out=y[:, begin:end])
        kernel = kernel_name(weight, None, f"decode+mm/{architecture_name(self._library, self._index)}")
        self._served = (-1, None, kernel)
        record_kernel(kernel)
        return y.to(x.dtype).view(*x.shape[:-1], weight.rows)

    def dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        """Write the weights of rows [begin, end) to ``out`` [end - begin, cols], contiguous, of any dtype of
        :data:`~impl.native.calls.DTYPES`."""
        dequantize_on_cuda(self._library, self._index, self, out, begin, end)


def dequantize_on_cuda(
    library: cuda_library.CudaLibrary, index: int, described: Described, out: Tensor, begin: int, end: int
) -> None:
    """Write the weights of rows [begin, end) to ``out`` [end - begin, cols], contiguous, of any dtype of
    :data:`~impl.native.calls.DTYPES`."""
    status = library.dequantize(
        described._weight_pointer, begin, end, out.data_ptr(), DTYPES[out.dtype], described.weight.cols,
        index, library.stream(index),
    )  # fmt: skip
    if status != 0:
        raise library.failed("dequantize")


def apart(x: Tensor, weight: PackedWeight) -> ValueError:
    """The error of an input that is not on the weight's device."""
    return ValueError(
        f"the input is on {x.device}, the packed weight on {weight.codes.device}: move one with .to()"
    )


def decoded_dtype(x: Tensor) -> torch.dtype:
    """What a weight is decoded to where torch multiplies it by floats ``x``."""
    # float16 could lose small scales; bfloat16 has the range of float32.
    return torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32


def architecture_name(library: cuda_library.CudaLibrary, index: int) -> str:
    """``sm_90``, as kernel names end."""
    return f"sm_{library.describe(index).architecture}"


def pack(codes: Tensor, format: str, group_size: int | None) -> Tensor:
    """uint8 [codes_bytes(...)] of int8 ``codes`` [components, rows, cols], whose values the caller checked.

    Raises NativeError where there is no library or it refuses.
    """
    library = cuda_library.require()
    components, rows, cols = codes.shape
    codes = codes.contiguous()
    out = codes.new_empty(codes_bytes(format, components, rows, cols), dtype=torch.uint8)
    index = library.index_of(codes)
    status = library.function("cuda_pack")(
        FORMATS[format], components, rows, cols, group_size or 0, codes.data_ptr(),
        out.data_ptr(), out.numel(), index, library.stream(index),
    )  # fmt: skip
    if status != 0:
        raise library.failed("pack")
    return out


def unpack(
    packed: Tensor, format: str, components: int, rows: int, cols: int, group_size: int | None
) -> Tensor:
    """int8 codes [components, rows, cols] of ``packed``, whose bytes the caller checked.

    Raises NativeError where there is no library or it refuses.
    """
    library = cuda_library.require()
    packed = packed.contiguous()
    weight = Weight(
        layout=LAYOUT_V1,
        format=FORMATS[format],
        components=components,
        scale_dtype=DTYPES[torch.float32],  # there are no scales: codes are all that is asked for
        rows=rows,
        cols=cols,
        group_size=group_size or 0,
        codes=packed.data_ptr(),
        codes_bytes=packed.numel(),
    )
    out = packed.new_empty((components, rows, cols), dtype=torch.int8)
    index = library.index_of(packed)
    if library.function("cuda_unpack")(
        ctypes.addressof(weight), out.data_ptr(), index, library.stream(index)
    ):
        raise library.failed("unpack")
    return out
