"""``suites/kernels.yaml`` leaves no kernel out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from bitbench.layers.specs import BinarySpec, KTernarySpec, TernarySpec
from bitbench.suite.expand import Plan, Point, expand, thread_counts
from bitbench.suite.load import load_suite

TOKENS = [1, 4, 16, 64, 512]
SQUARE = [4096, 4096]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return expand(load_suite(Path(__file__).parents[3] / "suites" / "kernels.yaml"))


def choices(spec: Any, field: str) -> list[Any]:
    """The values that a field of a layer's description may take."""
    found: list[Any] = []
    for choice in get_args(spec.model_fields[field].annotation) or (None,):
        found += get_args(choice) or ([None] if choice in (None, type(None)) else [choice])
    return found


def kernel(layer: Any) -> tuple[Any, ...]:
    """What picks the kernel of a layer, its instruction set apart."""
    return layer.kind, getattr(layer, "format", "binary"), layer.activation_bits


def points_of(plan: Plan, **wanted: Any) -> list[Point]:
    return [
        point
        for point in plan.points
        if point.phase == "timed" and all(point.params.get(key) == value for key, value in wanted.items())
    ]


def kernels_at(plan: Plan, isa: str | None = None, **wanted: Any) -> set[tuple[Any, ...]]:
    layers = {name for point in points_of(plan, **wanted) for name in point.layers}
    low_bit = [
        plan.suite.layers[name] for name in layers if hasattr(plan.suite.layers[name], "activation_bits")
    ]
    return {kernel(layer) for layer in low_bit if layer.isa == isa}


EVERY = {
    *(("binary", "binary", bits) for bits in choices(BinarySpec, "activation_bits")),
    *(
        ("ternary", format, bits)
        for format in choices(TernarySpec, "format")
        for bits in choices(TernarySpec, "activation_bits")
    ),
    *(("k_ternary", format, 8) for format in choices(KTernarySpec, "format")),
}


@pytest.mark.parametrize("threads", [None, 1])
@pytest.mark.parametrize("tokens", TOKENS)
def test_every_operator_format_and_activation_is_measured(
    plan: Plan, tokens: int, threads: int | None
) -> None:
    assert {1, 2, 8, 16, None} <= {bits for _, _, bits in EVERY}
    assert kernels_at(plan, shape=SQUARE, tokens=tokens, cache="hot", threads=threads) == EVERY
    if tokens <= 16:
        assert kernels_at(plan, shape=SQUARE, tokens=tokens, cache="cold", threads=threads) == EVERY


@pytest.mark.parametrize("isa", ["avx2", "portable"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_so_is_every_instruction_set_of_the_architecture(plan: Plan, tokens: int, isa: str) -> None:
    eight_bits = {("binary", "binary", 8), ("ternary", "base3", 8), ("ternary", "two_bit", 8)}
    for threads in (None, 1):
        assert kernels_at(plan, isa, tokens=tokens, threads=threads) >= {*eight_bits, ("binary", "binary", 1)}


def test_shapes_of_language_models_and_resnet_18(plan: Plan) -> None:
    shapes = {tuple(point.params["shape"]) for point in points_of(plan, tokens=512, cache="hot")}
    assert {(14336, 4096), (4096, 14336), (6912, 2560), (2560, 6912)} <= shapes
    assert (
        len({(*p.params["shape"], p.params["kernel"]) for p in plan.points if p.workload == "conv2d"}) == 10
    )
    assert thread_counts(plan.suite) == {1}


def test_the_baseline_is_at_every_timed_point_and_nothing_gates(plan: Plan) -> None:
    assert all(plan.suite.baseline in point.layers for point in points_of(plan))
    assert plan.suite.claims
    assert not any(claim.gating for claim in plan.suite.claims)
