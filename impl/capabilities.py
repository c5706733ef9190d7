"""What can run here, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from impl import native
from impl.quantizers import ACTIVATION_BITS

#: Activations that operators take, each of them all, as they stand in kernel names.
_ACTIVATIONS = tuple(map(native.activation_name, (None, *ACTIVATION_BITS)))
_FORMATS = {
    "binary_linear": ("binary",),
    "ternary_linear": ("two_bit", "base3"),
    "binary_conv": ("binary",),
    "ternary_conv": ("two_bit", "base3"),
}


@dataclass(frozen=True)
class Kernel:
    """One combination that can be served."""

    operator: str
    format: str
    activation: str
    """``float``, ``sign``, ``ternary``, ``int8`` or ``int16``."""
    device: str
    isa: str
    """Instruction set of a native kernel (``sm_90`` and the like on CUDA devices), or ``torch`` for the
    reference."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU, and whether the kernels serve it."""

    index: int
    name: str
    architecture: str
    """Compute capability, such as ``9.0``; "" where the kernels cannot use the device."""
    activations: tuple[str, ...]
    """Activations that kernels of linear layers serve."""
    why_not: str
    """Why no kernel serves this device; "" where one does."""
    self_check: str
    """``passed``, ``not made`` (it is made with the first call), or what was found wrong and is left out."""


@dataclass(frozen=True)
class Cutlass:
    """The kernel made of NVIDIA's CUTLASS, for the layers that bitorch_engine runs on it."""

    version: str | None
    """Of the headers it was built with, such as ``4.2.0``; None where it was not built."""
    why_not: str
    """Why those layers use other kernels (not built, or not used of itself before a GPU was seen to run it)
    and what would help; "" where they use it, but on devices whose ``self_check`` names it."""


@dataclass(frozen=True)
class Cuda:
    """The library of CUDA kernels, if any, and the devices it can serve."""

    library: str | None
    """Path of the library, or None."""
    why_not: str
    """Why no CUDA kernel can serve (not built, no device, an old driver) and what would help; "" where one
    can."""
    abi: int | None
    toolkit: str | None
    """The CUDA it was built with, such as ``13.0``."""
    architectures: tuple[str, ...]
    """Architectures it holds code for."""
    kernels: tuple[str, ...]
    """Kernels of the operators that were compiled in."""
    unproven: dict[str, str]
    """Those that do not serve of themselves, and why."""
    cutlass: Cutlass
    devices: tuple[CudaDevice, ...]


@dataclass(frozen=True)
class Capabilities:
    """The native libraries, if any, and all kernels that can be called."""

    library: str | None
    """Path of the native library for processors, or None."""
    why_not: str
    """Why no native kernel for processors can serve (no library, an unusable ``BITIMPL_ISA``) and what would
    help; "" where one can."""
    abi: int | None
    isa: str | None
    """Instruction set in use, or None where no native kernel can serve."""
    isas: tuple[str, ...]
    """Instruction sets that this machine can use, best first."""
    threads: int | None
    """Threads the native kernels may use."""
    backend: str
    """Choice in force: ``auto``, ``native`` or ``torch``."""
    kernels: tuple[Kernel, ...]
    cuda: Cuda

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def capabilities() -> Capabilities:
    """What can run on this machine. Loads the native libraries on first use; computes nothing."""
    library, why_not = native.library_path(), native.why_not()
    isas = native.supported_isas() if library else ()
    isa = None
    if library:
        try:
            isa = native.isa()
        except native.NativeError as error:
            why_not = str(error)
    cuda = _cuda()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    served = [("cpu", name) for name in isas if isa is not None] + [(device, "torch") for device in devices]
    return Capabilities(
        library=str(library) if library else None,
        why_not=why_not,
        abi=native.ABI_VERSION if library else None,
        isa=isa,
        isas=isas,
        threads=native.threads() if library else None,
        backend=native.current_backend(),
        kernels=(*_kernels(served), *_cuda_kernels(cuda)),
        cuda=cuda,
    )


def _kernels(served: list[tuple[str, str]]) -> Iterator[Kernel]:
    for operator, formats in _FORMATS.items():
        for format in formats:
            for activation in _ACTIVATIONS:
                for device, isa in served:
                    yield Kernel(operator, format, activation, device, isa)


def _cuda_kernels(cuda: Cuda) -> Iterator[Kernel]:
    served = {
        (operator, format, activation, device.architecture)
        for operator, formats in _FORMATS.items()
        for format in formats
        for activation in _ACTIVATIONS
        for device in cuda.devices
        if not _why_not_on_cuda(device.index, operator, format, activation)
    }
    for operator, format, activation, architecture in sorted(served):
        yield Kernel(operator, format, activation, "cuda", f"sm_{architecture.replace('.', '')}")


def _why_not_on_cuda(index: int, operator: str, format: str, activation: str) -> str:
    family = operator.rsplit("_", 1)[-1]
    operation = f"float_{family}" if activation == "float" else family
    return native.cuda.why_not(index, operation, format, check=False)


def _cuda() -> Cuda:
    library = native.cuda.load()
    if isinstance(library, native.NativeError):
        return Cuda(None, str(library), None, None, (), (), {}, Cutlass(None, str(library)), ())
    devices: tuple[CudaDevice, ...] = ()
    why_not = ""
    try:
        devices = tuple(_cuda_device(library, index) for index in range(library.count()))
    except native.NativeError as error:
        why_not = str(error)
    if devices and all(device.why_not for device in devices):
        why_not = "; ".join(device.why_not for device in devices)
    return Cuda(
        library=str(library.path),
        why_not=why_not,
        abi=native.cuda.ABI_VERSION,
        toolkit=library.toolkit,
        architectures=library.architectures,
        kernels=library.kernels,
        unproven=dict(library.unproven),
        cutlass=_cutlass(library),
        devices=devices,
    )


def _cutlass(library: native.cuda.CudaLibrary) -> Cutlass:
    if not library.cutlass:
        return Cutlass(
            None,
            "the CUDA kernels were built without CUTLASS: build them again with BITIMPL_CUTLASS=on, or "
            "beside its headers (CUTLASS_DIR, or the Python package nvidia-cutlass)",
        )
    return Cutlass(library.cutlass, library.unproven.get("cutlass", ""))


def _cuda_device(library: native.cuda.CudaLibrary, index: int) -> CudaDevice:
    reasons = {
        activation: _why_not_on_cuda(index, "ternary_linear", "base3", activation)
        for activation in _ACTIVATIONS
    }
    served = tuple(activation for activation, reason in reasons.items() if not reason)
    wrong = native.cuda.found_wrong(index)
    check = "not made" if wrong is None else "passed"
    if wrong:
        check = "; ".join(f"{kernel}: {reason}" for kernel, reason in wrong.items())
    try:
        number = library.describe(index).architecture
        architecture = f"{number // 10}.{number % 10}"
    except native.NativeError:
        architecture = ""
    why_not = "" if served else reasons["int8"]
    return CudaDevice(index, library.name_of(index), architecture, served, why_not, check)
