"""The two versions of a library that a comparison holds against each other: snapshots, built alike.

Each side is a folder of its own with the sources of one version and what was built of them. Both
sides are always made this way, the working tree too: a library that happens to be installed or
built in place could have been compiled otherwise, and the difference would look like the change.
Snapshots are kept by content and built once. Torch-free.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from bitbench.cache import CACHE_VARIABLE, cache_root
from bitbench.errors import ToolError, UserError
from bitbench.execute.identity import NOT_INSTALLED, describe
from bitbench.execute.snapshots import (
    Tree,
    repository,
    resolve,
    tree_of_commit,
    tree_of_files,
    write_commit,
    write_files,
)
from bitbench.store.schema import CodeIdentity, Purpose, RunInfo, Side
from bitbench.store.writer import write_atomically

if TYPE_CHECKING:
    from bitbench.execute.machine import Machine
    from bitbench.suite.expand import Plan

OWN_PACKAGE = "impl"
"""The library of this repository: built with CMake from ``csrc`` where that is part of the tree."""
NATIVE_SOURCES = "csrc"
NATIVE_DIR = "_native"

RECIPE = 1
"""Number of the way snapshots are made; a change makes all of them anew."""
CMAKE_FLAGS = ("-DCMAKE_BUILD_TYPE=Release", "-DBITIMPL_CUDA=auto")
BUILD_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS", "CMAKE_ARGS", "CUDAARCHS")
"""Environment variables that change what a compiler makes."""

DONE = "snapshot.json"
"""Written last: a folder without it was abandoned half way."""
LOG_LINES = 15
KEEP_DAYS = 30.0


@dataclass(frozen=True)
class SideCode:
    """One version of the library, ready to be imported."""

    side: Side
    label: str
    """What the user calls it: ``main (1a2b3c4d)``, ``working tree (1a2b3c4d, changed)``."""
    root: str
    """Folder that holds the packages."""
    packages: list[str]
    code: CodeIdentity


def prepare_side(
    side: Side,
    ref: str | None,
    *,
    repo: Path,
    packages: Sequence[str] = (OWN_PACKAGE,),
    build_command: str | None = None,
    note: Callable[[str], None],
) -> SideCode:
    """A snapshot of ``ref`` (None: the working tree as it is), built, made at most once.

    ``packages`` are the importable packages that belong to a side, at the top of the repository or
    under ``src/``. ``build_command`` is run by the shell in the snapshot of the whole repository;
    without it ``impl`` is built as its installation does and other packages are taken as they are.
    ``note`` is told what takes long.

    Raises :class:`UserError` for an unknown ref, a folder outside git and a missing package,
    :class:`ToolError` where the build fails or no compiler is there.
    """
    repo = repository(repo)
    commit = resolve(repo, ref if ref is not None else "HEAD")
    parts = _parts(packages, build_command)
    committed = tree_of_commit(repo, commit, parts)
    tree = committed if ref is not None else tree_of_files(repo, parts)
    label = _label(ref, commit, dirty=tree.digest != committed.digest)
    if not tree.entries:
        raise UserError(
            f"{label} holds nothing of {', '.join(packages)}",
            "give the package's folder name with --package NAME",
        )
    recipe = _recipe(tree, packages, build_command)
    folder = cache_root() / "sides" / _key(tree, recipe)
    with _locked(folder, label, note):
        if not _intact(folder):
            note(f"{side}: preparing {label} ...")
            shutil.rmtree(folder, ignore_errors=True)
            _make_folder(folder)
            if ref is not None:
                write_commit(repo, commit, tree, folder)
            elif write_files(repo, parts, tree, folder) != tree:  # files were saved: another version
                shutil.rmtree(folder)
                return prepare_side(
                    side, ref, repo=repo, packages=packages, build_command=build_command, note=note
                )
            _build(folder, packages, build_command, label)
            built = _native(_package_root(folder, packages, label))
            marker = {"label": label, "recipe": recipe, "native": built}
            write_atomically(folder / DONE, json.dumps(marker, indent=1) + "\n")
        os.utime(folder / DONE)
    _prune(folder.parent)
    root = _package_root(folder, packages, label)
    return SideCode(
        side=side,
        label=label,
        root=str(root),
        packages=list(packages),
        code=CodeIdentity(
            bitbench=_version(),
            impl=commit[:12] + ("+changes" if tree.digest != committed.digest else ""),
            commit=commit,
            dirty=tree.digest != committed.digest,
            digest=tree.digest,
            native=_native(root),
            label=label,
        ),
    )


def describe_sides(
    plan: Plan,
    machine: Machine,
    run: str,
    suite_path: str,
    sides: tuple[SideCode, SideCode],
    purpose: Purpose,
    slowdown: Mapping[str, float],
) -> RunInfo:
    """The head of a new run of two sides, base first."""
    base, head = (
        side.code.model_copy(update={"native": _served(side, machine.facts.get("native", {}))})
        for side in sides
    )
    return describe(plan, machine, run, suite_path).model_copy(
        update={
            "purpose": purpose,
            "code": head,
            "sides": {"base": base, "head": head},
            "slowdown": max(slowdown.values(), default=0.0),
        }
    )


def _served(side: SideCode, probed: Mapping[str, Any]) -> dict[str, Any]:
    """Native kernels of a side: its own, for the instruction set that the machine was found to have;
    those probed where ``impl`` is not what is compared."""
    if OWN_PACKAGE not in side.packages:
        return dict(probed)
    known = ("isa", "isas", "threads") if side.code.native.get("library") else ()
    return {**{name: probed[name] for name in known if name in probed}, **side.code.native}


def _parts(packages: Sequence[str], build_command: str | None) -> list[str]:
    """What of the repository belongs to a side: all where its own build may read anything."""
    if build_command is not None:
        return []
    own = [NATIVE_SOURCES] if OWN_PACKAGE in packages else []
    return [
        *own,
        *(f"{place}{name}{end}" for name in packages for place in ("", "src/") for end in ("", ".py")),
    ]


def _label(ref: str | None, commit: str, *, dirty: bool) -> str:
    short = commit[:8]
    if ref is None:
        return f"working tree ({short}{', changed' if dirty else ''})"
    return short if commit.startswith(ref) else f"{ref} ({short})"


def _recipe(tree: Tree, packages: Sequence[str], build_command: str | None) -> dict[str, object]:
    """How a snapshot is made besides its sources: what is made otherwise is another snapshot."""
    recipe: dict[str, object] = {"recipe": RECIPE, "packages": list(packages), "command": build_command}
    if build_command is not None:
        recipe["python"] = sys.version
    elif any(entry.path == f"{NATIVE_SOURCES}/CMakeLists.txt" for entry in tree.entries):
        recipe["compiler"] = _compiler()
        recipe["flags"] = list(CMAKE_FLAGS)
    recipe["variables"] = {name: os.environ[name] for name in BUILD_VARIABLES if name in os.environ}
    return recipe


def _key(tree: Tree, recipe: dict[str, object]) -> str:
    """Name of the snapshot's folder. All have one length, so that no path is longer on one side."""
    told = json.dumps([tree.digest, recipe], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:20]


