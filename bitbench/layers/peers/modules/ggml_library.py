"""ggml's CPU backend through ctypes, from whichever installed package ships it.

Only functions of its public headers are called. The one thing ggml keeps to itself, where in a tensor
the pointer to its data lies, is found by looking for a pointer that is known.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from bitbench.layers.peers.peer import Package

F32 = 0
TYPES = {"tq1_0": 34, "tq2_0": 35}
"""``enum ggml_type``: part of the file format, so never renumbered."""
GRAPH_NODES = 8
SLACK = 4096
"""Alignment of what lies in a context."""
PROBE_BYTES = 1 << 16


class _InitParams(Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_BASE: dict[str, tuple[type | None, list[type]]] = {
    "ggml_version": (c_char_p, []),
    "ggml_type_name": (c_char_p, [c_int]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_init": (c_void_p, [_InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, POINTER(c_float), c_void_p, c_int64, c_int64, c_int64, c_void_p],
    ),
}
_CPU: dict[str, tuple[type | None, list[type]]] = {
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_cpu_has_avx512": (c_int, []),
    "ggml_cpu_has_avx2": (c_int, []),
    "ggml_cpu_has_neon": (c_int, []),
}


@dataclass(frozen=True)
class Source:
    """An installed package and where its copy of ggml lies."""

    package: Package
    base: Path
    cpu: Path

    @property
    def label(self) -> str:
        """``llama-cpp-python-0.3.36``"""
        return f"{self.package.distribution}-{version(self.package.distribution)}"


def find(packages: tuple[Package, ...]) -> Source:
    """The first of ``packages`` that ships ggml's CPU backend as a shared library.

    Raises:
        OSError: none of them does.
    """
    looked = []
    for package in packages:
        spec = find_spec(package.module) if package.installed() else None
        for place in spec.submodule_search_locations or [] if spec else []:
            home = Path(place)
            for folder in (home / "lib", home.with_name(f"{home.name}.libs")):
                looked.append(folder)
                base, cpu = _library(folder, "base"), _library(folder, "cpu")
                if base and cpu:
                    return Source(package, base, cpu)
    where = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in looked)
    raise OSError(f"no shared libraries ggml-base and ggml-cpu in {where or 'any package'}")


def _library(folder: Path, part: str) -> Path | None:
    """The file of ``libggml-<part>``, whatever a wheel's repair has added to its name."""
    names = sorted(folder.glob(f"libggml-{part}*"), key=lambda path: (len(path.name), path.name))
    return next((path for path in names if ".so" in path.name or path.suffix == ".dylib"), None)


