"""How csrc decides about the CUDA kernels: whether, for which GPUs, by which nvcc, and what it says.

Only configured here, on machines made up of a few programs; the library itself is built once, for Hopper,
unless BITIMPL_CUDA_LIBRARY_PATH names one.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kernel_library import REPOSITORY, build, host_compiler

NVCC = shutil.which("nvcc") or next(
    (str(path) for path in [Path("/usr/local/cuda/bin/nvcc")] if path.is_file()), None
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc: install a CUDA toolkit to build kernels")

EVERY_ARCHITECTURE = "80,86,89,90a,90+ptx"
#: find_program sees nothing but what a test names: a machine without any other program.
NOTHING_ELSE = ["-DCMAKE_FIND_ROOT_PATH=/nonexistent", "-DCMAKE_FIND_ROOT_PATH_MODE_PROGRAM=ONLY"]


class Machine:
    """A folder of programs in front of PATH, and csrc configured there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("CUDA_HOME", "CUDA_PATH", "CUDACXX", "VIRTUAL_ENV", "CONDA_PREFIX")
            and not name.startswith(("BITIMPL_", "CUDA"))
        }
        # PATH without nvcc and nvidia-smi: whatever tool is needed is linked here.
        for tool in ("cmake", "ninja", "make", "c++", "g++", "gcc", "cc", "as", "ld", "sh"):
            found = shutil.which(tool)
            if found is not None:
                (self.programs / tool).symlink_to(found)
        self.environment["PATH"] = str(self.programs)

    def program(self, name: str, text: str) -> Path:
        path = self.programs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def gpus(self, *capabilities: str) -> None:
        self.program("nvidia-smi", "\n".join(f"echo {capability}" for capability in capabilities))

    def configure(self, *options: str) -> subprocess.CompletedProcess[str]:
        compiler = host_compiler()
        assert compiler is not None
        return subprocess.run(
            [
                str(shutil.which("cmake")), "-S", str(REPOSITORY / "csrc"), "-B",
                str(self.directory / "build"),
                f"-DCMAKE_CXX_COMPILER={shutil.which(compiler)}", f"-DCMAKE_MAKE_PROGRAM={_make()[1]}",
                "-G", _make()[0], *options,
            ],
            capture_output=True, text=True, check=False, env=self.environment,
        )  # fmt: skip

    def said(self, *options: str) -> str:
        """What it says about CUDA kernels: one line."""
        done = self.configure(*options)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if "CUDA kernels:" in line]
        assert len(lines) == 1, done.stdout
        return lines[0].removeprefix("-- CUDA kernels: ")

    def refused(self, *options: str) -> str:
        done = self.configure(*options)
        assert done.returncode != 0, done.stdout
        return " ".join(done.stderr.split())

    def targets(self) -> str:
        return (self.directory / "build" / "compile_commands.json").read_text()


def _make() -> tuple[str, str]:
    ninja = shutil.which("ninja")
    return ("Ninja", ninja) if ninja else ("Unix Makefiles", str(shutil.which("make")))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def nvcc_of() -> str:
    return f'exec {NVCC} "$@"'


def test_off_builds_nothing_even_beside_a_gpu(machine: Machine) -> None:
    machine.gpus("9.0")
    assert machine.said("-DBITIMPL_CUDA=off") == "none, since BITIMPL_CUDA=off"
    assert "cuda" not in machine.targets()


def test_auto_builds_nothing_without_a_gpu(machine: Machine) -> None:
    machine.program("nvcc", "exit 1")  # nobody asks it
    assert machine.said().startswith(
        "none, since there is no NVIDIA GPU (no nvidia-smi). BITIMPL_CUDA=on builds"
    )
    assert "cuda" not in machine.targets()


def test_auto_repeats_what_a_broken_driver_says(machine: Machine) -> None:
    machine.program("nvidia-smi", "echo NVIDIA-SMI has failed; echo later; exit 9")
    assert "nvidia-smi sees no GPU (NVIDIA-SMI has failed)" in machine.said()


def test_auto_builds_nothing_for_gpus_too_old(machine: Machine) -> None:
    machine.gpus("7.5", "6.1", "7.5")
    assert "the GPUs here are of architecture 6.1, 7.5, the kernels need 8.0" in machine.said()


