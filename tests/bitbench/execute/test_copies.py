"""Copies of a side: packages are new files, everything else is reachable, the original stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitbench.execute.copies import private_copy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "side"
    (folder / "impl" / "_native").mkdir(parents=True)
    (folder / "impl" / "__init__.py").write_text("x = 1\n")
    (folder / "impl" / "_native" / "lib.so").write_bytes(b"\x7fELF")
    (folder / "impl" / "link.py").symlink_to("__init__.py")
    (folder / "alone.py").write_text("y = 2\n")
    (folder / "csrc").mkdir()
    (folder / "csrc" / "a.cpp").write_text("int a;\n")
    return folder


def test_packages_are_new_files_with_the_same_content(root: Path, tmp_path: Path) -> None:
    place = private_copy(root, ["impl", "alone"], tmp_path / "run" / "launch-0")
    for name in ("impl/__init__.py", "impl/_native/lib.so", "alone.py"):
        copy, original = place / name, root / name
        assert copy.read_bytes() == original.read_bytes()
        assert copy.stat().st_ino != original.stat().st_ino
        assert copy.stat().st_mtime_ns == original.stat().st_mtime_ns, "compiled modules stay valid"
    assert (place / "impl" / "link.py").is_symlink()


def test_what_lies_beside_is_linked_not_copied(root: Path, tmp_path: Path) -> None:
    place = private_copy(root, ["impl"], tmp_path / "copy")
    assert (place / "csrc").is_symlink()
    assert (place / "csrc" / "a.cpp").read_text() == "int a;\n"
    assert (place / "alone.py").is_symlink()


def test_two_launches_share_no_file(root: Path, tmp_path: Path) -> None:
    first, second = (private_copy(root, ["impl"], tmp_path / name) for name in ("a", "b"))
    inodes = [(place / "impl" / "_native" / "lib.so").stat().st_ino for place in (first, second)]
    assert inodes[0] != inodes[1]
