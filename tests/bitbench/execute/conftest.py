"""Plug-ins with layers that misbehave or differ by side, a sink that remembers, and suites made of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute.paired import execute_paired
from bitbench.execute.runner import Limits, Machine, execute
from bitbench.layers.registry import REGISTRY as LAYERS
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, Record
from bitbench.suite.expand import Plan, expand
from bitbench.suite.schema import Suite
from bitbench.workloads.registry import REGISTRY as WORKLOADS

sys.path.insert(0, str(Path(__file__).parent))

import sided

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


@contextmanager
def installed(name: str, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Installs ``<name>_kinds`` of the folder ``plugin`` for this process and its workers."""
    folder = tmp_path / "site"
    info = folder / f"{name}_kinds-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-kinds\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        f"[bitbench.layers]\n{name} = {name}_kinds:{name.title()}Layer\n\n"
        f"[bitbench.workloads]\n{name} = {name}_kinds:{name.title()}Workload\n"
    )
    paths = [str(folder), str(plugin)]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, str(ROOT)]))
    _forget(name)
    yield
    sys.modules.pop(f"{name}_kinds", None)
    _forget(name)


def _forget(name: str) -> None:
    for registry in (LAYERS, WORKLOADS):
        registry.__dict__.pop("_peers", None)
        registry._loaded.pop(name, None)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs layers that misbehave; yields the log of what they did."""
    log = tmp_path / "fake.log"
    monkeypatch.setenv("FAKE_LOG", str(log))
    with installed("fake", HERE / "plugin", tmp_path, monkeypatch):
        yield log


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs layers that differ by side; yields the log of what the sides did."""
    monkeypatch.setenv("BITBENCH_LOCK_DIR", str(tmp_path / "locks"))
    found = tmp_path / "sided.log"
    found.touch()
    monkeypatch.setenv("SIDED_LOG", str(found))
    with installed("sided", HERE / "paired_plugin", tmp_path, monkeypatch):
        yield found


@pytest.fixture
def compare(log: Path, tmp_path: Path) -> Callable[..., RunData]:
    """Measures a plan of sided layers; ``base`` and ``head`` say what goes wrong on a side."""

    def run(
        plan: Plan,
        base: dict[tuple[str, str], str] | None = None,
        head: dict[tuple[str, str], str] | None = None,
        sink: sided.Notes | None = None,
        **options: Any,
    ) -> RunData:
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        return execute_paired(
            plan,
            run_dir,
            (sided.side_code(tmp_path, "base", base or {}), sided.side_code(tmp_path, "head", head or {})),
            sink=sink or sided.Notes(),
            machine=Machine("cpu", 1),
            purpose="compare",
            suite_path="suite.yaml",
            **{"limits": Limits(start=120, least=60), **options},
        )

    return run


class RecordingSink:
    """Remembers what the runner says."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.records: list[Record] = []
        self.stages: list[tuple[str, str, str]] = []
        self.notes: list[str] = []
        self.ended = False
        self.on_record: Callable[[Case, Record], None] = lambda case, record: None

    def started(self, records: int, seconds: float) -> None:
        self.total = records

    def extended(self, records: int, seconds: float) -> None:
        assert self.total is not None
        self.total += records

    def at(self, launch: str, case: Case, stage: str) -> None:
        self.stages.append((launch, case.layer, stage))

    def recorded(self, case: Case, record: Record, seconds: float) -> None:
        self.records.append(record)
        self.on_record(case, record)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def finished(self) -> None:
        self.ended = True


def make_plan(layers: dict[str, dict[str, Any]], launches: int = 1, **workload: Any) -> Plan:
    """A plan of one fake workload entry."""
    suite = Suite.model_validate(
        {
            "schema": 1,
            "name": "fakes",
            "baseline": next(iter(layers)),
            "launches": launches,
            "layers": {name: {"kind": "fake", **spec} for name, spec in layers.items()},
            "workloads": [{"kind": "fake", **workload}],
        }
    )
    return expand(suite)


def run_plan(plan: Plan, run_dir: Path, *, sink: RecordingSink | None = None, **options: Any) -> RunData:
    """Execute ``plan`` with quick limits and no probe."""
    run_dir.mkdir(exist_ok=True)
    return execute(
        plan,
        run_dir,
        sink=sink or RecordingSink(),
        machine=Machine("cpu", 1),
        **{"limits": Limits(start=120, least=60), **options},
    )


@pytest.fixture
def sink() -> RecordingSink:
    return RecordingSink()


@pytest.fixture
def plan_of(plugin: Path) -> Callable[..., Plan]:
    return make_plan


@pytest.fixture
def run_of() -> Callable[..., RunData]:
    return run_plan