@needs_nvcc
@pytest.mark.parametrize(
    ("capabilities", "architectures"),
    [
        (["9.0", "9.0"], "90a"),
        (["8.9", "7.5", "8.0"], "80,89"),
        (["99.0", "8.6"], "86,90+ptx"),  # later than any nvcc: its driver compiles
    ],
)
def test_auto_builds_for_the_gpus_present(
    machine: Machine, capabilities: list[str], architectures: str
) -> None:
    machine.gpus(*capabilities)
    nvcc = machine.program("nvcc", nvcc_of())
    said = machine.said()
    assert said.startswith(f"for {architectures}, by nvcc ")
    assert said.endswith(f"({nvcc})")
    commands = machine.targets()
    built = set(re.findall(r"-gencode=arch=compute_(\w+),code=(\w+)", commands))
    assert built == {
        (name.split("+")[0], f"compute_{name[:2]}" if "+" in name else f"sm_{name}")
        for name in architectures.split(",")
    }
    compiled = [command for command in commands.split("\n") if '"command"' in command and ".cu.o" in command]
    assert compiled
    assert all("-fmad=false" in command for command in compiled)


@needs_nvcc
def test_on_builds_every_architecture_and_kernels_for_hopper_for_it_alone(machine: Machine) -> None:
    machine.program("nvcc", nvcc_of())
    assert machine.said("-DBITIMPL_CUDA=ON").startswith(f"for {EVERY_ARCHITECTURE}, by nvcc ")
    commands = [line for line in machine.targets().split("\n") if '"command"' in line and "_sm90a.cu" in line]
    assert len(commands) == len(list((REPOSITORY / "csrc" / "cuda").glob("*_sm90a.cu")))
    for command in commands:
        assert re.findall(r"-gencode=\S+", command) == ["-gencode=arch=compute_90a,code=sm_90a"]


@needs_nvcc
def test_the_environment_speaks_for_pip_and_architectures_can_be_named(machine: Machine) -> None:
    machine.environment |= {"BITIMPL_CUDA": "on", "BITIMPL_CUDA_ARCHITECTURES": "80,90+ptx"}
    machine.program("nvcc", nvcc_of())
    assert machine.said().startswith("for 80,90+ptx, by nvcc ")
    assert "sm90a" not in machine.targets()
    assert machine.said("-DBITIMPL_CUDA=off") == "none, since BITIMPL_CUDA=off"


@needs_nvcc
def test_nvcc_comes_from_cuda_home(machine: Machine) -> None:
    toolkit = machine.directory / "toolkit"
    machine.program("../toolkit/bin/nvcc", nvcc_of())
    machine.environment["CUDA_HOME"] = str(toolkit)
    machine.gpus("8.0")
    assert machine.said().endswith(f"({toolkit}/bin/nvcc)")


@needs_nvcc
def test_nvcc_comes_from_the_python_package(machine: Machine) -> None:
    packages = machine.directory / "packages"
    machine.program("../packages/nvidia/cu9/bin/nvcc", "exit 1")
    nvcc = machine.program("../packages/nvidia/cu13/bin/nvcc", nvcc_of())
    python = machine.program("python3", f'PYTHONPATH={packages} exec {sys.executable} -S "$@"')
    machine.gpus("8.0")
    said = machine.said(f"-DPython_EXECUTABLE={python}")
    assert Path(said.split("(")[1].rstrip(")")).resolve() == nvcc.resolve()


def test_without_nvcc_auto_says_so_and_on_fails(machine: Machine) -> None:
    options = [*NOTHING_ELSE, "-DBITIMPL_CUDA_ARCHITECTURES=90a"]
    said = machine.said(*options)
    assert said.startswith("none, since there is no nvcc. Install the CUDA toolkit, or pip install")
    assert "cuda" not in machine.targets()
    refused = machine.refused("-DBITIMPL_CUDA=on", *options)
    assert "BITIMPL_CUDA=on, but there is no nvcc. Install the CUDA toolkit" in refused


def test_an_nvcc_that_fails_is_quoted(machine: Machine) -> None:
    machine.program("nvcc", "echo unsupported GNU version >&2; exit 1")
    machine.gpus("8.0")
    said = machine.said()
    assert "cannot build for 80: unsupported GNU version" in said
    assert "CMAKE_CUDA_HOST_COMPILER" in said
    refused = machine.refused("-DBITIMPL_CUDA=on")
    assert "cannot build for 80, 86, 89, 90a, 90+ptx: unsupported GNU version" in refused


