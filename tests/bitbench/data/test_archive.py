"""Wheels and npm packages are read alike; what is damaged or no plain file is refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from bitbench.data.archive import UnreadableArchive, open_archive

CONTENT = {"package/data/a.bin": b"\x00\x01" * 5000, "package/readme.md": b"read me"}


@pytest.fixture(params=["toy-1.0.tgz", "toy-1.0-py3-none-any.whl"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".tgz":
        with tarfile.open(path, "w:gz") as tar:
            for name, content in CONTENT.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            link = tarfile.TarInfo("package/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
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
