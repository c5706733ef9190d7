"""Reading single files out of what a registry hands out: a wheel (zip), an npm package (tar.gz) or a Debian
package (ar, with the files in a tar inside)."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class UnreadableArchive(Exception):
    """The file is no archive of its kind, or a damaged one."""


class Archive(ABC):
    """An open archive. Nothing is extracted to disk: the caller reads and writes, and decides on names."""

    @abstractmethod
    def names(self) -> list[str]:
        """Paths of the regular files inside."""

    @abstractmethod
    def open(self, name: str) -> IO[bytes]:
        """A reader of one of :meth:`names`."""


class _Zip(Archive):
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return self._archive.namelist()

    def open(self, name: str) -> IO[bytes]:
        return self._archive.open(name)


class _Tar(Archive):
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        # A link would be read as what it points to, which may lie anywhere.
        return [member.name for member in self._archive.getmembers() if member.isfile()]

    def open(self, name: str) -> IO[bytes]:
        reader = self._archive.extractfile(name)
        assert reader is not None
        return reader


_AR_MAGIC = b"!<arch>\n"
_AR_HEAD = 60
"""Bytes in front of each member of an ar archive: its name in 16, its size in decimal from byte 48 on."""
_DEB_FILES = ("data.tar", "data.tar.gz", "data.tar.xz")


def _deb_files(path: Path) -> IO[bytes]:
    """The tar inside a Debian package that holds its files (deb(5)), compressed as it is."""
    with path.open("rb") as reader:
        if reader.read(len(_AR_MAGIC)) != _AR_MAGIC:
            raise UnreadableArchive("it does not start as an ar archive does")
        while head := reader.read(_AR_HEAD):
            member, size = head[:16].decode("ascii", "replace").strip(" /"), head[48:58].strip()
            if head[58:] != b"`\n" or not size.isdigit():
                raise UnreadableArchive("a member of the ar archive has a broken head")
            if member in _DEB_FILES:
                return io.BytesIO(reader.read(int(size)))
            reader.seek(int(size) + int(size) % 2, 1)
    raise UnreadableArchive(f"the ar archive has none of {', '.join(_DEB_FILES)}")


@contextmanager
def open_archive(path: Path, name: str) -> Iterator[Archive]:
    """The archive at ``path``, of the kind that ``name`` says (``.tgz``, ``.deb``, else zip), while the block
    runs.

    Raises:
        UnreadableArchive: here or when a file is read, where the bytes make no sense.
    """
    try:
        if name.endswith(".tgz"):
            with tarfile.open(path, "r:gz") as tar:
                yield _Tar(tar)
        elif name.endswith(".deb"):
            with tarfile.open(fileobj=_deb_files(path)) as tar:
                yield _Tar(tar)
        else:
            with zipfile.ZipFile(path) as wheel:
                yield _Zip(wheel)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as problem:
        raise UnreadableArchive(str(problem) or type(problem).__name__) from None