def test_an_nvcc_that_is_named_is_not_replaced(machine: Machine) -> None:
    machine.program("nvcc", "exit 0")
    machine.environment["CUDACXX"] = "/nonexistent/nvcc"
    refused = machine.refused("-DBITIMPL_CUDA=on")
    assert "/nonexistent/nvcc cannot build for" in refused
    assert "no such file or directory" in refused.lower()


@pytest.mark.parametrize("value", ["maybe", "1"])
def test_unknown_choices_are_refused(machine: Machine, value: str) -> None:
    assert f"BITIMPL_CUDA={value}: choose auto, on or off" in machine.refused(f"-DBITIMPL_CUDA={value}")


@pytest.mark.parametrize("value", ["75", "80;hopper", "90-ptx"])
def test_unknown_architectures_are_refused(machine: Machine, value: str) -> None:
    refused = machine.refused(f"-DBITIMPL_CUDA_ARCHITECTURES={value}")
    assert f'"{value.split(";")[-1]}" is none of 80, 86, 89, 90a' in refused


# ---- the library ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuda_library_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("BITIMPL_CUDA_LIBRARY_PATH")
    if named:
        path = Path(named)
        return path / "libbitimpl_cuda.so" if path.is_dir() else path
    directory = tmp_path_factory.mktemp("cuda")
    options = ["-DBITIMPL_CUDA=on", "-DBITIMPL_CUDA_ARCHITECTURES=90a"]
    return build(directory, *options, target="bitimpl_cuda").with_name("libbitimpl_cuda.so")


@needs_nvcc
@pytest.mark.slow
def test_the_library_loads_without_a_gpu_and_shows_its_own_names_only(cuda_library_path: Path) -> None:
    library = ctypes.CDLL(str(cuda_library_path))
    for name in ("bitimpl_cuda_architectures", "bitimpl_last_error"):
        getattr(library, name).restype = ctypes.c_char_p
    assert "90a" in library.bitimpl_cuda_architectures().decode().split(",")
    assert library.bitimpl_cuda_toolkit() >= 12000
    if library.bitimpl_cuda_devices() == 0:
        reasons = ("there is no NVIDIA driver: ", "the driver speaks ", "no CUDA device can be used: ")
        assert library.bitimpl_last_error().decode().startswith(reasons)
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(cuda_library_path)], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert "bitimpl_cuda_linear" in names
    # A CUDA runtime that showed itself would answer torch's calls.
    assert [name for name in names if not name.startswith("bitimpl_")] == []


ARCHITECTURES_PROBE = """
#include <stdio.h>
#include "cuda/architectures.h"
int main(int, char** a) { return bitimpl::cuda::has_code_for(a[1], atoi(a[2])) ? 0 : 1; }
"""


@pytest.fixture(scope="module")
def has_code_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], bool]:
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler: install one to run what decides on architectures")
    folder = tmp_path_factory.mktemp("architectures")
    (folder / "probe.cpp").write_text(ARCHITECTURES_PROBE)
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-I",
            str(REPOSITORY / "csrc"),
            str(folder / "probe.cpp"),
            "-o",
            str(folder / "probe"),
        ],
        check=True,
    )

    def ask(built: str, architecture: int) -> bool:
        return subprocess.run([folder / "probe", built, str(architecture)], check=False).returncode == 0

    return ask


@pytest.mark.parametrize(
    ("built", "runs", "does_not"),
    [
        ("80", [80, 86, 89], [75, 90, 100]),
        ("86", [86, 89], [80, 90]),
        ("90a", [90], [89, 91, 100]),
        ("90+ptx", [90, 100, 120], [80, 89]),
        ("80,90a", [80, 89, 90], [100]),
        (EVERY_ARCHITECTURE, [80, 86, 87, 89, 90, 100, 121], [75]),
        ("", [], [80, 90]),
    ],
)
def test_which_gpus_run_what_was_built(
    has_code_for: Callable[[str, int], bool], built: str, runs: list[int], does_not: list[int]
) -> None:
    assert [architecture for architecture in runs if not has_code_for(built, architecture)] == []
    assert [architecture for architecture in does_not if has_code_for(built, architecture)] == []
