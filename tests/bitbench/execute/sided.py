"""Layers whose work is done by a library that differs by side, and what the tests ask of such runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitbench.execute import paired
from bitbench.execute.sides import SideCode
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, CodeIdentity, Record, Side, Status
from bitbench.suite.expand import Plan, expand
from bitbench.suite.schema import Suite

LIBRARY = """
import os, signal, time

SIDE = {side!r}
DEEDS = {deeds!r}
calls = 0


def log(*words):
    with open(os.environ["SIDED_LOG"], "a") as file:
        file.write(" ".join(map(str, (SIDE, os.getpid(), *words))) + "\\n")


def do(what, layer):
    deed = DEEDS.get((what, layer))
    if deed == "abort":
        os.abort()
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "hang":
        time.sleep(3600)
    if deed == "raise":
        raise ValueError(f"{{layer}} raises")
    if deed == "raise, then abort":
        Bomb()
        raise ValueError(f"{{layer}} raises")


class Bomb:  # goes off when it is collected
    def __init__(self):
        self.itself = self

    def __del__(self):
        os.abort()


def build(layer):
    log("build", layer)
    do("build", layer)


def reset(layer):
    global calls
    log("calls", layer, calls)
    calls = 0


def call(layer):
    global calls
    calls += 1
    do("call", layer)
    time.sleep(0.0002)
    return calls


def right(layer, check):
    if check > 1:
        do("conclude", layer)
    return DEEDS.get(("check", layer)) != "wrong"


def size(layer):
    return {size}


do("import", "")
"""


class Notes:
    """A sink that remembers, and does what a test asks when a record comes."""

    def __init__(self) -> None:
        self.total = 0
        self.records: list[Record] = []
        self.notes: list[str] = []
        self.ended = False
        self.on_record: Callable[[Record], None] = lambda record: None
        self.on_at: Callable[[Case, str], None] = lambda case, stage: None

    def started(self, records: int, seconds: float) -> None:
        self.total = records

    def extended(self, records: int, seconds: float) -> None:
        self.total += records

    def at(self, launch: str, case: Case, stage: str) -> None:
        self.on_at(case, stage)

    def recorded(self, case: Case, record: Record, seconds: float) -> None:
        self.records.append(record)
        self.on_record(record)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def finished(self) -> None:
        self.ended = True


def side_code(folder: Path, side: Side, deeds: dict[tuple[str, str], str]) -> SideCode:
    package = folder / side / "sidelib"
    package.mkdir(parents=True, exist_ok=True)
    size = 8 if side == "base" else 9
    (package / "__init__.py").write_text(LIBRARY.format(side=side, deeds=deeds, size=size))
    code = CodeIdentity(bitbench="0", impl="0", digest=side, label=f"version {side}")
    return SideCode(side, f"version {side}", str(package.parent), ["sidelib"], code)


def make_plan(
    *layers: str, launches: int = 1, max_calls: int | None = None, seed: int = 0, **workload: Any
) -> Plan:
    suite = Suite.model_validate(
        {
            "schema": 1,
            "name": "sides",
            "baseline": layers[0],
            "launches": launches,
            "seed": seed,
            "layers": {name: {"kind": "sided", "max_calls": max_calls} for name in layers},
            "workloads": [{"kind": "sided", **workload}],
        }
    )
    return expand(suite)


def outcomes(run: RunData, launch: int | None = None) -> dict[tuple[str, str], Status]:
    """Status by side and layer."""
    layers = {case.id: case.layer for case in run.cases}
    chosen = [r for r in run.records if launch is None or r.launch == launch]
    return {(record.side, layers[record.case]): record.status for record in chosen}


def reasons(run: RunData) -> dict[tuple[str, str], str]:
    layers = {case.id: case.layer for case in run.cases}
    return {(record.side, layers[record.case]): record.reason for record in run.records}


def assert_complete(run: RunData) -> None:
    """Every case has one record of each side for each launch."""
    seen = Counter((record.case, record.launch, record.side) for record in run.records)
    wanted = {(c.id, n, s) for c in run.cases for n in range(c.launches) for s in paired.SIDES}
    assert set(seen) == wanted
    assert set(seen.values()) == {1}
    lines = (run.path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == len(wanted)


def said(log: Path, what: str) -> list[list[str]]:
    """What the sides logged of ``what``: side, process id, and the rest."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [[side, pid, *rest] for side, pid, word, *rest in lines if word == what]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_all_ended(log: Path) -> None:
    pids = {int(line.split()[1]) for line in log.read_text().splitlines()}
    assert pids
    assert not any(map(alive, pids))
