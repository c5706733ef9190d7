"""Calling the native convolutions on torch tensors: what devices share, and the CPU's."""

from __future__ import annotations

import ctypes
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from impl import tiles
from impl.convolution import convolve, pad
from impl.geometry import ConvGeometry, from_matrix
from impl.native import library as native_library
from impl.native.backends import kernel_name, operator_of, record_kernel
from impl.native.calls import DTYPES, Described, dequantize_on_cpu
from impl.packing import PackedWeight

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_SPATIAL = 3  # dimensions of the native descriptors; fewer get leading ones


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Memory format of a convolution's result for input ``x`` [batch, channels, *spatial]:
    channels-last where x is that and not contiguous as well (one channel or one position)."""
    layout = _CHANNELS_LAST.get(x.dim() - 2)
    if layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
        return layout
    return torch.contiguous_format


def _check_input(x: Tensor, weight: PackedWeight, geometry: ConvGeometry) -> None:
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() != geometry.dims + 2:
        raise ValueError(
            f"x must be [batch, channels, {geometry.dims} spatial dimensions], got {list(x.shape)}"
        )
    channels = x.shape[1]
    if channels % geometry.groups or weight.rows % geometry.groups:
        raise ValueError(
            f"{channels} input and {weight.rows} output channels in {geometry.groups} groups: "
            "groups must divide both"
        )
    if weight.cols != geometry.taps * (channels // geometry.groups):
        raise ValueError(
            f"the weight has {weight.cols} columns, a kernel {geometry.kernel} over {channels} channels in "
            f"{geometry.groups} groups takes {geometry.taps * (channels // geometry.groups)}"
        )
    if weight.group_size is not None and weight.group_size < weight.cols:
        raise ValueError(
            f"group_size is {weight.group_size}: convolutions take one scale a row or tensor, use None"
        )


def _empty_result(
    x: Tensor, weight: PackedWeight, geometry: ConvGeometry, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    size = geometry.output_size(tuple(x.shape[2:]))
    return torch.empty(
        (x.shape[0], weight.rows, *size), dtype=dtype, device=device, memory_format=memory_format_of(x)
    )


# ---- descriptors ----------------------------------------------------------------------------


def _spatial(values: tuple[int, ...], leading: int) -> tuple[int, ...]:
    return (leading,) * (_SPATIAL - len(values)) + tuple(values)


def describe_image(x: Tensor) -> native_library.Image:
    """``bitimpl_image`` of x [batch, channels, *spatial]. The caller keeps the tensor alive."""
    return native_library.Image(
        x.data_ptr(), DTYPES[x.dtype], 0, x.shape[0], x.shape[1],
        _spatial(tuple(x.shape[2:]), 1), x.stride(0), x.stride(1), _spatial(x.stride()[2:], 0),
    )  # fmt: skip


def describe_geometry(geometry: ConvGeometry) -> native_library.Conv:
    """``bitimpl_conv`` of ``geometry``."""
    return native_library.Conv(
        geometry.groups,
        _spatial(geometry.kernel, 1),
        _spatial(geometry.stride, 1),
        _spatial(geometry.dilation, 1),
        _spatial(tuple(before for before, _ in geometry.padding), 0),
        _spatial(tuple(after for _, after in geometry.padding), 0),
        int(geometry.padding_value),
        0,
    )


class Sizes:
    """What all calls with inputs of one shape, layout and dtype share."""

    __slots__ = ("kernel", "shape", "stride", "tail", "workspace_bytes")

    def __init__(self, x: Tensor, prepared: DescribedConv) -> None:
        _check_input(x, prepared.weight, prepared.geometry)
        y = _empty_result(x, prepared.weight, prepared.geometry, x.dtype, "meta")
        self.shape, self.stride = y.shape, y.stride()
        self.tail, self.workspace_bytes = prepared.describe(describe_image(x), describe_image(y))
        self.kernel = ""  # known after the first call


class DescribedConv(Described, ABC):
    """A packed weight with its geometry and bias, described once and called many times.

    ``activation_bits``: None (float: the weight is decoded a tile of rows at a time and torch convolves), 1,
    2, 8 or 16. Safe to call from several threads.
    """

    __slots__ = ("_geometry", "_known", "_operator", "geometry")

    def __init__(
        self,
        weight: PackedWeight,
        geometry: ConvGeometry,
        bias: Tensor | None,
        activation_bits: int | None,
    ) -> None:
        super().__init__(weight, bias, activation_bits)
        self.geometry = geometry
        self._operator = operator_of(weight.format, "conv")
        self._geometry = describe_geometry(geometry)
        self._known: tuple[Any, Sizes] | None = None

    @abstractmethod
    def describe(self, x: native_library.Image, y: native_library.Image) -> tuple[Any, int]:
        """What :meth:`run` takes for such images but their addresses, and the bytes of workspace."""

    @abstractmethod
    def run(self, x: Tensor, y: Tensor, sizes: Sizes) -> str:
        """Compute ``y``; the name of the kernel that served. Raises NativeError where it is refused."""

    @abstractmethod
    def choice(self) -> tuple[Any, ...]:
        """What else than the input the workspace and the kernel hang on."""

    @abstractmethod
    def dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        """Write the weights of rows [begin, end) to ``out`` [end - begin, cols], contiguous."""

    @abstractmethod
    def float_dtype(self, x: Tensor) -> torch.dtype:
        """What float activations are multiplied in."""

    @abstractmethod
    def architecture(self) -> str:
        """Of the device, as kernel names end."""

    def __call__(self, x: Tensor) -> Tensor:
        """y [batch, out_channels, *output] of x [batch, channels, *spatial], in the dtype of x. No autograd.

        x: float32, float16 or bfloat16 on the weight's device, any strides. y is contiguous, or
        channels-last where :func:`memory_format_of` says so.
        """
        if self.activation_bits is None:
            return self._by_tiles(x)
        key = (x.shape, x.stride(), x.dtype, *self.choice())
        if self._known is not None and self._known[0] == key:
            sizes = self._known[1]
        else:
            sizes = Sizes(x, self)
            self._known = key, sizes
        y = torch.empty_strided(sizes.shape, sizes.stride, dtype=x.dtype, device=x.device)
        kernel = self.run(x, y, sizes)
        if not sizes.kernel:
            sizes.kernel = kernel
        record_kernel(kernel)
        return y

    def _by_tiles(self, x: Tensor) -> Tensor:
        """Float activations: decode a tile of the weight, convolve, go on to the next."""
        weight, geometry, bias = self.weight, self.geometry, self.bias
        _check_input(x, weight, geometry)
        dtype = self.float_dtype(x)
        y = _empty_result(x, weight, geometry, dtype, x.device)
        padded = pad(x.to(dtype), geometry)
        channels = x.shape[1] // geometry.groups
        with torch.no_grad():
            for first, last, begin, end in _group_tiles(weight, geometry.groups):
                decoded = padded.new_empty((end - begin, weight.cols))
                self.dequantize_into(decoded, begin, end)
                part = None if bias is None else bias[begin:end].to(dtype)
                y[:, begin:end] = convolve(
                    padded[:, first * channels : last * channels],
                    from_matrix(decoded, geometry),
                    replace(geometry, groups=last - first),
                    part,
                )
        record_kernel(kernel_name(weight, None, f"decode+conv/{self.architecture()}", "conv"))
        return y.to(x.dtype)


# Where an image begins: its address, all that differs from one call to the next of the same sizes.
_HEAD = struct.Struct("@P")


class PreparedConv(DescribedConv):
    """A packed convolution on the CPU."""

    __slots__ = ("_function", "_library", "_pointers")

    def __init__(
        self,
        weight: PackedWeight,
        geometry: ConvGeometry,
        bias: Tensor | None,
        activation_bits: int | None,
    ) -> None:
        self._library = native_library.require()
        super().__init__(weight, geometry, bias, activation_bits)
        self._function = self._library.function(self._operator)
        self._pointers = self._weight_pointer, ctypes.addressof(self._geometry)

    def describe(self, x: native_library.Image, y: native_library.Image) -> tuple[Any, int]:
        size: int = self._library.conv_workspace(*self._pointers, ctypes.addressof(x), self.activation_bits)
        if size < 0:
            raise self._library.failed(self._operator)
        return (bytes(x)[_HEAD.size :], bytes(y)[_HEAD.size :]), size

    def run(self, x: Tensor, y: Tensor, sizes: Sizes) -> str:
        workspace = torch.empty(sizes.workspace_bytes, dtype=torch.uint8, device="cpu")
        x_tail, y_tail = sizes.tail
        status = self._function(
            *self._pointers, _HEAD.pack(x.data_ptr()) + x_tail, self.activation_bits,
            self._bias_pointer, self._bias_dtype, _HEAD.pack(y.data_ptr()) + y_tail,
            workspace.data_ptr(), sizes.workspace_bytes,
        )  # fmt: skip
        if status != 0:
            raise self._library.failed(self._operator)
        kernel: str = sizes.kernel or self._library.last_kernel().decode()
        return kernel

    def choice(self) -> tuple[Any, ...]:
        return native_library.isa_generation, torch.get_num_threads()

    def dequantize_into(self, out: Tensor, begin: int, end: int) -> None:
        dequantize_on_cpu(self, out, begin, end)

    def float_dtype(self, x: Tensor) -> torch.dtype:  # noqa: ARG002 - what the CPU decodes to, for any input
        return torch.float32

    def architecture(self) -> str:
        return native_library.isa()


def _group_tiles(weight: PackedWeight, groups: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of convolution groups and of rows to decode together: whole groups, or part of one."""
    rows = weight.rows // groups
    most = max(1, tiles.TILE_ELEMENTS // weight.cols)
    if rows >= most:
        for group in range(groups):
            for begin in range(group * rows, (group + 1) * rows, most):
                yield group, group + 1, begin, min(begin + most, (group + 1) * rows)
        return
    step = most // rows
    for group in range(0, groups, step):
        end = min(group + step, groups)
        yield group, end, group * rows, end * rows
