"""Native calls whose input, output or both are signs (``bitimpl_linear_signs``, ``bitimpl_conv_signs``)."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from impl.geometry import ConvGeometry
from impl.native import library as native_library
from impl.native.backends import record_kernel
from impl.native.calls import DTYPES, LINEAR_CALL, Described, strided_rows
from impl.native.convolution import describe_geometry, describe_image
from impl.native.library import Image, SignsData
from impl.packing import PackedWeight
from impl.signs import Signs, Thresholds

_SIGNS = 3  # BITIMPL_SIGNS

Matrix = tuple[int, ...]  # the fields of bitimpl_matrix


class DescribedSigns(Described, ABC):
    """One packed weight with its bias, geometry (None: a linear layer) and thresholds (None: y is of floats),
    described once and called many times.

    Holds the tensors it describes; :meth:`matches` says whether they are still the current ones. Safe to
    call from several threads.
    """

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        geometry: ConvGeometry | None,
        thresholds: Thresholds | None,
        activation_bits: int,
    ) -> None:
        super().__init__(weight, bias, activation_bits)
        self.geometry, self.thresholds = geometry, thresholds
        self._conv = None if geometry is None else describe_geometry(geometry)
        self._intervals = _addresses(thresholds)

    @abstractmethod
    def run_linear(self, x: Matrix, y: Matrix, signs: SignsData) -> None:
        """The linear operator on fields of ``bitimpl_matrix``. Raises NativeError where it is refused."""

    @abstractmethod
    def run_conv(self, x: Image, y: Image, signs: SignsData) -> None:
        """The convolution of an image. Raises NativeError where it is refused."""

    @abstractmethod
    def kernel(self) -> str:
        """Name of what served this thread's last call."""

    def gives(self, thresholds: Thresholds | None) -> bool:
        """Whether these are the intervals, at the addresses, that were described."""
        return self._intervals == _addresses(thresholds)

    def __call__(self, x: Tensor | Signs, dtype: torch.dtype) -> Tensor | Signs:
        """y of x: :class:`Signs` where there are thresholds, else a contiguous tensor in ``dtype``.

        x of signs or of float32, float16 or bfloat16, on the weight's device; the caller has checked shapes
        and dtypes.
        """
        if isinstance(x, Signs) and x.bits.stride(-1) != 1:
            x = x._replace(bits=x.bits.contiguous())
        scale = x.scale.contiguous() if isinstance(x, Signs) else None
        y = self._empty_like(x, dtype)
        signs = SignsData(
            None if scale is None else scale.data_ptr(),
            *self._intervals,
            y.scale.data_ptr() if isinstance(y, Signs) else None,
        )
        if self.geometry is None:
            (x_matrix, x_kept), (y_matrix, _) = _matrix(x), _matrix(y)
            self.run_linear(x_matrix, y_matrix, signs)
            del x_kept  # until here
        else:
            self.run_conv(_image(x), _image(y), signs)
        record_kernel(self.kernel())
        return y

    def _empty_like(self, x: Tensor | Signs, dtype: torch.dtype) -> Tensor | Signs:
        rows = self.weight.rows
        taken = x.bits if isinstance(x, Signs) else x
        device = taken.device
        if self.geometry is None:
            leading = tuple(taken.shape[:-1])
            if self.thresholds is None:
                return torch.empty((*leading, rows), dtype=dtype, device=device)
            return _empty_signs(leading, leading, rows, device)
        spatial = tuple(taken.shape[1:-1] if isinstance(x, Signs) else taken.shape[2:])
        out = self.geometry.output_size(spatial)
        if self.thresholds is None:
            return torch.empty((taken.shape[0], rows, *out), dtype=dtype, device=device)
        return _empty_signs((taken.shape[0], *out), (taken.shape[0],), rows, device)


class PreparedSigns(DescribedSigns):
    """Signs on the CPU."""

    def __init__(
        self,
        weight: PackedWeight,
        bias: Tensor | None,
        geometry: ConvGeometry | None,
        thresholds: Thresholds | None,
        activation_bits: int,
    ) -> None:
        self._library = native_library.require()
        super().__init__(weight, bias, geometry, thresholds, activation_bits)

    def run_linear(self, x: Matrix, y: Matrix, signs: SignsData) -> None:
        size: int = self._library.linear_workspace(self._weight_pointer, x[3], self.activation_bits)
        if size < 0:
            raise self._library.failed("linear_signs")
        workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
        call = LINEAR_CALL.pack(
            self._weight_pointer, *x, *y, self._bias_pointer, self._bias_dtype, self.activation_bits,
            workspace.data_ptr(), size,
        )  # fmt: skip
        if self._library.function("linear_signs")(call, ctypes.addressof(signs)) != 0:
            raise self._library.failed("linear_signs")

    def run_conv(self, x: Image, y: Image, signs: SignsData) -> None:
        assert self._conv is not None
        weight, conv = self._weight_pointer, ctypes.addressof(self._conv)
        size: int = self._library.conv_workspace(weight, conv, ctypes.addressof(x), self.activation_bits)
        if size < 0:
            raise self._library.failed("conv_signs")
        workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
        status = self._library.function("conv_signs")(
            weight, conv, ctypes.addressof(x), self.activation_bits, self._bias_pointer, self._bias_dtype,
            ctypes.addressof(y), ctypes.addressof(signs), workspace.data_ptr(), size,
        )  # fmt: skip
        if status != 0:
            raise self._library.failed("conv_signs")

    def kernel(self) -> str:
        return self._library.last_kernel().decode()


def _addresses(thresholds: Thresholds | None) -> list[int | None]:
    return [None] * 4 if thresholds is None else [part.data_ptr() for part in thresholds]


def _empty_signs(
    places: tuple[int, ...], scales: tuple[int, ...], channels: int, device: torch.device
) -> Signs:
    bits = torch.empty((*places, -(-channels // 8)), dtype=torch.uint8, device=device)
    return Signs(bits, torch.empty(scales, dtype=torch.float32, device=device), channels)


def _matrix(values: Tensor | Signs) -> tuple[Matrix, Tensor]:
    """The fields of ``bitimpl_matrix`` of the rows of ``values``, and the memory it describes."""
    tensor = values.bits if isinstance(values, Signs) else values
    flat, stride = strided_rows(tensor, tensor.shape[-1])
    if isinstance(values, Signs):
        return (flat.data_ptr(), _SIGNS, 0, flat.shape[0], values.channels, 8 * stride), flat
    return (flat.data_ptr(), DTYPES[flat.dtype], 0, *flat.shape, stride), flat


def _image(values: Tensor | Signs) -> Image:
    """``bitimpl_image`` of ``values``. The caller keeps the tensors alive."""
    if isinstance(values, Tensor):
        return describe_image(values)
    bits = values.bits
    leading = 3 - (bits.dim() - 2)
    return Image(
        bits.data_ptr(), _SIGNS, 0, bits.shape[0], values.channels,
        (1,) * leading + tuple(bits.shape[1:-1]),
        8 * bits.stride(0), 1, (0,) * leading + tuple(8 * step for step in bits.stride()[1:-1]),
    )  # fmt: skip
