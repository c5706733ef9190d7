"""A layer kind and a workload whose work is done by ``sidelib``, the package that differs by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitbench.layers.base import LayerCost, LayerKind, LayerSpec
from bitbench.store.schema import Check
from bitbench.workloads.base import Context, Outcome, PointPlan, Session, Subject, WorkloadKind, WorkloadSpec


class SidedLayerSpec(LayerSpec):
    max_calls: int | None = None


class SidedLayer(LayerKind):
    name = "sided"
    spec = SidedLayerSpec

    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        return LayerCost(1, 0, 8.0, in_features * out_features, "fp32")

    def numerics(self, spec: Any) -> dict[str, Any]:
        return {}

    def random(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("unused")

    convert = trainable = reference = random

    def tolerance(self, spec: Any, in_features: int) -> float:
        return 0.0


class SidedSpec(WorkloadSpec):
    timed: int = 1
    exact: int = 0


class SidedSubject(Subject):
    kernel = "sided/kernel"

    def __init__(self, layer: str, spec: SidedLayerSpec) -> None:
        import sidelib

        self.layer = layer
        self.lib = sidelib
        self.max_calls = spec.max_calls
        self.checks = 0
        self.lib.build(layer)

    def reset(self) -> None:
        self.lib.reset(self.layer)

    def call(self) -> int:
        return int(self.lib.call(self.layer))

    def check(self) -> Check:
        self.checks += 1
        right = self.lib.right(self.layer, self.checks)
        return Check(passed=right, max_error=0.0 if right else 1.0, tolerance=0.1, compared=1)


class SidedSession(Session):
    def __init__(self, params: dict[str, Any], context: Context) -> None:
        import sidelib

        sidelib.log("open", params["n"], context.cache_dir)
        Path(context.cache_dir).mkdir(exist_ok=True)

    def build(self, layer: str, spec: Any) -> SidedSubject:
        return SidedSubject(layer, spec)

    def measure(self, layer: str, spec: Any, replicate: int) -> Outcome:
        import sidelib

        return Outcome({"memory.layer_bytes": float(sidelib.size(layer))})


class SidedWorkload(WorkloadKind):
    name = "sided"
    spec = SidedSpec
    axes = ("timed", "exact")

    def points(self, spec: SidedSpec) -> list[PointPlan]:
        return [
            *(PointPlan({"n": n}, "timed", "launches") for n in range(spec.timed)),
            *(PointPlan({"measure": "bytes", "n": n}, "once", "exact") for n in range(spec.exact)),
        ]

    def quick(self, spec: SidedSpec) -> SidedSpec:
        return spec

    def estimate(self, spec: SidedSpec, plan: PointPlan, layer: LayerSpec) -> float:
        return 0.01

    def open(self, spec: SidedSpec, params: dict[str, Any], context: Context) -> SidedSession:
        return SidedSession(params, context)
