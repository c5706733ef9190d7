"""How csrc decides about the kernel made of CUTLASS: whether, of which headers, and what it says.

Only configured here, on machines made up of a few programs; nothing is fetched from anywhere.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from kernel_library import REPOSITORY
from test_cuda_build import Machine, needs_nvcc, nvcc_of

SOURCES = REPOSITORY / "csrc" / "cutlass"
PACKAGE_FOLDER = Path("cutlass_library/source/include")


class CutlassMachine:
    """A machine with nvcc, and a Python whose packages and pip are made up."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.packages = machine.directory / "packages"
        machine.program("nvcc", nvcc_of())
        self.python("")
        machine.environment["BITIMPL_CUDA_ARCHITECTURES"] = "80"

    def python(self, pip: str) -> None:
        """Python says where its packages are; asked for pip, it does what the shell words ``pip`` say,
        $folder being where to."""
        body = f'case "$*" in *pip*) for folder; do [ "$last" = --dest ] && break; last=$folder; done; {pip}'
        path = self.machine.program("python3", f"{body};; *) echo '{self.packages}';; esac")
        self.options = [f"-DPython_EXECUTABLE={path}"]

    def headers(self, folder: Path, version: str = "4.2.0") -> Path:
        (folder / "cutlass").mkdir(parents=True)
        (folder / "cutlass" / "cutlass.h").touch()
        (folder / "cutlass" / "version.h").write_text(_version(version))
        return folder

    def configured(self, *options: str) -> str:
        """What it says about CUTLASS: one line."""
        done = self.machine.configure(*self.options, *options)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if "CUTLASS kernels:" in line]
        assert len(lines) == 1, done.stdout
        return lines[0].removeprefix("-- CUTLASS kernels: ")

    def refused(self, *options: str) -> str:
        return self.machine.refused(*self.options, *options)


def _version(version: str) -> str:
    parts = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    return "".join(f"#define CUTLASS_{name} {number}\n" for name, number in parts)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def made(machine: Machine) -> CutlassMachine:
    return CutlassMachine(machine)


@needs_nvcc
def test_auto_builds_nothing_without_headers_and_fetches_none(made: CutlassMachine) -> None:
    made.python("echo fetching >&2; exit 1")
    said = made.configured()
    assert said.startswith(
        "none, since its headers are not here. For them, pip install --no-deps nvidia-cutlass=="
    )
    assert "csrc/cutlass/" not in made.machine.targets()
    assert "BITIMPL_HAS_CUTLASS" not in made.machine.targets()


@needs_nvcc
def test_headers_come_from_the_python_package(made: CutlassMachine) -> None:
    folder = made.headers(made.packages / PACKAGE_FOLDER)
    assert made.configured() == f"of version 4.2.0 ({folder})"
    commands = [line for line in made.machine.targets().split("\n") if '"command"' in line]
    of_cutlass = [line for line in commands if "csrc/cutlass/" in line]
    assert len(of_cutlass) == len(list(SOURCES.glob("*.cu")))
    for command in of_cutlass:
        assert re.findall(r"-gencode=\S+", command) == ["-gencode=arch=compute_80,code=sm_80"]
        assert f"isystem={folder}" in command or f"isystem {folder}" in command
        assert "-fmad=false" in command
    told = [line for line in commands if "BITIMPL_HAS_CUTLASS" in line]
    assert any("choice.cpp" in line for line in told)
    assert any("bits.cpp" in line for line in told)


@needs_nvcc
def test_a_folder_that_is_named_comes_first_and_is_not_replaced(made: CutlassMachine) -> None:
    made.headers(made.packages / PACKAGE_FOLDER)
    named = made.headers(made.machine.directory / "named" / "include", "4.3.0")
    assert made.configured(f"-DCUTLASS_DIR={named.parent}") == f"of version 4.3.0 ({named})"
    assert made.configured(f"-DCUTLASS_DIR={named}") == f"of version 4.3.0 ({named})"
    made.machine.environment["CUTLASS_DIR"] = "/nonexistent"
    said = made.configured("-DCUTLASS_DIR=")
    assert said.startswith("none, since CUTLASS_DIR=/nonexistent has no include/cutlass/cutlass.h.")
    refused = made.refused("-DBITIMPL_CUTLASS=on")
    assert "BITIMPL_CUTLASS=on, but CUTLASS_DIR=/nonexistent has no include/cutlass/cutlass.h." in refused


