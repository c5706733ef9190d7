"""ctypes over csrc/include/impl.h for the tests: thin, with guard bytes around every buffer.

This binding is the tests' own on purpose: it calls the shared library as any C program would and
does not go through ``impl``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_void_p,
)
from dataclasses import dataclass
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY_NAME = "libbitimpl_cpu.so"
#: The program that runs cases outside of Python, under sanitizers and between guard pages.
DRIVER_SOURCES = [
    Path(__file__).parent / name
    for name in ("sanitize_driver.cpp", "sanitize_conv.cpp", "sanitize_signs.cpp", "guard_probe.cpp")
]

OK, INVALID_ARGUMENT, UNSUPPORTED = 0, 1, 2
BINARY, TWO_BIT, BASE3 = 1, 2, 3
F32, F16, BF16 = 0, 1, 2
FLOAT, SIGN, TERNARY, INT8, INT16 = 0, 1, 2, 8, 16

#: What the processor must have for an instruction set, in the words of /proc/cpuinfo, by family.
FAMILY_FLAGS = {
    "x86_64": {
        "avx512": {
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512_vnni",
            "avx512vbmi",
            "avx512_vpopcntdq",
        },
        "avx2": {"avx2", "fma", "f16c", "popcnt", "bmi1", "bmi2"},
    },
    "aarch64": {"neon_i8mm": {"asimddp", "i8mm"}, "neon": {"asimddp"}},
}
#: Those of this machine's family.
ISA_FLAGS: dict[str, set[str]] = {**FAMILY_FLAGS.get(platform.machine(), {}), "portable": set()}

GUARD = 0xA5
GUARD_BYTES = 192


class Weight(Structure):
    _fields_ = [
        ("layout", c_int32),
        ("format", c_int32),
        ("components", c_int32),
        ("scale_dtype", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("group_size", c_int64),
        ("codes", c_void_p),
        ("codes_bytes", c_int64),
        ("scales", c_void_p),
        ("scale_component_stride", c_int64),
        ("scale_row_stride", c_int64),
        ("scale_group_stride", c_int64),
    ]


class Matrix(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("reserved", c_int32),
        ("rows", c_int64),
        ("cols", c_int64),
        ("row_stride", c_int64),
    ]


class LinearCall(Structure):
    _fields_ = [
        ("weight", POINTER(Weight)),
        ("x", Matrix),
        ("y", Matrix),
        ("bias", c_void_p),
        ("bias_dtype", c_int32),
        ("activation", c_int32),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
    ]


class Guarded:
    """``size`` bytes between two zones of guard bytes, at ``offset`` bytes past a 64-byte boundary."""

    def __init__(self, size: int, offset: int = 0, fill: int = GUARD) -> None:
        self._memory = np.full(size + 2 * GUARD_BYTES + 64, GUARD, dtype=np.uint8)
        address = self._memory.ctypes.data + GUARD_BYTES
        self._begin = GUARD_BYTES + (-address) % 64 + offset
        self._end = self._begin + size
        self.bytes = self._memory[self._begin : self._end]
        self.bytes[:] = fill

    @classmethod
    def of(cls, array: np.ndarray, offset: int = 0) -> Guarded:
        buffer = cls(array.nbytes, offset)
        buffer.bytes[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        return buffer

    @property
    def pointer(self) -> int:
        return self._memory.ctypes.data + self._begin

    def view(self, dtype: np.typing.DTypeLike) -> np.ndarray:
        return self.bytes.view(dtype)

    def check(self, name: str) -> None:
        before, after = self._memory[: self._begin], self._memory[self._end :]
        assert (before == GUARD).all(), f"{name}: bytes before the buffer were written"
        assert (after == GUARD).all(), f"{name}: bytes after the buffer were written"


@dataclass(frozen=True)
class Library:
    """The loaded library. ``ctypes`` attributes hang off ``c``."""

    path: Path
    c: ctypes.CDLL

    def error(self) -> str:
        return self.c.bitimpl_last_error().decode()

    def supported(self) -> list[str]:
        return self.c.bitimpl_supported_isas().decode().split(",")

    def isa(self) -> str:
        return self.c.bitimpl_isa().decode()

    def select(self, name: str | None) -> None:
        status = self.c.bitimpl_select_isa(None if name is None else name.encode())
        assert status == OK, self.error()

    def last_kernel(self) -> str:
        return self.c.bitimpl_last_kernel().decode()

    def codes_bytes(self, fmt: int, components: int, rows: int, cols: int, group_size: int) -> int:
        return self.c.bitimpl_codes_bytes(fmt, components, rows, cols, group_size)

    def pack(self, codes: np.ndarray, fmt: int, group_size: int) -> np.ndarray:
        """int8 [components, rows, cols] -> the packed bytes."""
        components, rows, cols = codes.shape
        out = Guarded(self.codes_bytes(fmt, components, rows, cols, group_size))
        source = Guarded.of(codes)
        status = self.c.bitimpl_pack(
            fmt, components, rows, cols, group_size, source.pointer, out.pointer, out.bytes.size
        )
        assert status == OK, self.error()
        out.check("packed codes")
        return out.bytes.copy()


def load(path: Path) -> Library:
    c = ctypes.CDLL(str(path))
    for name in ("abi_version", "select_isa", "threads", "pack", "unpack", "dequantize", "quantize_int8"):
        getattr(c, f"bitimpl_{name}").restype = c_int
    for name in ("last_error", "supported_isas", "isa", "last_kernel"):
        getattr(c, f"bitimpl_{name}").restype = c_char_p
        getattr(c, f"bitimpl_{name}").argtypes = []
    c.bitimpl_select_isa.argtypes = [c_char_p]
    c.bitimpl_codes_bytes.restype = c_int64
    c.bitimpl_codes_bytes.argtypes = [c_int32, c_int32, c_int64, c_int64, c_int64]
    c.bitimpl_pack.argtypes = [c_int32, c_int32, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int64]
    c.bitimpl_unpack.argtypes = [POINTER(Weight), c_void_p]
    c.bitimpl_dequantize.argtypes = [POINTER(Weight), c_int64, c_int64, c_void_p, c_int64]
    c.bitimpl_quantize_int8.argtypes = [POINTER(Matrix), c_void_p, c_void_p]
    c.bitimpl_linear_workspace.restype = c_int64
    c.bitimpl_linear_workspace.argtypes = [POINTER(Weight), c_int64, c_int32]
    for name in ("binary", "ternary"):
        function = getattr(c, f"bitimpl_{name}_linear")
        function.restype = c_int
        function.argtypes = [
            POINTER(Weight), POINTER(Matrix), c_int32, c_void_p, c_int32, POINTER(Matrix), c_void_p, c_int64,
        ]  # fmt: skip
    return Library(path, c)


def build(directory: Path, *options: str, target: str = "all") -> Path:
    """Configures and builds csrc in ``directory``; the path of the library."""
    cmake = shutil.which("cmake")
    assert cmake is not None, "no cmake: install it, or set BITIMPL_LIBRARY_PATH to a built library"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        [cmake, "-S", str(REPOSITORY / "csrc"), "-B", str(directory), *generator, *options],
        [cmake, "--build", str(directory), "--parallel", "2", "--target", target],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return directory / LIBRARY_NAME


def host_compiler() -> str | None:
    """This machine's C++ compiler."""
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def compile_driver(
    program: Path,
    library: Path,
    compiler: str,
    flags: Sequence[str] = (),
    sources: Sequence[Path] = DRIVER_SOURCES,
) -> Path:
    """A C++ program over the built ``library``."""
    command = [
        compiler, "-std=c++17", "-O1", "-g", *flags, "-I", str(REPOSITORY / "csrc" / "include"),
        *map(str, sources), "-o", str(program), str(library), f"-Wl,-rpath,{library.parent}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def find() -> Path | None:
    """The library that BITIMPL_LIBRARY_PATH names, else the installed package's; None where there is none."""
    named = os.environ.get("BITIMPL_LIBRARY_PATH")
    if named:
        path = Path(named)
        path = path / LIBRARY_NAME if path.is_dir() else path
        assert path.is_file(), f"BITIMPL_LIBRARY_PATH={named}: no {LIBRARY_NAME} there"
        return path
    import impl

    for package in impl.__path__:
        installed = Path(package) / "_native" / LIBRARY_NAME
        if installed.is_file():
            return installed
    return None
