"""Lengths in the head of a GGUF file are held against the file before anything is read by them."""

from __future__ import annotations

import contextlib
import struct

import pytest
from gguf import GGUFEndian, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl import BitLinear
from impl.interchange import read_gguf, save_gguf
from impl.interchange.gguf_header import check_header


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a good file, and how many of them are its header."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    metadata = {"a": "text", "numbers": [1, 2, 3], "words": ["one", "two"], "x": 0.5, "on": True}
    save_gguf(nn.Sequential(BitLinear(256, 4, bias=False)), path, metadata=metadata)
    name = path.read_bytes().index(b"0.weight")
    return path.read_bytes(), name + len("0.weight") + 4 + 2 * 8 + 4 + 8


def head(*pairs, tensors=0, version=3, count=None):
    """A header of ``pairs`` of a key and the bytes of its value."""
    start = b"GGUF" + struct.pack("=IQQ", version, tensors, len(pairs) if count is None else count)
    return start + b"".join(text(key) + value for key, value in pairs)


def text(value):
    return struct.pack("=Q", len(value)) + value.encode()


def test_whole_files_pass(whole, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[0])
    check_header(path)
    nested = struct.pack("=IIQ", 9, 9, 1) + struct.pack("=IQB", 0, 1, 7)
    path.write_bytes(head(("k", nested), ("s", struct.pack("=I", 8) + text("v"))))
    check_header(path)


def test_every_truncation_is_seen(whole, tmp_path):
    data, size = whole
    path = tmp_path / "m.gguf"
    for length in range(size):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="bytes should follow"):
            check_header(path)
    path.write_bytes(data[:size])
    check_header(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGML" + bytes(30), "begins with b'GGML', not b'GGUF'"),
        (head(version=1), "GGUF version 1, read are 2 and 3"),
        (head(version=4), "GGUF version 4"),
        (struct.pack("=4sI", b"GGUF", 3 << 24), "byte order of another machine"),
        (head(("k", struct.pack("=I", 99))), "unknown type 99"),
        (head(("k", struct.pack("=IIQ", 9, 4, 1 << 40))), "4398046511104 bytes should follow where 0"),
        (head(("k", struct.pack("=IIQ", 9, 8, 1 << 60))), "8 bytes should follow where 0"),
        (head(("k", struct.pack("=IQ", 8, 1 << 50))), "1125899906842624 bytes should follow"),
        (head(("k", struct.pack("=I", 9) + struct.pack("=IQ", 9, 1) * 9)), "unknown type 9"),
        (head(count=1 << 62), "8 bytes should follow where 0"),
        (head(tensors=1) + text("t") + struct.pack("=I", 5), "has 5 dimensions, GGUF has at most 4"),
    ],
)
def test_lengths_beyond_the_file_cost_no_memory(tmp_path, data, message):
    """The gguf package collects list items until memory is gone."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"not a whole GGUF file: .*{message}"):
        read_gguf(path)


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_gives_a_file_or_an_error(whole, tmp_path_factory, place, bit):
    data, size = whole
    damaged = bytearray(data)
    damaged[place % size] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(damaged)
    with contextlib.suppress(ValueError):
        read_gguf(path)


def test_files_of_another_byte_order_are_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "m.gguf", "test", endianess=GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="byte order of another machine: convert it with gguf-convert"):
        read_gguf(tmp_path / "m.gguf")
