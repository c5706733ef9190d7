"""What the estimates are made of, and how near they come to what stored runs took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layer_specs import layer

from bitbench.suite.expand import expand
from bitbench.suite.schema import Suite
from bitbench.workloads.pace import bytes_share, call_seconds, making, numbers_seconds

RESULTS = Path(__file__).parents[3] / "results"
SUITES = ("kernels", "llm", "models", "peers")


def stored() -> list[Path]:
    """Stored runs of the suites that are about speed, as far as they say how long they took."""
    ends = [path for suite in SUITES for path in RESULTS.glob(f"{suite}-2*/end.jsonl")]
    return sorted(end.parent for end in ends)


@pytest.mark.parametrize("run", stored(), ids=lambda path: path.name)
def test_the_plan_says_how_long_a_stored_run_took(run: Path) -> None:
    """To within a third: machines differ by that much from hour to hour."""
    info = json.loads((run / "run.json").read_text())
    [end] = [json.loads(line) for line in (run / "end.jsonl").read_text().splitlines()]
    plan = expand(Suite.model_validate(info["suite"]), device="cpu")
    assert plan.estimate_seconds() == pytest.approx(end["wall_s"], rel=1 / 3)


def test_there_are_such_runs() -> None:
    assert {path.name.split("-")[0] for path in stored()} >= {"kernels", "peers"}


def seconds(tokens: float = 512, threads: int | None = None, **fields: Any) -> float:
    return call_seconds(layer(**fields), 4096, 4096, tokens, threads)


def test_a_call_takes_what_its_arithmetic_and_its_bytes_take() -> None:
    fp32, int8 = seconds(kind="linear"), seconds(kind="ternary", activation_bits=8)
    assert fp32 == pytest.approx(2 * 4096**2 * 512 / 2e11, rel=0.1)
    assert seconds(kind="binary", activation_bits=1) < int8 < seconds(kind="linear", dtype="bfloat16") < fp32
    assert seconds(kind="k_ternary", k=3, activation_bits=8) > 2 * int8
    assert seconds(kind="ternary", activation_bits=None) > 5 * int8, "float activations"
    # With one token bytes decide.
    assert seconds(1, kind="linear") > 10 * seconds(1, kind="ternary", activation_bits=8)


def test_one_thread_and_older_instructions_take_longer() -> None:
    ternary: dict[str, Any] = {"kind": "ternary", "activation_bits": 8}
    assert seconds(threads=1, **ternary) == pytest.approx(2 * seconds(**ternary), rel=0.1)
    assert seconds(threads=8, **ternary) == seconds(**ternary), "of two cores"
    assert seconds(isa="portable", **ternary) > 5 * seconds(isa="avx2", **ternary) > 10 * seconds(**ternary)


def test_what_torch_computes_does_not_depend_on_the_instructions_of_our_kernels() -> None:
    floats: dict[str, Any] = {"kind": "ternary", "activation_bits": None}
    assert seconds(isa="avx2", **floats) == seconds(**floats)


def test_layers_of_other_projects_take_longer_to_make_and_to_call() -> None:
    assert making(layer(kind="ggml", type="tq1_0")) > making(layer(kind="ternary")) == 1
    assert seconds(kind="ggml", type="tq1_0") > 3 * seconds(kind="ternary", activation_bits=8)


def test_a_model_takes_what_layers_of_its_numbers_take() -> None:
    linear = layer(kind="linear")
    assert numbers_seconds(linear, 10**9, 16) == pytest.approx(1000 * numbers_seconds(linear, 10**6, 16))
    assert bytes_share(linear) == 1
    assert bytes_share(layer(kind="ternary")) == pytest.approx(1.6 / 32, rel=0.05)