def _compiler() -> str:
    """First line of what the C++ compiler says of itself; :class:`ToolError` without one."""
    command = os.environ.get("CXX", "c++")
    try:
        done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        raise ToolError(
            f"no C++ compiler ({command}): the kernels of the two sides cannot be built",
            "install one (g++ or clang++), or name it with the environment variable CXX",
        ) from None
    return done.stdout.partition("\n")[0]


@contextlib.contextmanager
def _locked(folder: Path, label: str, note: Callable[[str], None]) -> Iterator[None]:
    """The only process that looks at this snapshot; says so when another one builds it."""
    _make_folder(folder.parent)
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        note(f"another bitbench is preparing {label}; waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror or error}",
            f"name a writable folder with the environment variable {CACHE_VARIABLE}",
        ) from error


def _build(folder: Path, packages: Sequence[str], command: str | None, label: str) -> None:
    """Build what there is to build in the snapshot ``folder``."""
    if command is not None:
        _run(["/bin/sh", "-c", command], folder, f"`{command}` failed for {label}")
        return
    if OWN_PACKAGE not in packages or not (folder / NATIVE_SOURCES / "CMakeLists.txt").exists():
        return
    cmake = _cmake()
    what = f"the kernels of {label} cannot be built"
    place = folder / "build"
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    _run([cmake, "-S", NATIVE_SOURCES, "-B", place.name, *ninja, *CMAKE_FLAGS], folder, what)
    _run([cmake, "--build", place.name, "--parallel", str(os.cpu_count() or 1)], folder, what)
    _run([cmake, "--install", place.name, "--prefix", str(folder)], folder, what)
    shutil.rmtree(place)


