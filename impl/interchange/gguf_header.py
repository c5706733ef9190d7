"""The head of a GGUF file, walked before anything else reads it.

The gguf package believes every length that it meets: one flipped bit in the length of a list has it
collect values until memory is gone. Here each length is held against the bytes that follow.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _LIST = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type: the integers, floats and bool."""

_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_DEEPEST = 4  # lists within lists: no writer nests them


def check_header(path: str | os.PathLike[str]) -> None:
    """ValueError unless the file begins with a whole GGUF header in this machine's byte order: the
    key-value pairs and the list of tensors, without the tensors' data."""
    with open(path, "rb") as file:
        walk = _Walk(file)
        magic = walk.take(len(_MAGIC))
        if magic != _MAGIC:
            raise ValueError(f"it begins with {magic!r}, not {_MAGIC!r}")
        version = walk.number("I")
        if version & 0xFFFF == 0:
            raise ValueError("it has the byte order of another machine: convert it with gguf-convert-endian")
        if version not in _VERSIONS:
            raise ValueError(f"it is of GGUF version {version}, read are {_VERSIONS[0]} and {_VERSIONS[1]}")
        tensors, pairs = walk.number("Q"), walk.number("Q")
        for _ in range(pairs):
            walk.string()
            walk.value(walk.number("I"), 0)
        for _ in range(tensors):
            walk.string()
            dimensions = walk.number("I")
            if dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions, GGUF has at most {_MOST_DIMENSIONS}")
            walk.skip(8 * dimensions + 4 + 8)  # sizes, type, offset


class _Walk:
    """A place in the file that never goes past its end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        self._count(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        self._count(count)
        self._file.seek(count, os.SEEK_CUR)

    def number(self, code: str) -> int:
        number: int = struct.unpack(f"={code}", self.take(struct.calcsize(f"={code}")))[0]
        return number

    def string(self) -> None:
        self.skip(self.number("Q"))

    def value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _LIST and depth < _DEEPEST:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SIZES:
                self.skip(_SIZES[inner] * count)
            else:
                for _ in range(count):  # each takes bytes, so that the end of the file ends this
                    self.value(inner, depth + 1)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"it holds a value of the unknown type {kind}")

    def _count(self, count: int) -> None:
        if count > self._left:
            raise ValueError(f"{count} bytes should follow where {self._left} are left")
        self._left -= count
