"""``suites/vision.yaml``: what it measures, what it claims, and how long it says it takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bitbench.suite.convolutions import BLOCK_SETS, CONVOLUTION_SETS
from bitbench.suite.expand import Plan, expand
from bitbench.suite.load import load_suite
from bitbench.suite.schema import Suite
from bitbench.suite.select import selects

SUITE = Path(__file__).parents[3] / "suites" / "vision.yaml"
MINUTE = 60.0


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(SUITE)


@pytest.fixture(scope="module")
def plan(suite: Suite) -> Plan:
    return expand(suite, device="cpu")


def test_every_convolution_and_block_of_resnet_18_is_timed(plan: Plan) -> None:
    timed = [point for point in plan.points if point.phase == "timed"]
    for kind, sets in (("conv2d", CONVOLUTION_SETS), ("block", BLOCK_SETS)):
        shapes = [
            {name: p.params[name] for name in sets["resnet-18"][0]} for p in timed if p.workload == kind
        ]
        assert all(shape in shapes for shape in sets["resnet-18"])
        formats = {(p.params["batch"], p.params["memory_format"]) for p in timed if p.workload == kind}
        assert formats == {(b, f) for b in (1, 16) for f in ("contiguous", "channels_last")}


def test_float_is_measured_wherever_a_low_bit_layer_is(plan: Plan) -> None:
    for point in plan.points:
        # Networks are trained in float32; bf16 convolutions are of interest where something is timed.
        alone = point.workload == "classify" or "calibration" in point.params or point.phase == "once"
        assert ({"linear"} if alone else {"linear", "linear-bf16"}) <= set(point.layers)
        if point.workload in ("conv2d", "block"):
            assert {"binary-w1a1", "binary-signs", "ternary"} <= set(point.layers)


def test_networks_are_trained_with_each_kind_over_seeds_and_timed_packed(plan: Plan, suite: Suite) -> None:
    trained = [p for p in plan.points if p.workload == "classify" and p.phase == "once"]
    kinds = {suite.layers[name].kind for point in trained for name in point.layers}
    assert kinds == {"linear", "binary", "ternary", "k_ternary", "latent_free"}
    assert [point.params.get("network", "mlp") for point in trained] == ["resnet", "mlp"]
    assert all(point.launches >= 3 and point.replicate == "seeds" for point in trained)
    timed = [p for p in plan.points if p.workload == "classify" and p.phase == "timed"]
    assert {point.params.get("network", "mlp") for point in timed} == {"resnet", "mlp"}
    assert "fashion-mnist" in plan.data()


def test_a_published_network_is_converted_by_each_kind_scored_weighed_and_timed(
    plan: Plan, suite: Suite
) -> None:
    converted = [point for point in plan.points if point.workload == "image_accuracy"]
    assert {(point.params["model"], point.params["images"]) for point in converted} == {
        ("cifar-resnet18", "cifar10")
    }
    first = converted[0]
    assert {suite.layers[name].kind for name in first.layers} == {"linear", "binary", "ternary", "k_ternary"}
    assert {point.replicate for point in converted} == {"images", "exact", "launches"}
    everything = [p for p in converted if p.replicate == "images" and "count" not in p.params]
    assert ["linear" in point.layers for point in everything] == [True]
    assert {"cifar-resnet18", "cifar10"} <= set(plan.data())


def test_a_gpu_is_given_layers_in_the_type_of_their_rival(suite: Suite) -> None:
    plan = expand(suite, device="cuda")
    points = [point for point in plan.points if point.workload in ("conv2d", "block")]
    assert {point.params["batch"] for point in points} == {64}
    for point in points:
        others = [suite.layers[name] for name in point.layers if name != "linear"]
        assert {layer.dtype for layer in others} == {"bfloat16"}  # type: ignore[attr-defined]
    assert plan.estimate_seconds() < 15 * MINUTE


def test_a_run_takes_as_long_as_it_says_and_a_quick_one_two_minutes(suite: Suite, plan: Plan) -> None:
    said = re.search(r"About (\d+) minutes on two cores", SUITE.read_text(encoding="utf-8"))
    assert said is not None
    assert plan.estimate_seconds() == pytest.approx(int(said[1]) * MINUTE, abs=MINUTE)
    assert plan.estimate_seconds() < 20 * MINUTE
    quick = expand(suite, quick=True, device="cpu")
    assert {point.workload for point in quick.points} >= {"conv2d", "block", "classify", "image_accuracy"}
    assert quick.estimate_seconds() < 2 * MINUTE


def test_every_claim_has_its_cases_and_only_what_no_machine_changes_gates(suite: Suite) -> None:
    """Bytes are exact, and so is what a published float network gets right but for a few images; a gate on
    time, or on what was trained here, would fail with the machine."""
    whole = expand(suite)
    for claim in suite.claims:
        assert any(selects(claim.where, case) for case in whole.cases), claim.id
    gating = {claim.id: claim.metric for claim in suite.claims if claim.gating}
    assert set(gating.values()) == {"memory.weight_ratio", "memory.model_ratio", "quality.accuracy"}
    assert [name for name, metric in gating.items() if metric == "quality.accuracy"] == ["float-as-published"]
    bounds = {claim.id: claim.at_least for claim in suite.claims}
    assert bounds["gpu-binary-convolution"] == 8
    assert bounds["binary-convolution"] == 10
