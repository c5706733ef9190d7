"""A layer kind and a workload that misbehave on demand, registered as a plug-in would be.

What a layer does is part of its description; what happened is logged, one line each, to the file
named by FAKE_LOG: tests read from it what was really visited.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bitbench.layers.base import LayerCost, LayerKind, LayerSpec
from bitbench.store.schema import Check
from bitbench.workloads.base import (
    Context,
    Outcome,
    PointPlan,
    Session,
    Subject,
    Unsupported,
    WorkloadKind,
    WorkloadSpec,
)

Deed = Literal[
    *("work", "abort", "hang", "kill", "raise", "memory", "torch_memory", "wrong", "wrong_after"),
    *("refuse", "fallback", "invalid", "slow", "broken", "orphan"),
]


def log(*words: object) -> None:
    path = os.environ.get("FAKE_LOG")
    if path:
        with Path(path).open("a") as file:
            file.write(" ".join(str(word) for word in words) + "\n")


class FakeLayerSpec(LayerSpec):
    does: Deed = "work"
    at: Literal["build", "call", "measure"] = "build"
    sense: int = 0
    """Layers of equal sense have equal numerics."""
    seconds: float | None = None
    from_size: int = 0
    """It misbehaves at points of at least this size."""
    served_by: str = "fake/kernel"


class FakeLayer(LayerKind):
    name = "fake"
    spec = FakeLayerSpec
    backends = ("kernel", "other")

    def dispatch(self, spec: Any, kernel: str) -> dict[str, str]:
        return {"backend": kernel.removeprefix("fake/")}

    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        return LayerCost(1, 0, 8.0, in_features * out_features, "fp32")

    def numerics(self, spec: Any) -> dict[str, Any]:
        return {"sense": spec.sense}

    def random(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("unused")

    convert = trainable = reference = random

    def tolerance(self, spec: Any, in_features: int) -> float:
        return 0.0


class FakeSpec(WorkloadSpec):
    timed: int = 1
    exact: int = 0
    scored: int = 0
    seeds: int = 1
    documents: int = 0
    sizes: list[int] = Field(default_factory=list)
    """One timed point more for each."""
    estimate: float = 0.01


def misbehave(spec: FakeLayerSpec) -> None:
    if spec.does == "abort":
        os.abort()
    elif spec.does == "orphan":
        log("orphan", subprocess.Popen(["sleep", "3600"]).pid)
        os.abort()
    elif spec.does == "hang":
        time.sleep(3600)
    elif spec.does == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif spec.does == "raise" or (spec.does == "broken" and "FAKE_BROKEN" in os.environ):
        raise ValueError("first line\nsecond line")
    elif spec.does == "memory":
        raise MemoryError
    elif spec.does == "torch_memory":
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
    elif spec.does == "refuse":
        raise Unsupported("needs a package that is missing: pip install it")


class FakeSubject(Subject):
    def __init__(self, layer: str, spec: FakeLayerSpec) -> None:
        self.layer = layer
        self.kernel = spec.served_by
        self.spec = spec
        self.seconds = spec.seconds
        self.checks = 0
        self.calls = 0

    def call(self) -> int:
        self.calls += 1
        if self.spec.at == "call" and self.calls > 20:
            misbehave(self.spec)
        if self.spec.does == "slow":
            time.sleep(0.002)
        return sum(range(200))

    def check(self) -> Check:
        self.checks += 1
        bad = self.spec.does == "wrong" or (self.spec.does == "wrong_after" and self.checks > 1)
        return Check(passed=not bad, max_error=0.5 if bad else 0.0, tolerance=0.1, compared=3)

    def fallback(self) -> str | None:
        return "another kernel ran" if self.spec.does == "fallback" else None

    def invalid(self) -> str | None:
        return "too small" if self.spec.does == "invalid" else None


class FakeSession(Session):
    def __init__(self, params: dict[str, Any], context: Context) -> None:
        self.params = params
        self.context = context

    def build(self, layer: str, spec: Any) -> FakeSubject:
        size = self.params.get("size", spec.from_size)
        log("build", os.getpid(), self.params["n"], layer, size)
        if size < spec.from_size:
            spec = spec.model_copy(update={"does": "work"})
        if spec.at == "build":
            misbehave(spec)
        return FakeSubject(layer, spec)

    def measure(self, layer: str, spec: Any, replicate: int) -> Outcome:
        log("measure", os.getpid(), self.params["measure"], self.params["n"], layer, replicate)
        misbehave(spec)
        if self.params["measure"] == "bytes":
            return Outcome({"memory.layer_bytes": 8.0 + self.params["n"]})
        if self.params["measure"] == "text":
            return Outcome({"quality.perplexity": random.random() + spec.sense})
        return Outcome(
            {"quality.perplexity": 20.0 + spec.sense + replicate, "memory.model_bytes": 1.0},
            {"quality.nll": [1.0, 2.0]},
        )


class FakeWorkload(WorkloadKind):
    name = "fake"
    spec = FakeSpec
    axes = ("timed", "exact", "scored", "seeds", "documents", "sizes")
    growing = ("size",)

    def points(self, spec: FakeSpec) -> list[PointPlan]:
        return [
            *(PointPlan({"n": n}, "timed", "launches") for n in range(spec.timed)),
            *(PointPlan({"n": 0, "size": size}, "timed", "launches") for size in spec.sizes),
            *(PointPlan({"measure": "bytes", "n": n}, "once", "exact") for n in range(spec.exact)),
            *(
                PointPlan({"measure": "score", "n": n}, "once", "seeds", spec.seeds)
                for n in range(spec.scored)
            ),
            *(
                PointPlan({"measure": "text", "n": n}, "once", "documents", spec.seeds)
                for n in range(spec.documents)
            ),
        ]

    def quick(self, spec: FakeSpec) -> FakeSpec:
        return spec.model_copy(update={"timed": min(1, spec.timed)})

    def estimate(self, spec: FakeSpec, plan: PointPlan, layer: LayerSpec) -> float:
        return spec.estimate

    def open(self, spec: FakeSpec, params: dict[str, Any], context: Context) -> FakeSession:
        log("open", os.getpid(), params["n"], ",".join(context.layers))
        return FakeSession(params, context)
