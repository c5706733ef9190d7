"""``chain``: equal square layers called one after the other, as the depth of a network does."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.roofline import Work
from bitbench.store.schema import Check
from bitbench.workloads.base import Context, PointPlan, Session, Subject, WorkloadKind, WorkloadSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

SECONDS = 0.2
"""Spent on a layer in one launch: the clock's budget and building it."""


class ChainSpec(WorkloadSpec):
    """Chains of every width and depth."""

    widths: list[int] = Field(min_length=1)
    """Input and output features of each layer."""
    depths: list[int] = Field(default=[4], min_length=1)
    """Layers in a row."""


class Chain(WorkloadKind):
    """Timed: one token through the whole chain."""

    name = "chain"
    spec = ChainSpec
    axes = ("widths", "depths")

    def points(self, spec: ChainSpec) -> list[PointPlan]:
        return [
            PointPlan({"width": width, "depth": depth}, "timed", "launches")
            for width, depth in itertools.product(spec.widths, spec.depths)
        ]

    def quick(self, spec: ChainSpec) -> ChainSpec:
        return spec.model_copy(update={"widths": spec.widths[:1], "depths": spec.depths[:1]})

    def estimate(self, spec: ChainSpec, plan: PointPlan, layer: LayerSpec) -> float:
        return SECONDS

    def open(self, spec: ChainSpec, params: dict[str, Any], context: Context) -> ChainSession:
        return ChainSession(params["width"], params["depth"], context)


class ChainSession(Session):
    def __init__(self, width: int, depth: int, context: Context) -> None:
        self.width, self.depth, self.context = width, depth, context

    def build(self, layer: str, spec: LayerSpec) -> ChainSubject:
        import torch

        kind = registry.get(spec.kind)
        seed = self.context.seed
        modules = [
            kind.random(spec, self.width, self.width, bias=False, seed=seed + i).to(self.context.device)
            for i in range(self.depth)
        ]
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, self.width, generator=generator).to(self.context.device)
        return ChainSubject(kind, spec, modules, x.to(getattr(torch, kind.input_dtype(spec))))


class ChainSubject(Subject):
    def __init__(self, kind: Any, spec: LayerSpec, modules: list[nn.Module], x: torch.Tensor) -> None:
        self.kind, self.spec, self.modules, self.x = kind, spec, modules, x

    def call(self) -> torch.Tensor:
        y = self.x
        for module in self.modules:
            y = module(y)
        return y

    def check(self) -> Check:
        """Each layer on the input that it really got: errors do not add up."""
        worst = 0.0
        width = self.x.shape[1]
        y = self.x
        for module in self.modules:
            expected = self.kind.reference(self.spec, module, y, slice(0, width))
            y = module(y)
            worst = max(worst, float((y.double() - expected).abs().max() / expected.abs().max()))
        self.kernel = self.kind.kernel(self.modules[-1])
        tolerance = self.kind.tolerance(self.spec, width)
        return Check(
            passed=worst <= tolerance,
            max_error=worst,
            tolerance=tolerance,
            compared=width * len(self.modules),
        )

    def work(self) -> Work:
        width = self.x.shape[1]
        cost = self.kind.cost(self.spec, width, width)
        depth = len(self.modules)
        return Work(
            weight_bytes=depth * cost.weight_bytes,
            operations=depth * 2 * cost.macs_per_token,
            compute=cost.compute,
            from_memory=False,
        )
