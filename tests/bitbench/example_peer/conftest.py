"""The example peer as pip would leave it: its modules beside metadata made from its pyproject.toml."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitbench.layers.registry import REGISTRY as LAYERS
from bitbench.report.reporters import REGISTRY as REPORTERS
from bitbench.workloads.registry import REGISTRY as WORKLOADS

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def install(site: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    """Metadata of a distribution with these entry points, under ``site``."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))


def forget() -> None:
    """Let the registries look for packages again."""
    for registry in (LAYERS, WORKLOADS, REPORTERS):
        registry.__dict__.pop("_peers", None)
        registry._loaded.clear()
    for module in [name for name in sys.modules if name.partition(".")[0] == "example_peer"]:
        del sys.modules[module]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages, seen by this process and its children; empty at first."""
    folder = tmp_path / "site"
    folder.mkdir()
    paths = [str(folder), str(HERE)]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, str(ROOT)]))
    forget()
    yield folder
    forget()


@pytest.fixture
def peer(site: Path) -> Path:
    """The example peer, installed."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(site, project["name"], project["version"], project["entry-points"])
    forget()
    return site