@needs_nvcc
@pytest.mark.parametrize(("version", "named"), [("4.1.9", "4.1.9"), ("2.8.0", "2.8.0"), ("x.y.z", "0")])
def test_headers_too_old_are_not_used(made: CutlassMachine, version: str, named: str) -> None:
    made.headers(made.packages / PACKAGE_FOLDER, version)
    assert f"is of version {named}, and 4.2 is the least" in made.configured()
    assert "csrc/cutlass/" not in made.machine.targets()


@needs_nvcc
def test_off_builds_nothing_even_beside_headers(made: CutlassMachine) -> None:
    made.headers(made.packages / PACKAGE_FOLDER)
    made.machine.environment["BITIMPL_CUTLASS"] = "off"
    assert made.configured() == "none, since BITIMPL_CUTLASS=off"
    assert "csrc/cutlass/" not in made.machine.targets()
    assert made.configured("-DBITIMPL_CUTLASS=auto").startswith("of version")


def _wheel(folder: Path) -> Path:
    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(str(PACKAGE_FOLDER / "cutlass/cutlass.h"), "")
        archive.writestr(str(PACKAGE_FOLDER / "cutlass/version.h"), _version("4.2.0"))
        archive.writestr("cutlass_library/generator.py", "")
    return path


@pytest.fixture
def expected_name() -> str:
    found = re.search(r'bitimpl_cutlass_wheel "(\S+)"', (SOURCES / "headers.cmake").read_text())
    assert found is not None
    return found[1]


@needs_nvcc
def test_on_fetches_headers_but_only_those_it_knows(made: CutlassMachine, expected_name: str) -> None:
    wheel = _wheel(made.machine.directory)
    made.python(f'mkdir -p "$folder"; /bin/cp {wheel} "$folder/{expected_name}"')
    (made.machine.programs / "mkdir").symlink_to("/bin/mkdir")
    refused = made.refused("-DBITIMPL_CUTLASS=on")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    assert f"is not what was expected (SHA-256 {digest}, not " in refused
    fetched = made.machine.directory / "build" / "cutlass" / "fetched"
    assert not (fetched / expected_name).exists()
    # With the digest of what is fetched here in place of the real one:
    copy = made.machine.directory / "csrc"
    _copy_with(copy, digest)
    made.machine.directory /= "second"
    made.machine.directory.mkdir()
    done = made.machine.configure(*made.options, "-DBITIMPL_CUTLASS=on", "-S", str(copy))
    assert done.returncode == 0, done.stderr
    fetched = made.machine.directory / "build" / "cutlass" / "fetched"
    assert f"CUTLASS kernels: of version 4.2.0 ({fetched / PACKAGE_FOLDER})" in done.stdout
    assert (fetched / PACKAGE_FOLDER / "cutlass" / "cutlass.h").is_file()
    assert not (fetched / "cutlass_library" / "generator.py").exists()
    # A second look asks nobody.
    made.python("exit 1")
    assert made.machine.configure(*made.options, "-S", str(copy)).returncode == 0


def _copy_with(copy: Path, digest: str) -> None:
    shutil.copytree(REPOSITORY / "csrc", copy)
    file = copy / "cutlass" / "headers.cmake"
    text, count = re.subn(r"(bitimpl_cutlass_sha256) \w{64}", rf"\1 {digest}", file.read_text())
    assert count == 1
    file.write_text(text)


@needs_nvcc
def test_what_pip_says_is_quoted(made: CutlassMachine) -> None:
    made.python("echo no matching distribution >&2; exit 1")
    refused = made.refused("-DBITIMPL_CUTLASS=on")
    assert "BITIMPL_CUTLASS=on, but its headers are not here, and could not be fetched" in refused
    assert "no matching distribution" in refused


def test_on_without_cuda_kernels_is_an_error(machine: Machine) -> None:
    refused = machine.refused("-DBITIMPL_CUTLASS=on", "-DBITIMPL_CUDA=off")
    assert "BITIMPL_CUTLASS=on, but no CUDA kernels are built, of which it would be one." in refused


@pytest.mark.parametrize("value", ["maybe", "1"])
def test_unknown_choices_are_refused(machine: Machine, value: str) -> None:
    options = (f"-DBITIMPL_CUTLASS={value}", "-DBITIMPL_CUDA=off")
    assert f"BITIMPL_CUTLASS={value}: choose auto, on or off" in machine.refused(*options)
