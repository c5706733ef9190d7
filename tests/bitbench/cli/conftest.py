"""A machine that measures nothing: two versions with known differences, as the gate would see them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute import machine, paired, sides
from bitbench.execute.machine import Machine
from bitbench.execute.sides import SideCode, describe_sides
from bitbench.measure import foreign
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, CodeIdentity, Record, Side, Status
from bitbench.store.writer import RunWriter
from bitbench.suite.expand import Plan
from bitbench.workloads.self_proof import slowed_layers

SUITE = """
schema: 1
name: tiny
baseline: linear
launches: 10
threads: THREADS
device: cpu
layers:
  linear: {kind: linear}
  binary: {kind: binary}
  ternary: {kind: ternary}
workloads:
  - {kind: linear, shapes: [[64, 32]], tokens: [1], cache: [hot]}
"""
BYTES = {"linear": 8192.0, "binary": 512.0, "ternary": 900.0}


@dataclass
class Lab:
    """What the pretended machine does. Shares are relative: 0.1 means a tenth longer."""

    folder: Path
    slower: dict[str, float] = field(default_factory=dict)
    """By layer, how much longer the head takes, in every purpose but calibration."""
    spread: dict[str, float] = field(default_factory=dict)
    """By layer, standard deviation from launch to launch; else 0.3 %."""
    null_bias: float = 0.0
    blind: bool = False
    """The slowdown that the proof puts in has no effect."""
    inert: bool = False
    """Nothing that is put in has any."""
    dies: str = ""
    """Layer whose worker dies on the head side."""
    lacks: str = ""
    """Layer that the base does not know; a calibration is of the base alone."""
    digest: str = ""
    """Of the sources."""
    bytes: dict[str, float] = field(default_factory=dict)
    """Bytes of a layer on the head side."""
    facts: dict[str, Any] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    """Other programs at work."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """What was asked for, one entry a call."""

    def suite(self, threads: int = 1) -> Path:
        path = self.folder / "tiny.yaml"
        path.write_text(SUITE.replace("THREADS", str(threads)))
        return path

    def probe(self, device: str, threads: int, logs: Path, **_: Any) -> Machine:
        torch = {"version": "2.13.0", **self.facts}
        return Machine("cpu", threads, {"device": "cpu", "torch": torch, "native": {}})

    def prepare_side(self, side: Side, ref: str | None, **_: Any) -> SideCode:
        label = ref or "working tree"
        code = CodeIdentity(bitbench="0", impl="0", commit="1a2b3c4d", label=label, digest=self.digest)
        return SideCode(side, label, str(self.folder / label), ["impl"], code)

    def execute_paired(
        self,
        plan: Plan,
        run_dir: Path,
        sides: tuple[SideCode, SideCode],
        *,
        sink: Any,
        machine: Machine,
        purpose: Any,
        suite_path: str,
        launches: range | None = None,
        only: set[str] | None = None,
        reverse: bool = False,
        slowdown: dict[str, float] | None = None,
        append: bool = False,
    ) -> RunData:
        self.rounds.append(
            {"purpose": purpose, "launches": launches, "only": only, "reverse": reverse, "append": append}
        )
        slow = {**slowed_layers(plan), **(slowdown or {})}
        if append:
            writer = RunWriter.reopen(run_dir)
        else:
            info = describe_sides(plan, machine, run_dir.name, suite_path, sides, purpose, slowdown or {})
            writer = RunWriter.create(run_dir, info, plan.cases)
        with writer:
            for case in plan.cases:
                if only is not None and case.id not in only:
                    continue
                for launch in (launches or range(case.launches)) if case.phase == "timed" else range(1):
                    for side in ("base", "head"):
                        writer.records([self._record(case, launch, side, purpose, slow)])
        return load_run(run_dir)

    def _record(self, case: Case, launch: int, side: Any, purpose: str, slow: dict[str, float]) -> Record:
        head = side == "head" and purpose != "calibrate"
        if case.layer == self.lacks and (side == "base" or purpose == "calibrate"):
            told = "TypeError: unknown option"
            return Record(case=case.id, launch=launch, side=side, status=Status.ERROR, reason=told)
        if head and case.layer == self.dies:
            return Record(case=case.id, launch=launch, side=side, status=Status.CRASH, reason="SIGSEGV")
        if case.phase == "once":
            found = self.bytes.get(case.layer, BYTES[case.layer]) if head else BYTES[case.layer]
            metrics = {"memory.layer_bytes": found, "memory.peak_bytes": 1e6}
            return Record(case=case.id, launch=launch, side=side, status=Status.OK, metrics=metrics)
        rng = random.Random(f"{case.id} {launch} {side}")
        seconds = 1e-4 * math.exp(rng.gauss(0, self.spread.get(case.layer, 0.003) / math.sqrt(2)))
        blind = self.inert or (self.blind and case.workload == "self_proof")
        if side == "head" and not blind:
            seconds *= 1 + slow.get(case.layer, 0.0)
        if head:
            seconds *= 1 + self.slower.get(case.layer, 0.0)
            seconds *= 1 + (self.null_bias if case.layer == "self-proof-null" else 0.0)
        ns = round(seconds * 1e9)
        return Record(
            case=case.id, launch=launch, side=side, status=Status.OK, calls=10, samples_ns=[10 * ns] * 4
        )


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The pretended machine in place of workers and builds, with a cache of its own."""
    made = Lab(tmp_path)
    monkeypatch.setattr(paired, "execute_paired", made.execute_paired)
    monkeypatch.setattr(sides, "prepare_side", made.prepare_side)
    monkeypatch.setattr(machine, "probe", made.probe)
    monkeypatch.setattr(foreign, "busy_processes", lambda: made.busy)
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return made
