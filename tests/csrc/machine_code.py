"""The kernels as machine code: what nvcc made of csrc/cuda for sm_90a, read with NVIDIA's disassembler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kernel_library import REPOSITORY

SOURCES = REPOSITORY / "csrc" / "cuda"
CUTLASS_SOURCES = REPOSITORY / "csrc" / "cutlass"
ARCHITECTURE = "sm_90a"
#: What CUTLASS calls every kernel.
CUTLASS_KERNEL = "cutlass::Kernel"
TOOLS = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"

_FUNCTION = re.compile(r"\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([\w.]*)")


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel. ``opcodes``: the first words of its instructions, in order."""

    symbol: str
    opcodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """As in the source: the last part of the mangled name (lengths and parts in turn)."""
        rest, part = self.symbol.removeprefix("_ZN"), ""
        while (length := re.match(r"\d+", rest)) is not None:
            begin = length.end()
            part, rest = rest[begin : begin + int(length[0])], rest[begin + int(length[0]) :]
        if self.symbol.startswith("_ZN7cutlass6Kernel"):
            return CUTLASS_KERNEL
        assert part.endswith("_kernel"), f"{self.symbol} is no kernel's name: end it with _kernel"
        return part

    @property
    def counts(self) -> Counter[str]:
        return Counter(opcode.split(".")[0] for opcode in self.opcodes)


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def cuobjdump() -> tuple[str, str]:
    """The program and the PATH under which it finds nvdisasm: those of PATH, else the Python packages'."""
    packages = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin"), reverse=True)
    path = os.pathsep.join([*map(str, packages), os.environ.get("PATH", "")])
    found = shutil.which("cuobjdump", path=path)
    assert found is not None, f"nvcc without cuobjdump: {TOOLS}"
    assert shutil.which("nvdisasm", path=path), f"cuobjdump without nvdisasm: {TOOLS}"
    return found, path


def cutlass_headers() -> Path | None:
    """The headers of CUTLASS, where the build looks for them; None where they are not."""
    named = os.environ.get("CUTLASS_DIR")
    packages = Path(sysconfig.get_path("purelib"), "cutlass_library", "source", "include")
    places = [Path(named, "include"), Path(named)] if named else [packages]
    return next((place for place in places if (place / "cutlass" / "cutlass.h").is_file()), None)


def compile_cutlass(compiler: str, directory: Path, headers: Path, number: str) -> list[Path]:
    """The sources of csrc/cutlass for architecture ``number`` ("80", "90a")."""
    sources = sorted(CUTLASS_SOURCES.glob("*.cu"))
    return _compile(compiler, directory, sources, number, "-isystem", str(headers))


def compile_sources(compiler: str, directory: Path) -> list[Path]:
    """Each source of csrc/cuda for sm_90a alone, as the build does, to a file of machine code."""
    sources = [source for source in sorted(SOURCES.glob("*.cu")) if "__global__" in source.read_text()]
    return _compile(compiler, directory, sources, ARCHITECTURE.removeprefix("sm_"))


def _compile(compiler: str, directory: Path, sources: list[Path], number: str, *options: str) -> list[Path]:
    def compile_one(source: Path) -> Path:
        out = directory / f"{source.stem}.cubin"
        command = [
            compiler, "-std=c++17", "-O3", "-fmad=false", f"-gencode=arch=compute_{number},code=sm_{number}",
            f'-DBITIMPL_CUDA_ARCHITECTURES="{number}"', *options, "-cubin", str(source), "-o", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        return out

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def disassemble(file: Path) -> list[Kernel]:
    program, path = cuobjdump()
    only = [] if file.suffix == ".cubin" else ["-arch", ARCHITECTURE]
    done = subprocess.run(
        [program, *only, "-sass", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, f"{program} {file}: {done.stderr}"
    return read(done.stdout)


def read(listing: str) -> list[Kernel]:
    kernels: list[Kernel] = []
    symbol = ""
    opcodes: list[str] = []
    for line in listing.splitlines():
        if function := _FUNCTION.match(line):
            if symbol:
                kernels.append(Kernel(symbol, tuple(opcodes)))
            symbol, opcodes = function[1], []
        elif instruction := _INSTRUCTION.match(line):
            opcodes.append(instruction[1] + instruction[2])
    if symbol:
        kernels.append(Kernel(symbol, tuple(opcodes)))
    return kernels
