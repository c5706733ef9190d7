"""Finding, loading and describing ``libbitimpl_cpu.so``, and choosing its instruction set.

The library is a plain C interface (``csrc/include/impl.h``), loaded with ctypes on first use and
after torch, so that both share one OpenMP pool. It is looked for at ``BITIMPL_LIBRARY_PATH`` (a
file or a directory) and, where that is not set, in ``impl/_native/``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import torch  # noqa: F401 - loads libgomp first: the library must share torch's thread pool

ABI_VERSION = 4
LIBRARY_NAME = "libbitimpl_cpu.so"


class NativeError(RuntimeError):
    """The native library is missing, does not fit, or refused a call."""


class Weight(ctypes.Structure):
    """``bitimpl_weight``."""

    _fields_ = (
        ("layout", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("components", ctypes.c_int32),
        ("scale_dtype", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("codes_bytes", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("scale_component_stride", ctypes.c_int64),
        ("scale_row_stride", ctypes.c_int64),
        ("scale_group_stride", ctypes.c_int64),
    )


class Image(ctypes.Structure):
    """``bitimpl_image``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("samples", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("size", ctypes.c_int64 * 3),
        ("sample_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("spatial_stride", ctypes.c_int64 * 3),
    )


class SignsData(ctypes.Structure):
    """``bitimpl_signs``."""

    _fields_ = (
        ("x_scale", ctypes.c_void_p),
        ("lower", ctypes.c_void_p),
        ("upper", ctypes.c_void_p),
        ("least", ctypes.c_void_p),
        ("most", ctypes.c_void_p),
        ("y_scale", ctypes.c_void_p),
    )


class Conv(ctypes.Structure):
    """``bitimpl_conv``."""

    _fields_ = (
        ("groups", ctypes.c_int64),
        ("kernel", ctypes.c_int64 * 3),
        ("stride", ctypes.c_int64 * 3),
        ("dilation", ctypes.c_int64 * 3),
        ("padding_before", ctypes.c_int64 * 3),
        ("padding_after", ctypes.c_int64 * 3),
        ("padding_value", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "abi_version": (ctypes.c_int, ()),
    "last_error": (ctypes.c_char_p, ()),
    "supported_isas": (ctypes.c_char_p, ()),
    "isa": (ctypes.c_char_p, ()),
    "select_isa": (ctypes.c_int, (ctypes.c_char_p,)),
    "threads": (ctypes.c_int, ()),
    "read": (ctypes.c_uint64, (ctypes.c_void_p, ctypes.c_int64)),
    "last_kernel": (ctypes.c_char_p, ()),
    "dequantize": (
        ctypes.c_int,
        (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64),
    ),
    "multiply_accumulate": (ctypes.c_int64, (ctypes.c_int32, ctypes.c_int64)),
    "linear": (ctypes.c_int, (ctypes.c_void_p,)),
    "linear_signs": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_void_p)),
    "linear_workspace": (ctypes.c_int64, (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)),
    "conv_workspace": (
        ctypes.c_int64,
        (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32),
    ),
}
_CONV_ARGUMENTS = (
    ctypes.c_void_p,  # weight
    ctypes.c_void_p,  # geometry
    ctypes.c_void_p,  # x
    ctypes.c_int32,  # activation
    ctypes.c_void_p,  # bias
    ctypes.c_int32,  # bias dtype
    ctypes.c_void_p,  # y
    ctypes.c_void_p,  # workspace
    ctypes.c_int64,  # workspace bytes
)
for _operator in ("binary_conv", "ternary_conv"):
    _SIGNATURES[_operator] = (ctypes.c_int, _CONV_ARGUMENTS)
# The same with what goes with signs behind y.
_SIGNATURES["conv_signs"] = (ctypes.c_int, (*_CONV_ARGUMENTS[:7], ctypes.c_void_p, *_CONV_ARGUMENTS[7:]))


class SharedLibrary:
    """A loaded library of ours; :meth:`function` gives an entry point, ``bitimpl_`` left off."""

    signatures: ClassVar[dict[str, tuple[Any, tuple[Any, ...]]]]
    """Result type and argument types of the entry points."""
    abi: ClassVar[tuple[str, int]]
    """The entry point that tells the version of the interface, and the one this package speaks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeError(f"{path} cannot be loaded: {error}") from error
        entry, version = self.abi
        found = self.function(entry)()
        if found != version:
            raise NativeError(
                f"{path} has ABI version {found}, this package needs {version}: "
                "rebuild it with `pip install .` or `cmake --build`"
            )
        self.last_error = self.function("last_error")

    @functools.cache  # noqa: B019 - one library lives as long as the process
    def function(self, name: str) -> Any:
        """Entry point ``bitimpl_<name>`` with its argument and result types set.

        Raises NativeError where the library has no such entry point.
        """
        try:
            entry = self.handle[f"bitimpl_{name}"]
        except AttributeError as error:
            raise NativeError(
                f"{self.path} is not a bitimpl library, or an older one: {error}; rebuild it with "
                "`pip install .` or `cmake --build`"
            ) from error
        entry.restype, entry.argtypes = self.signatures[name]
        return entry

    def failed(self, what: str) -> NativeError:
        """The error of the call that just failed, with the library's own message."""
        message = self.last_error().decode()
        return NativeError(f"{what}: {message or 'no reason given'}")


