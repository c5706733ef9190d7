"""Finding, loading and asking ``libbitimpl_cuda.so``.

The library is a plain C interface (``csrc/include/impl_cuda.h``), loaded with ctypes by the first call
that could use it. It is looked for at ``BITIMPL_CUDA_LIBRARY_PATH`` (a file or a directory) and, where
that is not set, beside the library for processors and in ``impl/_native/``.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impl.native import library as cpu
from impl.native.cuda.proven import NEED_PROOF, unproven
from impl.native.library import NativeError, SharedLibrary, explicit_path, installed_paths

ABI_VERSION = 2
LIBRARY_NAME = "libbitimpl_cuda.so"
LIBRARY_VARIABLE = "BITIMPL_CUDA_LIBRARY_PATH"


class Description(ctypes.Structure):
    """``bitimpl_cuda_device``."""

    _fields_ = (
        ("architecture", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int64),
    )
    architecture: int
    multiprocessors: int
    shared_bytes: int


class ConvCall(ctypes.Structure):
    """``bitimpl_cuda_conv_call``."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("conv", ctypes.c_void_p),
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("bias", ctypes.c_void_p),
        ("bias_dtype", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("signs", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
    )


_INT32, _INT64, _POINTER, _TEXT = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p


class _Selection(threading.local):
    """The kernels that this thread has chosen, and prefers, by name; "": the library's own choice."""

    name: str = ""
    preferred: str = ""


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "last_error": (_TEXT, ()),
    "cuda_abi_version": (ctypes.c_int, ()),
    "cuda_toolkit": (ctypes.c_int, ()),
    "cuda_architectures": (_TEXT, ()),
    "cuda_cutlass": (_TEXT, ()),
    "cuda_devices": (ctypes.c_int, ()),
    "cuda_describe": (ctypes.c_int, (_INT32, ctypes.POINTER(Description))),
    "cuda_kernels": (_TEXT, ()),
    "cuda_select_kernel": (ctypes.c_int, (_TEXT,)),
    "cuda_prefer_kernel": (ctypes.c_int, (_TEXT,)),
    "cuda_trust": (ctypes.c_int, (_TEXT,)),
    "cuda_avoid": (ctypes.c_int, (_TEXT, _INT32)),
    "cuda_last_kernel": (_TEXT, ()),
    "cuda_linear_workspace": (_INT64, (_POINTER, _INT64, _INT32, _INT32)),
    "cuda_linear": (ctypes.c_int, (_POINTER, _INT32, _POINTER)),
    "cuda_linear_signs_workspace": (_INT64, (_POINTER, _INT64, _INT32, _INT32)),
    "cuda_linear_signs": (ctypes.c_int, (_POINTER, _POINTER, _INT32, _POINTER)),
    "cuda_conv_workspace": (_INT64, (_POINTER, _INT32)),
    "cuda_conv": (ctypes.c_int, (_POINTER, _INT32, _POINTER)),
    "cuda_pack": (
        ctypes.c_int,
        (_INT32, _INT32, _INT64, _INT64, _INT64, _POINTER, _POINTER, _INT64, _INT32, _POINTER),
    ),
    "cuda_unpack": (ctypes.c_int, (_POINTER, _POINTER, _INT32, _POINTER)),
    "cuda_dequantize": (
        ctypes.c_int,
        (_POINTER, _INT64, _INT64, _POINTER, _INT32, _INT64, _INT32, _POINTER),
    ),
    "cuda_quantize_weight_workspace": (_INT64, (_INT64, _INT32)),
    "cuda_quantize_weight": (ctypes.c_int, (_POINTER, _INT32, _POINTER)),
    "cuda_apply_mask": (ctypes.c_int, (_POINTER, _POINTER, _INT32, _POINTER)),
    "cuda_input_grad_workspace": (_INT64, (_POINTER, _INT64)),
    "cuda_input_grad": (
        ctypes.c_int,
        (_POINTER, _POINTER, _POINTER, _POINTER, _INT64, _INT32, _POINTER),
    ),
}


