"""Small runs made of numbers: one plain, or one of two versions measured in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitbench.store.reader import RunData
from bitbench.store.schema import Case, CodeIdentity, Record, RunInfo, Side, Status

LAYERS = {"linear": {"kind": "linear"}, "ternary": {"kind": "ternary"}, "binary": {"kind": "binary"}}
ENVIRONMENT: dict[str, Any] = {
    "device": "cpu",
    "cpu": {"model": "Example CPU", "governor": "performance"},
    "packages": {"torch": "2.13.0"},
}
BYTES = {"linear": 16384.0, "ternary": 1100.0, "binary": 700.0}
SECONDS = {"linear": 1e-3, "ternary": 4e-4, "binary": 2e-4}

RunBuilder = Callable[..., RunData]


class Builder:
    """Builds runs; every run draws its noise from its own seed."""

    def __init__(self, points: int = 6, launches: int = 10) -> None:
        self.launches = launches
        self.cases = [
            *(
                self.case(f"p{point}", layer, {"shape": [64, 64 + point], "tokens": 1, "cache": "hot"})
                for point in range(points)
                for layer in LAYERS
            ),
            *(self.case("memory", layer, {"shape": [64, 64], "measure": "memory"}) for layer in LAYERS),
            *(self.case("text", layer, {"model": "tiny"}) for layer in LAYERS),
        ]

    def case(self, point: str, layer: str, params: dict[str, Any]) -> Case:
        timed = "tokens" in params
        return Case(
            id=f"{point}-{layer}",
            point=point,
            workload="perplexity" if point == "text" else "linear",
            entry=0,
            phase="timed" if timed else "once",
            replicate="launches" if timed else "documents" if point == "text" else "exact",
            launches=self.launches if timed else 1,
            layer=layer,
            params=params,
            numerics=layer,
        )

    def info(self, run: str, **changes: Any) -> RunInfo:
        code = CodeIdentity(bitbench="0.2.0", impl="0.2.0", native={"isa": "avx512"})
        head = RunInfo(
            run=run,
            created="2026-01-01T00:00:00Z",
            suite_path="suites/gate.yaml",
            suite={"name": "gate", "baseline": "linear", "layers": LAYERS},
            threads=1,
            environment=ENVIRONMENT,
            code=code,
        )
        return head.model_copy(update=changes)

    def plain(
        self, run: str = "a", *, seed: int = 1, spread: float = 0.005,
        slow: Mapping[str, float] | None = None, machine: float = 1.0, **changes: Any,
    ) -> RunData:  # fmt: skip
        """One version; ``slow`` by case id, ``machine`` a factor on every time."""
        rng = np.random.default_rng(seed)
        records = [
            self.record(case, launch, "", machine * (1 + (slow or {}).get(case.id, 0.0)), rng, spread)
            for case in self.cases
            for launch in range(case.launches)
        ]
        return RunData(Path("results") / run, self.info(run, **changes), self.cases, records)

    def sided(
        self, *, seed: int = 1, spread: float = 0.005, slow: Mapping[str, float] | None = None,
        again: set[str] | None = None, again_slow: Mapping[str, float] | None = None, **changes: Any,
    ) -> RunData:  # fmt: skip
        """Two versions; the head is slower by ``slow``, in the second round (``again``) by ``again_slow``."""
        rng = np.random.default_rng(seed)
        records = []
        for case in self.cases:
            rounds = [(launch, slow or {}) for launch in range(case.launches)]
            if again is not None and case.id in again:
                factors = (slow or {}) if again_slow is None else again_slow
                rounds += [(case.launches + launch, factors) for launch in range(case.launches)]
            for launch, factors in rounds:
                records.append(self.record(case, launch, "base", 1.0, rng, spread))
                records.append(self.record(case, launch, "head", 1 + factors.get(case.id, 0.0), rng, spread))
        sides = {
            side: CodeIdentity(bitbench="0.2.0", impl="0.2.0", commit=commit * 8, native={"isa": "avx512"})
            for side, commit in (("base", "aaaa0000"), ("head", "bbbb1111"))
        }
        info = self.info("sides", **{"purpose": "compare", "sides": sides, **changes})
        return RunData(Path("results/sides"), info, self.cases, records)

    def record(
        self, case: Case, launch: int, side: Side, factor: float, rng: np.random.Generator, spread: float
    ) -> Record:
        found = Record(case=case.id, launch=launch, side=side, status=Status.OK)
        if case.phase == "timed":
            seconds = SECONDS[case.layer] * factor * math.exp(rng.normal(0, spread / math.sqrt(2)))
            blocks = [round(seconds * 20e9)] * 5
            return found.model_copy(update={"calls": 20, "samples_ns": blocks})
        if case.replicate == "documents":
            nll = [3.0 + 0.1 * document for document in range(4)]
            return found.model_copy(
                update={
                    "metrics": {"quality.perplexity": math.exp(3.15), "quality.tokens": 64.0},
                    "replicates": {"quality.nll": nll},
                }
            )
        return found.model_copy(
            update={
                "metrics": {
                    "memory.layer_bytes": BYTES[case.layer],
                    "memory.peak_bytes": rng.uniform(1e4, 2e4),
                }
            }
        )


@pytest.fixture
def builder() -> Builder:
    return Builder()


def changed(run: RunData, where: Callable[[Record], bool], **update: Any) -> RunData:
    """The run with the records that ``where`` picks changed."""
    records = [r.model_copy(update=update) if where(r) else r for r in run.records]
    return RunData(run.path, run.info, run.cases, records)


@pytest.fixture
def change() -> Callable[..., RunData]:
    return changed
