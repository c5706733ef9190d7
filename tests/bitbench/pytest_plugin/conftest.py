"""Real pytest sessions in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOREIGN = ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST")
QUICK = ("--bitbench-seconds", "0.002")

LOG = """
import os, pathlib, pytest
def log(name, what):
    with pathlib.Path(__file__).with_name(name).open("a") as file:
        file.write(f"{what}\\n")
"""
"""Head of a test file: ``log(name, what)`` adds a line to a file beside it."""


@dataclass
class Sessions:
    """A folder with tests, and how to run pytest there."""

    folder: Path

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LOG + textwrap.dedent(text))
        return path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join([str(ROOT), variables.pop("PYTHONPATH", "")]).rstrip(os.pathsep),
            "BITBENCH_LOCK_DIR": str(self.folder / "locks"),
            **variables,
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "pytest", "-p", "bitbench.pytest_plugin", *arguments]

    def run(self, *arguments: str, cwd: str = ".", **variables: str) -> subprocess.CompletedProcess[str]:
        """One pytest session, in a process of its own."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder / cwd,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def timed(self, *arguments: str, launches: int = 2, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("--bitbench-launches", str(launches), *QUICK, *arguments, **variables)

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def entries(self, name: str = "out.json") -> dict[str, Any]:
        data = json.loads((self.folder / name).read_text())
        return {entry["name"]: entry for entry in data["benchmarks"]}


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Sessions(tmp_path)
