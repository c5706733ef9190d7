"""The kernels of training with int8 products: latent weights into codes, the gradient towards the input,
and the estimator's mask on the gradient towards the weight.

What :mod:`impl.native.cuda.calls` says of streams, allocation and waiting holds here too.
"""

from __future__ import annotations

import ctypes
import struct

import torch
from torch import Tensor

from impl.checks import group_count
from impl.native.calls import DTYPES, describe
from impl.native.cuda import library as cuda_library
from impl.packing import FORMATS, PackedWeight, codes_bytes

#: Numbers of the rules that the kernel knows (``bitimpl_latent_rule``): ``sign`` for binary weights, the
#: others for ternary ones.
RULES = {"absmean": 0, "absmax": 1, "twn": 2, "sign": 3}

_MATRIX = struct.Struct("@Piiqqq")
_LATENT_CALL = struct.Struct("@PiiqqqiiiiqPqPPPq")


def quantize_weight(
    weight: Tensor, rule: str, *, per_tensor: bool, group_size: int | None, format: str, mask: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Packed codes, float32 scales [1, rows or 1, groups], and uint8 [rows, ceil(cols / 8)] with a bit 1
    where |w| <= 1 (None unless ``mask``), of the latent ``weight`` [rows, cols].

    ``rule`` is one of :data:`RULES`. Raises NativeError where there is no library or it refuses.
    """
    library = cuda_library.require()
    rows, cols = weight.shape
    weight = _rows_of(weight)
    index = library.index_of(weight)
    codes = weight.new_empty(codes_bytes(format, 1, rows, cols), dtype=torch.uint8)
    groups = group_count(cols, group_size)
    scales = weight.new_empty((1, 1 if per_tensor else rows, groups), dtype=torch.float32)
    inside = weight.new_empty((rows, -(-cols // 8)), dtype=torch.uint8) if mask else None
    size = library.function("cuda_quantize_weight_workspace")(rows, per_tensor)
    if size < 0:
        raise library.failed("quantize_weight")
    workspace = weight.new_empty(size, dtype=torch.uint8)
    call = _LATENT_CALL.pack(
        *_fields(weight), RULES[rule], per_tensor, FORMATS[format], 0, group_size or 0,
        codes.data_ptr(), codes.numel(), scales.data_ptr(), 0 if inside is None else inside.data_ptr(),
        workspace.data_ptr(), size,
    )  # fmt: skip
    if library.function("cuda_quantize_weight")(call, index, library.stream(index)) != 0:
        raise library.failed("quantize_weight")
    return codes, scales, inside


def input_grad(grad: Tensor, weight: PackedWeight) -> Tensor:
    """Gradient [M, cols] towards the input, of the gradient [M, rows] of the output, in its dtype.

    Raises NativeError where there is no library or it refuses.
    """
    library = cuda_library.require()
    grad = _rows_of(grad)
    index = library.index_of(grad)
    tokens = grad.shape[0]
    out = grad.new_empty((tokens, weight.cols))
    if tokens == 0:
        return out
    described = describe(weight)
    pointer = ctypes.addressof(described)
    size = library.function("cuda_input_grad_workspace")(pointer, tokens)
    if size < 0:
        raise library.failed("input_grad")
    workspace = grad.new_empty(size, dtype=torch.uint8)
    status = library.function("cuda_input_grad")(
        pointer, _MATRIX.pack(*_fields(grad)), _MATRIX.pack(*_fields(out)), workspace.data_ptr(), size,
        index, library.stream(index),
    )  # fmt: skip
    if status != 0:
        raise library.failed("input_grad")
    return out


def apply_mask(grad: Tensor, mask: Tensor) -> None:
    """Set ``grad`` [rows, cols], contiguous, to 0 in place where ``mask`` [rows, ceil(cols / 8)] holds 0.

    Raises NativeError where there is no library or it refuses.
    """
    library = cuda_library.require()
    index = library.index_of(grad)
    status = library.function("cuda_apply_mask")(
        mask.data_ptr(), _MATRIX.pack(*_fields(grad)), index, library.stream(index)
    )
    if status != 0:
        raise library.failed("apply_mask")


def _rows_of(matrix: Tensor) -> Tensor:
    """``matrix`` with the columns of a row side by side."""
    fits = matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]
    return matrix if fits else matrix.contiguous()


def _fields(matrix: Tensor) -> tuple[int, int, int, int, int, int]:
    """``bitimpl_matrix``."""
    return matrix.data_ptr(), DTYPES[matrix.dtype], 0, matrix.shape[0], matrix.shape[1], matrix.stride(0)
