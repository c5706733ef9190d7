"""A plug-in with misbehaving layers, a sink that remembers, and suites made of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute.runner import Limits, Machine, execute
from bitbench.layers.registry import REGISTRY as LAYERS
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, Record
from bitbench.suite.expand import Plan, expand
from bitbench.suite.schema import Suite
from bitbench.workloads.registry import REGISTRY as WORKLOADS

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENTRY_POINTS = """
[bitbench.layers]
fake = fake_kinds:FakeLayer

[bitbench.workloads]
fake = fake_kinds:FakeWorkload
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs the plug-in for this process and its workers; yields the log of what it did."""
    installed = tmp_path / "site"
    info = installed / "fake_kinds-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-kinds\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    paths = [str(installed), str(HERE / "plugin")]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, str(ROOT)]))
    log = tmp_path / "fake.log"
    monkeypatch.setenv("FAKE_LOG", str(log))
    _forget()
    yield log
    sys.modules.pop("fake_kinds", None)
    _forget()


def _forget() -> None:
    for registry in (LAYERS, WORKLOADS):
        registry.__dict__.pop("_peers", None)
        registry._loaded.pop("fake", None)


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
