"""Calling the CUDA convolutions on torch tensors, as :mod:`impl.native.cuda.calls` does linear operators."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor

from impl.geometry import ConvGeometry
from impl.native.convolution import DescribedConv, Sizes
from impl.native.cuda import library as cuda_library
from impl.native.cuda.calls import apart, architecture_name, decoded_dtype, dequantize_on_cuda
from impl.native.cuda.library import ConvCall
from impl.native.library import Image
from impl.packing import PackedWeight

_POINTER = struct.Struct("@P")
_X, _Y = ConvCall.x.offset, ConvCall.y.offset
_WORKSPACE = ConvCall.workspace.offset


class PreparedCudaConv(DescribedConv):
    """A packed convolution on a CUDA device.

    Whether the device was found to compute what it should is for the caller to know
    (:func:`impl.native.uses_native`).
    """

    __slots__ = ("_index", "_library")

    def __init__(
        self,
        weight: PackedWeight,
        geometry: ConvGeometry,
        bias: Tensor | None,
        activation_bits: int | None,
    ) -> None:
        self._library = cuda_library.require()
        super().__init__(weight, geometry, bias, activation_bits)
        self._index = self._library.index_of(weight.codes)

    def describe(self, x: Image, y: Image) -> tuple[Any, int]:
        call = ConvCall(
            self._weight_pointer, ctypes.addressof(self._geometry), x, y, self._bias_pointer or None,
            self._bias_dtype, self.activation_bits, None, None, 0,
        )  # fmt: skip
        size: int = self._library.conv_workspace(ctypes.addressof(call), self._index)
        if size < 0:
            raise self._library.failed(self._operator)
        call.workspace_bytes = size
        return bytes(call), size

    def workspace_bytes(self, x: Tensor) -> int:
        """Bytes of workspace for such an input. Raises NativeError where the kernel chosen refuses it."""
        return Sizes(x, self).workspace_bytes

    def run(self, x: Tensor, y: Tensor, sizes: Sizes) -> str:
        library = self._library
        if library.index_of(x) != self._index:
            raise apart(x, self.weight)
        # Back to torch's allocator on return: what is next in this stream may have it.
        workspace = x.new_empty(sizes.workspace_bytes, dtype=torch.uint8)
        call = ctypes.create_string_buffer(sizes.tail, len(sizes.tail))
        _POINTER.pack_into(call, _X, x.data_ptr())
        _POINTER.pack_into(call, _Y, y.data_ptr())
        _POINTER.pack_into(call, _WORKSPACE, workspace.data_ptr())
        if library.conv(call, self._index, library.stream(self._index)) != 0:
            raise library.failed(self._operator)
        kernel: str = sizes.kernel or library.last_kernel().decode()
        return kernel

    def choice(self) -> tuple[Any, ...]:
        return self._library.choice

    def dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        dequantize_on_cuda(self._library, self._index, self, out, begin, end)

    def float_dtype(self, x: Tensor) -> torch.dtype:
        return decoded_dtype(x)

    def architecture(self) -> str:
        return architecture_name(self._library, self._index)