class Ggml:
    """ggml, loaded. Calls are made one at a time: its CPU backend has one work buffer."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # The base first: the backend asks for it by the name it then already has.
        self.base = _declared(ctypes.CDLL(str(source.base)), _BASE)
        self.cpu = _declared(ctypes.CDLL(str(source.cpu)), _CPU)
        for name, number in TYPES.items():
            if self.base.ggml_type_name(number) != name.encode():
                raise OSError(f"the ggml of {source.label} has no type {name}")
        self.backend = self.cpu.ggml_backend_cpu_init()
        if not self.backend:
            raise OSError(f"the CPU backend of the ggml of {source.label} does not start")
        self.lock = Lock()
        self._threads = 0
        self.data_offset = self._data_offset()

    @property
    def version(self) -> str:
        return str(self.base.ggml_version().decode())

    @property
    def isa(self) -> str:
        """Widest instruction set its CPU backend was compiled for."""
        built = (isa for isa in ("avx512", "avx2", "neon") if getattr(self.cpu, f"ggml_cpu_has_{isa}")())
        return next(built, "portable")

    def quantize(self, type: str, source: int, target: int, rows: int, cols: int) -> None:
        """Encode float32 ``[rows, cols]`` at address ``source`` as ``type`` at ``target``."""
        values = ctypes.cast(source, POINTER(c_float))
        self.base.ggml_quantize_chunk(TYPES[type], values, target, 0, rows, cols, None)

    def row_bytes(self, type: str, cols: int) -> int:
        """Bytes of a row of ``cols`` weights."""
        return int(self.base.ggml_row_size(TYPES[type], cols))

    def compute(self, graph: Graph, weights: int, x: int, y: int, threads: int) -> None:
        """Run ``graph`` on the data at these addresses."""
        with self.lock:
            if threads != self._threads:
                self.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
                self._threads = threads
            graph.weights.value, graph.x.value, graph.y.value = weights, x, y
            status = self.base.ggml_backend_graph_compute(self.backend, graph.pointer)
        if status:
            raise RuntimeError(f"ggml_backend_graph_compute failed with status {status}")

    def context(self, size: int, *, no_alloc: bool) -> int:
        """A context of ``size`` bytes, to be freed with ``ggml_free``."""
        made = self.base.ggml_init(_InitParams(size, None, no_alloc))
        if not made:
            raise MemoryError(f"ggml_init failed for {size} bytes")
        return int(made)

    def _data_offset(self) -> int:
        """Where in ``struct ggml_tensor`` the pointer to its data lies, which no function sets."""
        context = self.context(PROBE_BYTES, no_alloc=False)
        try:
            tensor = self.base.ggml_new_tensor_2d(context, F32, 8, 8)
            data = self.base.ggml_get_data(tensor)
            width = ctypes.sizeof(c_void_p)
            size = self.base.ggml_tensor_overhead() - 4 * width  # the struct without its list header
            fields = (c_void_p * (size // width)).from_address(tensor)
            found = [place * width for place, value in enumerate(fields) if value == data]
            if len(found) != 1:
                raise OSError(f"the ggml of {self.source.label} hides where a tensor keeps its data")
            c_void_p.from_address(tensor + found[0]).value = data + width
            if self.base.ggml_get_data(tensor) != data + width:
                raise OSError(f"the ggml of {self.source.label} hides where a tensor keeps its data")
        finally:
            self.base.ggml_free(context)
        return found[0]


class Graph:
    """One product: x ``[tokens, cols]`` times weights ``[rows, cols]`` transposed. Holds no data."""

    def __init__(self, ggml: Ggml, type: str, rows: int, cols: int, tokens: int) -> None:
        base = ggml.base
        size = 4 * base.ggml_tensor_overhead() + base.ggml_graph_overhead_custom(GRAPH_NODES, False) + SLACK
        context = ggml.context(size, no_alloc=True)
        weakref.finalize(self, base.ggml_free, context)
        weights = base.ggml_new_tensor_2d(context, TYPES[type], cols, rows)
        x = base.ggml_new_tensor_2d(context, F32, cols, tokens)
        y = base.ggml_mul_mat(context, weights, x)
        self.pointer = base.ggml_new_graph_custom(context, GRAPH_NODES, False)
        base.ggml_build_forward_expand(self.pointer, y)
        self.weights, self.x, self.y = (
            c_void_p.from_address(tensor + ggml.data_offset) for tensor in (weights, x, y)
        )


@cache
def load(packages: tuple[Package, ...]) -> Ggml:
    """The ggml of the first of ``packages`` that has one; OSError where none can be used."""
    return Ggml(find(packages))


@lru_cache(maxsize=64)
def product(ggml: Ggml, type: str, rows: int, cols: int, tokens: int) -> Graph:
    """The graph for these sizes; layers of one shape share it, as data is put in at each call."""
    return Graph(ggml, type, rows, cols, tokens)


def _declared(library: ctypes.CDLL, functions: dict[str, tuple[type | None, list[type]]]) -> ctypes.CDLL:
    for name, (result, arguments) in functions.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{Path(library._name).name} has no function {name}: too old") from error
        function.restype, function.argtypes = result, arguments
    return library
