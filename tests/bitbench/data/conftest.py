"""A catalog of one small wheel, and a client that hands it out instead of the network."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bitbench.data import fetch
from bitbench.data.catalog import Artefact, Entry, KeptFile

PLAIN = b"as it was before it was compressed" * 50
CONTENT = {
    "toy/model.bin": b"\x01\x02\x03" * 1000,
    "toy/texts/a.txt": b"first",
    "toy/texts/b.txt": b"second text",
    "toy/unwanted.bin": b"x" * 5000,
    "toy/packed.gz": gzip.compress(PLAIN, mtime=0),
}


@dataclass
class Registry:
    """A registry that serves files from a list, one a request, and counts the requests."""

    item: Entry
    wheel: Path
    content: dict[str, bytes]
    """What the wheel holds, by path."""
    serves: list[bytes] = field(default_factory=list)
    """What the next requests get; when empty, the good wheel."""
    requests: list[bool] = field(default_factory=list)
    """For each request, whether it asked to bypass caches."""
    error: Exception | None = None

    def client(self, item: Entry, folder: Path, report: Callable[[int], None], fresh: bool) -> Path:
        self.requests.append(fresh)
        if self.error is not None:
            raise self.error
        content = self.serves.pop(0) if self.serves else self.wheel.read_bytes()
        arrived = folder / item.artefact.name
        arrived.write_bytes(content)
        report(len(content))
        return arrived


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in CONTENT.items():
            archive.writestr(path, content)

    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    texts = [path for path in CONTENT if path.startswith("toy/texts/")]
    lines = "".join(f"{digest(CONTENT[path])}  {path}\n" for path in texts)
    item = Entry(
        title="a toy",
        holds="text",
        registry="pypi",
        package="toy",
        version="1.0",
        artefact=Artefact(name=wheel.name, size=wheel.stat().st_size, sha256=digest(wheel.read_bytes())),
        files=(
            KeptFile(
                path="toy/model.bin",
                keep_as="model.bin",
                size=len(CONTENT["toy/model.bin"]),
                sha256=digest(CONTENT["toy/model.bin"]),
            ),
            KeptFile(
                path="toy/texts/*.txt",
                keep_as="texts",
                count=2,
                size=sum(len(CONTENT[path]) for path in texts),
                sha256=digest(lines.encode()),
            ),
        ),
        licence="MIT",
        source="https://example.org/toy",
        loader="bitbench.data.texts.load_text",
    )
    made = Registry(item, wheel, CONTENT)
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "entry", lambda name: {"toy": item}[name])
    monkeypatch.setitem(fetch.CLIENTS, "pypi", made.client)
    return made
