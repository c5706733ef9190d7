"""Which device's kernels serve a tensor, and the calls that go to either."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from impl.geometry import ConvGeometry
from impl.native import cuda
from impl.native.backends import choice_made, current_backend, serves_cpu, warn_of_reference
from impl.native.calls import DescribedLinear, PreparedLinear
from impl.native.convolution import DescribedConv, PreparedConv
from impl.native.cuda import training
from impl.native.library import NativeError
from impl.native.signs import DescribedSigns, PreparedSigns
from impl.packing import PackedWeight
from impl.packing.layout import CODECS, check_digits
from impl.signs import Thresholds

#: How a packed weight is prepared for calls, by the type of its device.
PREPARED: dict[str, type[DescribedLinear]] = {"cpu": PreparedLinear, "cuda": cuda.PreparedCudaLinear}

#: The same of convolutions, and of layers that take or give signs.
PREPARED_CONV: dict[str, type[DescribedConv]] = {"cpu": PreparedConv, "cuda": cuda.PreparedCudaConv}
PREPARED_SIGNS: dict[str, type[DescribedSigns]] = {"cpu": PreparedSigns, "cuda": cuda.PreparedCudaSigns}

#: Kernels of training with int8 products, by the type of the device they serve.
TRAINING: dict[str, ModuleType] = {"cuda": training}


def uses_native(device: torch.device, operation: str = "linear", format: str = "base3") -> bool:
    """Whether native kernels serve ``operation`` on ``device`` under the current backend.

    ``operation``: "linear" (quantised activations), "float_linear", "linear_signs" (signs in or out), the
    same of "conv", "decode", "pack", "unpack" or "training" (int8 products), with weights of ``format``.

    Raises NativeError where they were asked for explicitly (``native``, or a library path that
    leads nowhere) and cannot. Under ``auto`` the reason is warned of once.
    """
    if device.type == "cpu":
        return serves_cpu()
    if device.type == "cuda":
        index: int | None = device.index
        if index is None:
            index = torch.cuda.current_device() if torch.cuda.is_available() else 0
        return serves_cuda(index, operation, format)
    return _refused(f"there are no native kernels for {device.type} tensors")


_cuda_answers: dict[tuple[str | None, int, str, str], bool] = {}


def serves_cuda(index: int, operation: str, format: str) -> bool:
    """:func:`uses_native` of CUDA device ``index``, for callers that count nanoseconds."""
    key = (choice_made(), index, operation, format)
    answer = _cuda_answers.get(key)
    if answer is None:
        answer = _serves_cuda(index, operation, format)
        if current_backend() == "torch" or cuda.settled(index):
            _cuda_answers[key] = answer
    return answer


def serves(x: Tensor, codes: Tensor, operation: str, format: str) -> bool:
    """Whether native kernels serve ``operation`` on ``x`` with packed ``codes``, both plain tensors."""
    if x.is_cpu:
        return codes.is_cpu and serves_cpu()
    if not (x.is_cuda and codes.is_cuda):
        return False
    index = codes.get_device()
    return x.get_device() == index and serves_cuda(index, operation, format)


def _serves_cuda(index: int, operation: str, format: str) -> bool:
    if current_backend() == "torch":
        return False
    reason = cuda.why_not(index, operation, format)
    if not reason:
        return True
    if cuda.asked_for() and not cuda.available():
        raise NativeError(reason)
    return _refused(reason)


def _refused(reason: str) -> bool:
    choice = current_backend()
    if choice == "native":
        raise NativeError(f"backend 'native' was asked for, but {reason}")
    if choice == "auto":
        warn_of_reference(reason)
    return False


def training_kernels(device: torch.device, format: str) -> ModuleType | None:
    """The kernels of int8 training (:mod:`impl.native.cuda.training`) that serve ``device``; None: the torch
    reference does, as on a CPU."""
    kernels = TRAINING.get(device.type)
    return kernels if kernels is not None and uses_native(device, "training", format) else None


def operation_of(activation_bits: int | None, family: str = "linear") -> str:
    """The operation of a layer, as :func:`uses_native` names it; ``family`` is "linear" or "conv"."""
    return f"float_{family}" if activation_bits is None else family


_Kind = TypeVar("_Kind")


def _kind_for(weight: PackedWeight, kinds: Mapping[str, type[_Kind]]) -> type[_Kind]:
    device = weight.codes.device.type
    if device not in kinds:
        raise NativeError(f"there are no native kernels for {device} tensors")
    return kinds[device]


def prepare_linear(weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> DescribedLinear:
    """The weight described to the library of its device, for many calls.

    Raises NativeError where there is no such library, ValueError for tensors it cannot read.
    """
    return _kind_for(weight, PREPARED)(weight, bias, activation_bits)


def prepare_conv(
    weight: PackedWeight, geometry: ConvGeometry, bias: Tensor | None, activation_bits: int | None
) -> DescribedConv:
    """:func:`prepare_linear` of a convolution."""
    return _kind_for(weight, PREPARED_CONV)(weight, geometry, bias, activation_bits)


def prepare_signs(
    weight: PackedWeight,
    bias: Tensor | None,
    geometry: ConvGeometry | None,
    thresholds: Thresholds | None,
    activation_bits: int,
) -> DescribedSigns:
    """:func:`prepare_linear` of a linear layer, or (``geometry``) a convolution, that takes signs, gives them
    (``thresholds``) or both."""
    kind = _kind_for(weight, PREPARED_SIGNS)
    return kind(weight, bias, geometry, thresholds, activation_bits)


def conv(
    x: Tensor,
    weight: PackedWeight,
    geometry: ConvGeometry,
    bias: Tensor | None,
    activation_bits: int | None,
) -> Tensor:
    """y [batch, out_channels, *output] of x [batch, channels, *spatial] by the native kernels. No autograd.

    ``activation_bits`` None (float activations), 1, 2, 8 or 16. y has the dtype of x and is contiguous, or
    channels-last where :func:`~impl.native.convolution.memory_format_of` says so. Raises NativeError where
    there is no library or it refuses, ValueError for tensors it cannot read. Layers keep what
    :func:`prepare_conv` gives instead.
    """
    return prepare_conv(weight, geometry, bias, activation_bits)(x)


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None, activation_bits: int | None) -> Tensor:
    """y [..., rows] of x [..., cols] by the native kernels, in the dtype of x. No autograd.

    Raises NativeError where there is no library or it refuses, ValueError for tensors it cannot
    read. Layers keep what :func:`prepare_linear` gives instead.
    """
    return prepare_linear(weight, bias, activation_bits)(x)


class _CudaCodec:
    """Packing by the CUDA kernels, where they serve (:data:`impl.packing.layout.CODECS`)."""

    def pack(self, codes: Tensor, format: str, group_size: int | None) -> Tensor | None:
        if not uses_native(codes.device, "pack", format):
            return None
        return cuda.pack(codes, format, group_size)

    def unpack(
        self, packed: Tensor, format: str, components: int, rows: int, cols: int, group_size: int | None
    ) -> Tensor | None:
        if not uses_native(packed.device, "unpack", format):
            return None
        check_digits(packed, format)
        return cuda.unpack(packed, format, components, rows, cols, group_size)


CUDA_CODEC = _CudaCodec()
CODECS["cuda"] = CUDA_CODEC


def dequantize(weight: PackedWeight, begin: int, end: int) -> Tensor:
    """Float32 weights [end - begin, cols] of rows [begin, end) by the native kernels."""
    out = weight.scales.new_empty((end - begin, weight.cols), dtype=torch.float32)
    if end > begin:
        prepare_linear(weight, None, None).dequantize_into(out, begin, end)
    return out
