"""The proof's point: what it adds to a plan, and that it measures the same thing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import UserError
from bitbench.suite.expand import Plan, expand
from bitbench.suite.load import load_suite
from bitbench.suite.schema import Suite
from bitbench.workloads import registry
from bitbench.workloads.base import Context
from bitbench.workloads.self_proof import NULL, SLOWER, slowed_layers, with_proof

ROOT = Path(__file__).parents[3]


def plan_of(**more: Any) -> Plan:
    suite = {
        "schema": 1,
        "name": "tiny",
        "baseline": "linear",
        "launches": 7,
        "layers": {"linear": {"kind": "linear"}, "ternary": {"kind": "ternary"}},
        "workloads": [
            {"kind": "linear", "shapes": [[64, 64]]},
            {"kind": "linear", "shapes": [[32, 32]], "layers": ["ternary"]},
        ],
        **more,
    }
    return expand(Suite.model_validate(suite), launches=3)


def test_the_plan_gains_one_point_and_loses_nothing() -> None:
    plan = plan_of()
    proved = with_proof(plan, slowdown=0.2)
    assert proved.cases[: len(plan.cases)] == plan.cases
    assert proved.points[: len(plan.points)] == plan.points
    (point,) = proved.points[len(plan.points) :]
    added = proved.cases[len(plan.cases) :]
    assert [case.layer for case in added] == [NULL, SLOWER]
    assert {case.launches for case in added} == {point.launches} == {3}
    assert {case.entry for case in added} == {point.entry} == {2}
    assert {case.phase for case in added} == {"timed"}
    assert slowed_layers(proved) == {SLOWER: 0.2}
    assert slowed_layers(plan) == {}


def test_the_suite_of_the_plan_says_what_is_measured() -> None:
    proved = with_proof(plan_of())
    again = expand(Suite.model_validate(proved.suite.resolved()), launches=3)
    assert again.cases == proved.cases
    assert [point.id for point in again.points] == [point.id for point in proved.points]


def test_the_names_of_the_proof_are_taken() -> None:
    layers = {"linear": {"kind": "linear"}, NULL: {"kind": "linear"}}
    with pytest.raises(UserError, match="self-proof's own"):
        with_proof(plan_of(layers=layers, workloads=[{"kind": "linear", "shapes": [[8, 8]]}]))


def test_both_layers_are_the_same_thing(tmp_path: Path) -> None:
    proved = with_proof(plan_of())
    point = proved.points[-1]
    layers = {name: proved.suite.layers[name] for name in point.layers}
    context = Context("cpu", 1, 5, tmp_path, layers, NULL)
    session = registry.get(point.workload).open(point.spec, point.params, context)
    null, slower = (session.build(name, spec) for name, spec in layers.items())
    assert null.check().passed
    assert null.call().equal(slower.call())
    assert null.kernel.startswith("torch/linear/float32")


def test_the_gate_suite_takes_the_proof() -> None:
    suite = load_suite(ROOT / "suites" / "gate.yaml")
    plan = with_proof(expand(suite, device="cpu"))
    assert suite.threads == 1
    assert suite.layers[suite.baseline].kind == "linear"
    assert not plan.data()  # nothing to fetch: a gate runs where there is no network
    timed = [point for point in plan.points if point.phase == "timed"]
    assert {point.launches for point in timed} == {10}
    kinds = {layer.kind for layer in suite.layers.values()}
    assert {"binary", "ternary", "k_ternary"} <= kinds
