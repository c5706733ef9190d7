"""Wheels, npm packages and those of Debian are read alike; what is damaged or no plain file is refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from bitbench.data.archive import UnreadableArchive, open_archive

CONTENT = {"package/data/a.bin": b"\x00\x01" * 5000, "package/readme.md": b"read me"}


def write_tar(tar: tarfile.TarFile) -> None:
    for name, content in CONTENT.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    link = tarfile.TarInfo("package/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar.addfile(link)


def ar(*members: tuple[str, bytes]) -> bytes:
    """An ar archive: a head of 60 bytes in front of each member, which starts at an even place."""
    parts = [b"!<arch>\n"]
    for name, content in members:
        head = f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(content):<10}`\n"
        parts += [head.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def deb(compression: str = "xz") -> bytes:
    """A Debian package of :data:`CONTENT`; what is in front of its files has an odd length."""
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]  # any mode
        write_tar(tar)
    name = f"data.tar.{compression}".rstrip(".")
    return ar(("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (name, files.getvalue()))


@pytest.fixture(params=["toy-1.0.tgz", "toy-1.0-py3-none-any.whl", "toy_1.0_all.deb"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".tgz":
        with tarfile.open(path, "w:gz") as tar:
            write_tar(tar)
    elif path.suffix == ".deb":
        path.write_bytes(deb())
    else:
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in CONTENT.items():
                wheel.writestr(name, content)
    return path


def test_holds_its_plain_files_and_no_links(archive: Path) -> None:
    with open_archive(archive, archive.name) as opened:
        assert sorted(opened.names()) == sorted(CONTENT)
        for name, content in CONTENT.items():
            assert opened.open(name).read() == content


def test_the_kind_goes_by_the_name_asked_for(archive: Path, tmp_path: Path) -> None:
    """A file brought by hand may be called anything."""
    renamed = archive.rename(tmp_path / "download")
    with open_archive(renamed, archive.name) as opened:
        assert sorted(opened.names()) == sorted(CONTENT)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_damaged_one_is_refused(archive: Path, keep: float) -> None:
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(keep * len(whole))] or b"not an archive")

    def read_all() -> None:
        with open_archive(archive, archive.name) as opened:
            for name in opened.names():
                opened.open(name).read()

    with pytest.raises(UnreadableArchive):
        read_all()


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_the_files_of_a_debian_package_may_be_compressed_in_any_way(compression: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.deb"
    path.write_bytes(deb(compression))
    with open_archive(path, path.name) as opened:
        assert opened.open("package/readme.md").read() == b"read me"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ar(("debian-binary", b"2.0\n"), ("data.tar.zst", b"later")), "has none of data.tar"),
        (ar(("debian-binary", b"2.0\n"))[:-10], "broken head|has none"),
        (b"!<arch>\n" + b"x" * 60, "broken head"),
        (b"PK\x03\x04", "does not start as an ar archive"),
    ],
)
def test_what_is_no_debian_package_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.deb"
    path.write_bytes(content)
    with pytest.raises(UnreadableArchive, match=message), open_archive(path, path.name):
        pass