class Library(SharedLibrary):
    """The kernels for processors."""

    signatures = _SIGNATURES
    abi = ("abi_version", ABI_VERSION)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # On the way of every call, hence attributes.
        self.last_kernel = self.function("last_kernel")
        self.dequantize = self.function("dequantize")
        self.linear_workspace = self.function("linear_workspace")
        self.conv_workspace = self.function("conv_workspace")


def explicit_path(variable: str, file_name: str) -> Path | None:
    """The library that the environment variable names, as a file or by its directory; None where it is
    not set. Raises NativeError where it leads to none."""
    explicit = os.environ.get(variable)
    if not explicit:
        return None
    path = Path(explicit)
    path = path / file_name if path.is_dir() else path
    if not path.is_file():
        raise NativeError(
            f"{variable}={explicit} leads to no {file_name}: give the file or its directory, or unset "
            "the variable"
        )
    return path


def installed_paths(file_name: str) -> Iterator[Path]:
    """Where an installation of this package keeps a library, whether it is there or not."""
    import impl

    for entry in impl.__path__:
        yield Path(entry) / "_native" / file_name
    # An editable install keeps built files apart from the sources.
    with contextlib.suppress(metadata.PackageNotFoundError):
        yield Path(str(metadata.distribution("bitbench").locate_file(f"impl/_native/{file_name}")))


def _find() -> Path:
    """Where the library is. Raises NativeError, naming where it was looked for."""
    explicit = explicit_path("BITIMPL_LIBRARY_PATH", LIBRARY_NAME)
    if explicit is not None:
        return explicit
    for path in installed_paths(LIBRARY_NAME):
        if path.is_file():
            return path
    raise NativeError(
        "the native kernels were not built (no " + LIBRARY_NAME + " in impl/_native): install a C++ "
        "compiler and run `pip install .` again, or set BITIMPL_LIBRARY_PATH to a CMake build directory"
    )


@functools.cache
def load() -> Library | NativeError:
    """The library, or why it cannot be had. Looked for once."""
    try:
        return Library(_find())
    except NativeError as error:
        return error


def require() -> Library:
    """The library. Raises NativeError where it cannot be had."""
    library = load()
    if isinstance(library, NativeError):
        raise NativeError(str(library))
    return library


def available() -> bool:
    """Whether the native library is here and fits. Loads it on first use."""
    return not isinstance(load(), NativeError)


def why_not() -> str:
    """Why :func:`available` is False and what would help; "" where it is True."""
    library = load()
    return str(library) if isinstance(library, NativeError) else ""


def library_path() -> Path | None:
    """The loaded library's file, or None."""
    library = load()
    return None if isinstance(library, NativeError) else library.path


# ---- instruction sets -----------------------------------------------------------------------

#: Number of the instruction set in use, in the order in which they came to be: what was learned about
#: a kernel under another number does not hold.
isa_generation = 0
_generations: dict[str, int] = {}


def supported_isas() -> tuple[str, ...]:
    """Instruction sets compiled in and usable on this machine, best first. Raises NativeError
    where there is no library."""
    names: str = require().function("supported_isas")().decode()
    return tuple(name.strip() for name in names.split(",") if name.strip())


def isa() -> str:
    """The instruction set in use. Raises NativeError where there is no library, or where
    ``BITIMPL_ISA`` names one that this machine or build lacks."""
    library = require()
    name: str = library.function("isa")().decode()
    if not name:
        raise library.failed("no instruction set is in use")
    return name


def select_isa(name: str | None) -> None:
    """Use the kernels of instruction set ``name`` in the whole process; None restores the best.

    For tests and measurements. Raises NativeError where ``name`` is not in :func:`supported_isas`.
    """
    global isa_generation
    library = require()
    # What BITIMPL_ISA asked for; empty where that is not usable.
    _generations.setdefault(library.function("isa")().decode(), isa_generation)
    if library.function("select_isa")(None if name is None else name.encode()) != 0:
        raise library.failed(f"cannot select instruction set {name!r}")
    isa_generation = _generations.setdefault(isa(), len(_generations))


def threads() -> int:
    """Threads the next call may use. Raises NativeError where there is no library."""
    count: int = require().function("threads")()
    return count


def read_bytes(address: int, count: int) -> int:
    """Read ``count`` bytes at ``address`` with all threads and return the exclusive or of their
    64-bit words: to measure memory bandwidth with. Raises NativeError where there is no library."""
    words: int = require().function("read")(address, count)
    return words


def multiply_accumulate(activation_bits: int, turns: int) -> int:
    """Repeat the innermost instructions of the kernels for 8-bit activations or signs (1) on registers,
    ``turns`` times on each thread, and return the multiply-accumulates done: to measure arithmetic
    peaks with. 0 where the instruction set in use has none of its own (``portable``).

    Raises NativeError where there is no library or it refuses.
    """
    library = require()
    done: int = library.function("multiply_accumulate")(activation_bits, turns)
    if done < 0:
        raise library.failed("multiply_accumulate")
    return done
