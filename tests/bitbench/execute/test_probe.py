"""What a run records of the kernels that were there: names and hashes, no paths."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

import impl
from bitbench.execute import probe
from impl import native
from impl.native import cuda


@dataclass
class Cuda:
    library: str | None
    why_not: str = ""


@dataclass
class Found:
    library: str | None
    cuda: Cuda


def test_libraries_are_named_and_hashed_but_not_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path can name a person, and a run may be published."""
    paths = {name: tmp_path / f"libbitimpl_{name}.so" for name in ("cpu", "cuda")}
    for name, path in paths.items():
        path.write_text(name)
    found = Found(str(paths["cpu"]), Cuda(str(paths["cuda"])))
    monkeypatch.setattr(impl, "capabilities", lambda: found)
    monkeypatch.setattr(native, "library_path", lambda: paths["cpu"])
    monkeypatch.setattr(cuda, "library_path", lambda: paths["cuda"])
    said = probe.native()
    assert str(tmp_path) not in str(said)
    for part, name in ((said, "cpu"), (said["cuda"], "cuda")):
        assert part["library"] == f"libbitimpl_{name}.so"
        assert part["library_sha256"] == hashlib.sha256(name.encode()).hexdigest()


def test_where_there_is_none_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(impl, "capabilities", lambda: Found(None, Cuda(None, "not built")))
    monkeypatch.setattr(native, "library_path", lambda: None)
    monkeypatch.setattr(cuda, "library_path", lambda: None)
    said = probe.native()
    assert said["library"] is None
    assert said["cuda"] == {"library": None, "library_sha256": None, "why_not": "not built"}