def _cmake() -> str:
    beside = Path(sys.executable).parent / "cmake"
    found = shutil.which("cmake") or (str(beside) if beside.exists() else None)
    if found is None:
        raise ToolError(
            "cmake is not installed: the kernels cannot be built", "install it: pip install cmake"
        )
    return found


def _run(command: list[str], folder: Path, what: str) -> None:
    """Run a step of a build; :class:`ToolError` with the last lines it wrote where it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ToolError(f"{what}: {error}") from error
    if done.returncode != 0:
        last = done.stdout.strip().splitlines()[-LOG_LINES:]
        told = "\n".join(f"    {line}" for line in last)
        raise ToolError(f"{what} (exit code {done.returncode}):\n{told}", "mend that version's build")


def _package_root(folder: Path, packages: Sequence[str], label: str) -> Path:
    """The folder of the snapshot from which all ``packages`` can be imported."""

    def holds(root: Path, name: str) -> bool:
        return (root / name).is_dir() or (root / f"{name}.py").is_file()

    roots = (folder, folder / "src")
    for root in roots:
        if all(holds(root, name) for name in packages):
            return root
    missing = next((n for n in packages if not any(holds(root, n) for root in roots)), packages[0])
    raise UserError(
        f"{label} has no package {missing!r} at its top or under src/",
        "give the folder names of the packages to compare with --package NAME",
    )


def _intact(folder: Path) -> bool:
    """Whether a finished snapshot is there, with the library that was built for it."""
    try:
        marker = json.loads((folder / DONE).read_text(encoding="utf-8"))
        return any(_native(root) == marker["native"] for root in (folder, folder / "src"))
    except (OSError, ValueError, KeyError):
        return False


def _native(root: Path) -> dict[str, object]:
    """The compiled library of ``impl``, if any: named and hashed, so that two builds are told apart."""
    found = sorted((root / OWN_PACKAGE / NATIVE_DIR).glob("*.so"))
    if not found:
        return {"library": None, "library_sha256": None}
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in found)).hexdigest()
    return {"library": ", ".join(path.name for path in found), "library_sha256": digest}


def _version() -> str:
    """Version of the bitbench that measures."""
    try:
        return metadata.version("bitbench")
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _prune(folder: Path) -> None:
    """Remove snapshots that nobody has used for :data:`KEEP_DAYS`, and what was left half made."""
    limit = time.time() - KEEP_DAYS * 86400
    for place in folder.iterdir():
        if not place.is_dir():
            continue
        marker = place / DONE
        with contextlib.suppress(FileNotFoundError, Timeout):  # another bitbench removes it, or uses it
            if (marker if marker.exists() else place).stat().st_mtime < limit:
                with FileLock(f"{place}.lock", timeout=0):
                    shutil.rmtree(place, ignore_errors=True)
