"""``self_proof``: whether a comparison sees what it must see, in the very session it judges by.

One fixed fp32 ``nn.Linear`` is measured as two layers. On both sides of a comparison it is the same
code, so ``self-proof-null`` has to come out *same*; of ``self-proof-slower`` the head side makes more
calls than are booked, so that has to come out *slower*.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from bitbench.errors import UserError
from bitbench.layers.base import LayerSpec
from bitbench.suite.expand import Plan, expand
from bitbench.suite.schema import Suite
from bitbench.workloads.base import Context, PointPlan, Session, WorkloadKind, WorkloadSpec
from bitbench.workloads.linear import LinearSession, LinearSpec

KIND = "self_proof"
NULL, SLOWER = "self-proof-null", "self-proof-slower"
SLOWDOWN = 0.10

SHAPE, TOKENS = [256, 512], 16
"""Some 50 us a call on one core: long beside the clock, short beside a turn, and in a cache."""
SECONDS = 0.3


class SelfProofSpec(WorkloadSpec):
    """``{kind: self_proof, layers: [self-proof-null, self-proof-slower]}``"""

    slowdown: float = Field(default=SLOWDOWN, gt=0, le=10)
    """Extra work of the head side in the slowed layer: 0.1 means a tenth more."""


class SelfProofWorkload(WorkloadKind):
    name: ClassVar[str] = KIND
    spec: ClassVar[type[SelfProofSpec]] = SelfProofSpec

    def points(self, spec: SelfProofSpec) -> list[PointPlan]:
        return [PointPlan({"slowdown": spec.slowdown}, "timed", "launches")]

    def quick(self, spec: SelfProofSpec) -> SelfProofSpec:
        return spec

    def estimate(self, spec: SelfProofSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        return SECONDS

    def open(self, spec: SelfProofSpec, params: dict[str, Any], context: Context) -> Session:  # noqa: ARG002
        return LinearSession(
            LinearSpec(kind="linear", shapes=[SHAPE], tokens=[TOKENS]),
            {"shape": SHAPE, "tokens": TOKENS, "cache": "hot"},
            context,
        )


def with_proof(plan: Plan, slowdown: float = SLOWDOWN) -> Plan:
    """``plan`` with the proof's point, with as many launches as the plan's timed points.

    The suite of the plan gets the proof's two layers and its entry, so that a stored run says what
    was measured; entries that take all layers keep those they had.
    """
    taken = sorted({NULL, SLOWER} & set(plan.suite.layers))
    if taken:
        raise UserError(f"the layer name {taken[0]!r} is the self-proof's own", "rename it in the suite")
    layers = {name: {"kind": "linear"} for name in (NULL, SLOWER)}
    launches = [point.launches for point in plan.points if point.phase == "timed"]
    proof = expand(
        Suite.model_validate(
            {
                "schema": plan.suite.schema_version,
                "name": plan.suite.name,
                "baseline": NULL,
                "launches": max(launches, default=plan.launches),
                "layers": layers,
                "workloads": [{"kind": KIND, "layers": list(layers), "slowdown": slowdown}],
            }
        )
    )
    entry = len(plan.suite.workloads)
    own = list(plan.suite.layers)
    suite = plan.suite.model_copy(
        update={
            "layers": {**plan.suite.layers, **proof.suite.layers},
            "workloads": [
                *(
                    w if w.layers is not None else w.model_copy(update={"layers": own})
                    for w in plan.suite.workloads
                ),
                *proof.suite.workloads,
            ],
        }
    )
    return replace(
        plan,
        suite=suite,
        points=[*plan.points, *(replace(point, entry=entry) for point in proof.points)],
        cases=[*plan.cases, *(case.model_copy(update={"entry": entry}) for case in proof.cases)],
    )


def slowed_layers(plan: Plan) -> dict[str, float]:
    """What the proof's entries of ``plan`` put on top on the head side, by layer."""
    wanted = [entry.slowdown for entry in plan.suite.workloads if isinstance(entry, SelfProofSpec)]
    return {SLOWER: max(wanted)} if wanted else {}
