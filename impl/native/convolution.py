"""Calling the native convolutions on torch tensors."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from impl import tiles
from impl.convolution import convolve, pad
from impl.geometry import ConvGeometry, from_matrix
from impl.native import library as native_library
from impl.native.backends import kernel_name, operator_of, record_kernel
from impl.native.calls import DTYPES, PreparedLinear, describe
from impl.packing import PackedWeight

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_SPATIAL = 3  # dimensions of the native descriptors; fewer get leading ones


def conv(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None,
    activation_bits: int | None,
) -> Tensor:
    """y [batch, out_channels, *output] of x [batch, channels, *spatial], in the dtype of x. No autograd.

    x: float32, float16 or bfloat16 on the CPU, any strides. ``activation_bits`` None (float: the
    weight is decoded a tile of rows at a time and torch convolves), 1, 8 or 16. y is contiguous, or
    channels-last where :func:`memory_format_of` says so.

    Raises NativeError where there is no library or it refuses, ValueError for tensors it cannot read.
    """
    _check(x, weight, geometry, bias)
    if activation_bits is None:
        return _float_conv(x, weight, geometry, bias)
    return _integer_conv(x, weight, geometry, bias, activation_bits)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Memory format of a convolution's result for input ``x`` [batch, channels, *spatial]:
    channels-last where x is that and not contiguous as well (one channel or one position)."""
    layout = _CHANNELS_LAST.get(x.dim() - 2)
    if layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous():
        return layout
    return torch.contiguous_format


def _check(x: Tensor, weight: PackedWeight, geometry: ConvGeometry, bias: Tensor | None) -> None:
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
    if bias is not None and (
        bias.dtype not in DTYPES or bias.shape != (weight.rows,) or not bias.is_contiguous()
    ):
        raise ValueError(
            f"bias must be a contiguous float32, float16 or bfloat16 tensor [{weight.rows}], "
            f"not {bias.dtype} {list(bias.shape)}"
        )


def _empty_result(x: Tensor, weight: PackedWeight, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
    size = geometry.output_size(tuple(x.shape[2:]))
    return torch.empty(
        (x.shape[0], weight.rows, *size), dtype=dtype, device=x.device, memory_format=memory_format_of(x)
    )


# ---- integer activations --------------------------------------------------------------------


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


@functools.lru_cache(maxsize=256)
def _described(geometry: ConvGeometry) -> native_library.Conv:
    """:func:`describe_geometry` once for each geometry, to be read only: layers call with the same one."""
    return describe_geometry(geometry)


def _integer_conv(
    x: Tensor, weight: PackedWeight, geometry: ConvGeometry, bias: Tensor | None, activation_bits: int
) -> Tensor:
    library = native_library.require()
    operator = operator_of(weight.format, "conv")
    y = _empty_result(x, weight, geometry, x.dtype)
    descriptor, conv, image, result = (
        describe(weight),
        _described(geometry),
        describe_image(x),
        describe_image(y),
    )
    arguments = [ctypes.addressof(part) for part in (descriptor, conv, image)]
    size = library.conv_workspace(*arguments, activation_bits)
    if size < 0:
        raise library.failed(operator)
    workspace = torch.empty(size, dtype=torch.uint8, device="cpu")
    status = library.function(operator)(
        *arguments, activation_bits,
        None if bias is None else bias.data_ptr(), 0 if bias is None else DTYPES[bias.dtype],
        ctypes.addressof(result), workspace.data_ptr(), size,
    )  # fmt: skip
    if status != 0:
        raise library.failed(operator)
    record_kernel(library.last_kernel().decode())
    return y


# ---- float activations ----------------------------------------------------------------------


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


def _float_conv(x: Tensor, weight: PackedWeight, geometry: ConvGeometry, bias: Tensor | None) -> Tensor:
    """Float activations: decode a tile of the weight, convolve in float32, go on to the next."""
    decoder = PreparedLinear(weight, None, None)
    y = _empty_result(x, weight, geometry, torch.float32)
    padded = pad(x.to(torch.float32), geometry)
    channels = x.shape[1] // geometry.groups
    for first, last, begin, end in _group_tiles(weight, geometry.groups):
        decoded = padded.new_empty((end - begin, weight.cols))
        decoder._dequantize_into(decoded, begin, end)
        part = None if bias is None else bias[begin:end].to(torch.float32)
        y[:, begin:end] = convolve(
            padded[:, first * channels : last * channels],
            from_matrix(decoded, geometry),
            replace(geometry, groups=last - first),
            part,
        )
    record_kernel(kernel_name(weight, None, f"decode+conv/{native_library.isa()}", "conv"))
    return y.to(x.dtype)
