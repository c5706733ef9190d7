"""The CUDA kernels as the emulator runs them, behind the calls that the cases of ``kernel_cases`` make.

Device memory is host memory there, so the same buffers, guard bytes and references serve.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from kernel_library import OK, REPOSITORY, Library, LinearCall, Matrix, Weight, build

LIBRARY_NAME = "libbitimpl_cuda_emulated.so"


class _Calls:
    """``bitimpl_linear_workspace`` and ``bitimpl_ternary_linear`` with the arguments they have on the CPU."""

    def __init__(self, c: ctypes.CDLL) -> None:
        self._c = c
        self.device = 0

    def bitimpl_last_error(self) -> bytes:
        return self._c.bitimpl_last_error()

    def bitimpl_last_kernel(self) -> bytes:
        return self._c.bitimpl_cuda_last_kernel()

    def bitimpl_linear_workspace(self, weight: Any, tokens: int, activation: int) -> int:
        return self._c.bitimpl_cuda_linear_workspace(weight, tokens, activation, self.device)

    def bitimpl_ternary_linear(
        self,
        weight: Any,
        x: Any,
        activation: int,
        bias: int | None,
        bias_dtype: int,
        y: Any,
        workspace: int,
        size: int,
    ) -> int:
        call = LinearCall(
            ctypes.pointer(weight._obj), x._obj, y._obj, bias, bias_dtype, activation, workspace, size
        )
        return self._c.bitimpl_cuda_linear(byref(call), self.device, None)

    bitimpl_binary_linear = bitimpl_ternary_linear


class CudaLibrary(Library):
    """``c`` answers the CPU's calls; ``cuda`` is the library as it is."""

    cuda: ctypes.CDLL

    def kernels(self) -> list[str]:
        return self.cuda.bitimpl_cuda_kernels().decode().split(",")

    def select_kernel(self, name: str | None) -> None:
        status = self.cuda.bitimpl_cuda_select_kernel(None if name is None else name.encode())
        assert status == OK, self.error()

    def emulate(self, architecture: int, multiprocessors: int, device: int = 0) -> None:
        self.cuda.bitimpl_emulate_device(device, architecture, multiprocessors)

    def order(self, seed: int) -> None:
        """Another order of threads and blocks from here on."""
        self.cuda.bitimpl_emulate_order(seed)


def load_emulated(path: Path) -> CudaLibrary:
    c = ctypes.CDLL(str(path))
    for name in ("last_error", "cuda_last_kernel", "cuda_kernels", "cuda_architectures"):
        getattr(c, f"bitimpl_{name}").restype = c_char_p
        getattr(c, f"bitimpl_{name}").argtypes = []
    c.bitimpl_cuda_select_kernel.argtypes = [c_char_p]
    c.bitimpl_cuda_linear_workspace.restype = c_int64
    c.bitimpl_cuda_linear_workspace.argtypes = [POINTER(Weight), c_int64, c_int32, c_int32]
    c.bitimpl_cuda_linear.restype = c_int
    c.bitimpl_cuda_linear.argtypes = [POINTER(LinearCall), c_int32, c_void_p]
    c.bitimpl_cuda_quantize_int8.argtypes = [POINTER(Matrix), c_void_p, c_void_p, c_int32, c_void_p]
    c.bitimpl_emulate_device.restype = None
    c.bitimpl_emulate_order.argtypes = [c_uint64]
    c.bitimpl_emulate_order.restype = None
    library = CudaLibrary(path, _Calls(c))  # type: ignore[arg-type] - the calls that cases make
    object.__setattr__(library, "cuda", c)
    return library


def emulated_path(directory: Path) -> Path:
    """The library that BITIMPL_EMULATED_LIBRARY names; else built in ``directory``, once for whoever asks."""
    named = os.environ.get("BITIMPL_EMULATED_LIBRARY")
    if not named:
        return build_emulated(directory / "cuda-emulated")
    path = Path(named)
    path = path / LIBRARY_NAME if path.is_dir() else path
    assert path.is_file(), f"BITIMPL_EMULATED_LIBRARY={named}: no {LIBRARY_NAME} there"
    return path


def build_emulated(directory: Path, *options: str) -> Path:
    """Builds csrc for the emulator in ``directory``; the path of the library."""
    build(directory, "-DBITIMPL_EMULATOR=ON", *options)
    path = directory / "emulator" / LIBRARY_NAME
    assert path.is_file(), f"the build of {REPOSITORY / 'csrc'} left no {LIBRARY_NAME}"
    return path
