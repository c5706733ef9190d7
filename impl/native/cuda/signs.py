"""CUDA calls whose input, output or both are signs (``bitimpl_cuda_linear_signs``, ``bitimpl_cuda_conv``)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from impl.geometry import ConvGeometry
from impl.native.calls import LINEAR_CALL
from impl.native.cuda import library as cuda_library
from impl.native.cuda.library import ConvCall
from impl.native.library import Image, SignsData
from impl.native.signs import DescribedSigns, Matrix
from impl.packing import PackedWeight
from impl.signs import Thresholds


class PreparedCudaSigns(DescribedSigns):
    """Signs on a CUDA device, all in the current stream. The caller has checked that tensors lie there."""

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        geometry: ConvGeometry | None,
        thresholds: Thresholds | None,
        activation_bits: int,
    ) -> None:
        self._library = cuda_library.require()
        super().__init__(weight, bias, geometry, thresholds, activation_bits)
        self._index = self._library.index_of(weight.codes)

    def _workspace(self, size: int, operation: str) -> Tensor:
        if size < 0:
            raise self._library.failed(operation)
        return self.weight.codes.new_empty(size, dtype=torch.uint8)

    def run_linear(self, x: Matrix, y: Matrix, signs: SignsData) -> None:
        library, index = self._library, self._index
        size: int = library.function("cuda_linear_signs_workspace")(
            self._weight_pointer, x[3], self.activation_bits, index
        )
        workspace = self._workspace(size, "linear_signs")
        call = LINEAR_CALL.pack(
            self._weight_pointer, *x, *y, self._bias_pointer, self._bias_dtype, self.activation_bits,
            workspace.data_ptr(), size,
        )  # fmt: skip
        status = library.function("cuda_linear_signs")(
            call, ctypes.addressof(signs), index, library.stream(index)
        )
        if status != 0:
            raise library.failed("linear_signs")

    def run_conv(self, x: Image, y: Image, signs: SignsData) -> None:
        assert self._conv is not None
        library, index = self._library, self._index
        call = ConvCall(
            self._weight_pointer, ctypes.addressof(self._conv), x, y, self._bias_pointer or None,
            self._bias_dtype, self.activation_bits, ctypes.addressof(signs), None, 0,
        )  # fmt: skip
        size: int = library.conv_workspace(ctypes.addressof(call), index)
        workspace = self._workspace(size, "conv_signs")
        call.workspace, call.workspace_bytes = workspace.data_ptr(), size
        if library.conv(ctypes.addressof(call), index, library.stream(index)) != 0:
            raise library.failed("conv_signs")

    def kernel(self) -> str:
        return self._library.last_kernel().decode()