class CudaLibrary(SharedLibrary):
    """The kernels for CUDA devices, and what torch knows of devices and streams.

    Devices go by torch's index, which is the CUDA runtime's.
    """

    signatures = _SIGNATURES
    abi = ("cuda_abi_version", ABI_VERSION)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # On the way of every call, hence attributes.
        self.linear = self.function("cuda_linear")
        self.linear_workspace = self.function("cuda_linear_workspace")
        self.last_kernel = self.function("cuda_last_kernel")
        self.conv = self.function("cuda_conv")
        self.conv_workspace = self.function("cuda_conv_workspace")
        self.dequantize = self.function("cuda_dequantize")
        self.unproven = unproven(self.kernels, path)
        """Kernels that are not used of themselves, and why."""
        for name in set(NEED_PROOF) & (set(self.kernels) - set(self.unproven)):
            self.function("cuda_trust")(name.encode())
        self.selection = _Selection()
        self.generation = 0
        """Counts the changes to the library's own choice of kernels."""

    # ---- what was built -----------------------------------------------------------------------

    @property
    def toolkit(self) -> str:
        """The CUDA it was built with, such as ``13.0``; ``0.0`` for the emulator."""
        number: int = self.function("cuda_toolkit")()
        return f"{number // 1000}.{number % 1000 // 10}"

    @property
    def architectures(self) -> tuple[str, ...]:
        """Architectures that it holds code for, such as ``80`` and ``90a``."""
        return _names(self.function("cuda_architectures")())

    @property
    def kernels(self) -> tuple[str, ...]:
        """Kernels of the operators that were compiled in."""
        return _names(self.function("cuda_kernels")())

    @property
    def cutlass(self) -> str:
        """Version of the CUTLASS that its kernel ``cutlass`` was built with; "" where it was not."""
        version: bytes = self.function("cuda_cutlass")()
        return version.decode()

    def digest(self) -> str:
        """SHA-256 of the file."""
        return _digest(self.path)

    # ---- devices ------------------------------------------------------------------------------

    def count(self) -> int:
        """Devices that can be used. Raises NativeError, with the reason, where there is none."""
        count: int = self.function("cuda_devices")()
        if count == 0:
            raise self.failed("no CUDA device can be used")
        self.check_torch()
        return count

    def describe(self, index: int) -> Description:
        """What device ``index`` is. Raises NativeError where the kernels cannot use it."""
        found = Description()
        if self.function("cuda_describe")(index, ctypes.byref(found)) != 0:
            raise self.failed(f"cuda:{index} cannot be used")
        return found

    def check_torch(self) -> None:
        """NativeError where torch cannot use the devices that the driver has."""
        if not torch.cuda.is_available():
            raise NativeError(f"torch {torch.__version__} finds no CUDA device: install a CUDA build of it")

    def name_of(self, index: int) -> str:
        """Name of device ``index``, such as ``NVIDIA H200``."""
        return torch.cuda.get_device_name(index)

    def driver(self) -> str:
        """Version of the driver."""
        try:
            return Path("/sys/module/nvidia/version").read_text().strip()
        except OSError:
            return str(torch._C._cuda_getDriverVersion())  # type: ignore[attr-defined]  # not in torch's stubs

    def index_of(self, tensor: Tensor) -> int:
        """Index of the device that ``tensor`` lies on."""
        return tensor.get_device()

    def device(self, index: int) -> torch.device:
        """torch's device of that index."""
        return torch.device("cuda", index)

    def stream(self, index: int) -> int:
        """The current stream of device ``index``, as a ``cudaStream_t``."""
        stream: int = torch._C._cuda_getCurrentRawStream(index)
        return stream

    def capturing(self, index: int) -> bool:
        """Whether the current stream of device ``index`` records a CUDA graph."""
        with torch.cuda.device(index):
            return torch.cuda.is_current_stream_capturing()

    # ---- choice of kernels ----------------------------------------------------------------------

    def select(self, name: str) -> None:
        """Serve this thread's calls by kernel ``name``; "": by the library's own choice."""
        if self.function("cuda_select_kernel")(name.encode()) != 0:
            raise self.failed(f"cannot select CUDA kernel {name!r}")
        self.selection.name = name

    def prefer(self, name: str) -> None:
        """Try kernel ``name`` first for this thread's calls; "": none."""
        if self.function("cuda_prefer_kernel")(name.encode()) != 0:
            raise self.failed(f"cannot prefer CUDA kernel {name!r}")
        self.selection.preferred = name

    @property
    def choice(self) -> tuple[str, str, int]:
        """What decides on kernels in this thread: results that depend on it hold while it stays."""
        return self.selection.name, self.selection.preferred, self.generation

    def avoid(self, name: str, index: int) -> None:
        """Leave kernel ``name`` out of the library's own choice on device ``index``."""
        if self.function("cuda_avoid")(name.encode(), index) != 0:
            raise self.failed(f"cannot leave out CUDA kernel {name!r}")
        self.generation += 1


def _names(text: bytes) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.decode().split(",") if name.strip())


@functools.cache
def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _places() -> Iterator[Path]:
    beside = cpu.library_path()
    if beside is not None:
        yield beside.parent / LIBRARY_NAME
    yield from installed_paths(LIBRARY_NAME)


def _find() -> Path:
    """Where the library is. Raises NativeError, naming where it was looked for."""
    explicit = explicit_path(LIBRARY_VARIABLE, LIBRARY_NAME)
    if explicit is not None:
        return explicit
    for path in _places():
        if path.is_file():
            return path
    raise NativeError(
        f"the CUDA kernels were not built (no {LIBRARY_NAME} in impl/_native): install the CUDA toolkit "
        f"(nvcc) and run `pip install .` again on a machine with a GPU or with BITIMPL_CUDA=on, or set "
        f"{LIBRARY_VARIABLE} to a CMake build directory"
    )


_loaded: CudaLibrary | NativeError | None = None


def load() -> CudaLibrary | NativeError:
    """The library, or why it cannot be had. Looked for once."""
    global _loaded
    if _loaded is None:
        try:
            _loaded = CudaLibrary(_find())
        except NativeError as error:
            _loaded = error
    return _loaded


def require() -> CudaLibrary:
    """The library. Raises NativeError where it cannot be had."""
    library = load()
    if isinstance(library, NativeError):
        raise NativeError(str(library))
    return library


def asked_for() -> bool:
    """Whether the environment names a library: then one that cannot be had is an error."""
    return bool(os.environ.get(LIBRARY_VARIABLE))
