"""Reading single files out of what a registry hands out: a wheel (zip) or an npm package (tar.gz)."""

from __future__ import annotations

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


@contextmanager
def open_archive(path: Path, name: str) -> Iterator[Archive]:
    """The archive at ``path``, of the kind that ``name`` says (``.tgz``, else zip), while the block runs.

    Raises:
        UnreadableArchive: here or when a file is read, where the bytes make no sense.
    """
    try:
        if name.endswith(".tgz"):
            with tarfile.open(path, "r:gz") as tar:
                yield _Tar(tar)
        else:
            with zipfile.ZipFile(path) as wheel:
                yield _Zip(wheel)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as problem:
        raise UnreadableArchive(str(problem) or type(problem).__name__) from None
