"""From a run with slowed twins to launches, and from these to a pool."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bitbench.analysis.launches import SLOWDOWNS, launches_of, pool_of, twin
from bitbench.errors import ToolError, UserError
from bitbench.store.launches import LaunchPool
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, CodeIdentity, Record, RunInfo, Side, Status
from bitbench.workloads.self_proof import KIND, NULL, SLOWER

LAYERS = ("linear", "ternary", "ternary+5", "ternary+10", "binary", "binary+5", "binary+10", NULL, SLOWER)
EXTRA = {"ternary+5": 0.05, "ternary+10": 0.1, "binary+5": 0.05, "binary+10": 0.1, SLOWER: 0.1}
TERNARY = "linear/64x32/tokens=1/ternary"
LAUNCHES = 4


def case(layer: str) -> Case:
    proof = layer in (NULL, SLOWER)
    return Case(
        id=f"c-{layer}",
        point="proof" if proof else "p",
        workload=KIND if proof else "linear",
        entry=0,
        phase="timed",
        replicate="launches",
        launches=LAUNCHES,
        layer=layer,
        params={"slowdown": 0.1} if proof else {"shape": [64, 32], "tokens": 1},
        numerics=layer,
    )


def record(layer: str, launch: int, side: Side) -> Record:
    extra = EXTRA.get(layer, 0.0) if side == "head" else 0.0
    ns = round(20_000 * (1 + launch / 100) * (1 + extra))
    return Record(
        case=f"c-{layer}", launch=launch, side=side, status=Status.OK, calls=20, samples_ns=[ns, ns, ns]
    )


def run(**changes: Any) -> RunData:
    """A finished run; the head of each twin takes as much longer as its name says."""
    code = CodeIdentity(bitbench="0", impl="0", commit="1a2b3c4d", label="working tree (1a2b3c4d)")
    layers = {
        name: {"kind": "linear" if "linear" in name or "proof" in name else "ternary"} for name in LAYERS
    }
    info = RunInfo(
        run="r",
        created="2026-01-01T00:00:00Z",
        suite_path="suites/gate.yaml",
        suite={"name": "gate", "baseline": "linear", "layers": layers},
        threads=1,
        environment={},
        code=code,
        sides={"base": code, "head": code},
        slowdown=0.1,
    )
    sides: tuple[Side, Side] = ("base", "head")
    records = [record(name, launch, side) for launch in range(LAUNCHES) for name in LAYERS for side in sides]
    found: dict[str, Any] = {"cases": [case(name) for name in LAYERS], "records": records, **changes}
    return RunData(Path("results/r"), info, found["cases"], found["records"])


def without(layer: str, launch: int | None = None) -> list[Record]:
    """The records, but not those of one layer (in one launch)."""
    return [r for r in run().records if r.case != f"c-{layer}" or (launch is not None and r.launch != launch)]


def failing(layer: str) -> list[Record]:
    """The records; the last launch of one layer failed in the head."""
    bad = Record(case=f"c-{layer}", launch=3, side="head", status=Status.CRASH, reason="SIGSEGV")
    return [bad if (r.case, r.launch, r.side) == (bad.case, 3, "head") else r for r in run().records]


def test_twins_are_named_by_their_slowdown() -> None:
    assert [twin("ternary", s) for s in SLOWDOWNS] == ["ternary+5", "ternary+10"]


def test_a_pool_holds_every_case_as_it_is_and_slowed() -> None:
    launches = launches_of(run(), {"processor": "x"})
    assert (launches.launches, launches.left_out) == (LAUNCHES, [])
    assert (launches.suite, launches.code) == ("suites/gate.yaml", "working tree (1a2b3c4d)")
    pool = pool_of(launches)
    assert set(pool.null) == {TERNARY, "linear/64x32/tokens=1/binary"}
    assert pool.launches == LAUNCHES
    assert list(pool.null[TERNARY]) == [0.0] * LAUNCHES
    for slowdown in SLOWDOWNS:
        expected = [pytest.approx(-math.log1p(slowdown), abs=1e-4)] * LAUNCHES
        assert list(pool.slowed[slowdown][TERNARY]) == expected
    assert list(pool.proof_null) == [0.0] * LAUNCHES
    assert list(pool.proof_slower) == [pytest.approx(-math.log(1.1), abs=1e-4)] * LAUNCHES
    assert set(pool.controls) == {"linear/64x32/tokens=1/linear"}
    assert pool.like[TERNARY] == pool.like["linear/64x32/tokens=1/linear"]


def test_times_are_kept_in_nanoseconds_a_call() -> None:
    (own,) = (t for t in launches_of(run(), {}).times if (t.label, t.slowdown) == (TERNARY, 0.05))
    assert own.base_ns == [1000.0, 1010.0, 1020.0, 1030.0]
    assert own.head_ns == [1050.0, 1060.5, 1071.0, 1081.5]


def test_a_launch_in_which_anything_is_missing_does_not_count() -> None:
    assert launches_of(run(records=without("binary+5", launch=2)), {}).launches == LAUNCHES - 1
    half = [r for r in run().records if not (r.case == f"c-{NULL}" and r.launch == 3 and r.side == "base")]
    assert launches_of(run(records=half), {}).launches == LAUNCHES - 1


@pytest.mark.parametrize("layer", ["ternary", "ternary+5", "ternary+10"])
@pytest.mark.parametrize("how", [without, failing])
def test_a_case_without_its_twins_is_left_out_and_named(layer: str, how: Any) -> None:
    launches = launches_of(run(records=how(layer)), {})
    assert launches.left_out == [TERNARY]
    assert launches.launches == LAUNCHES
    assert set(pool_of(launches).null) == {"linear/64x32/tokens=1/binary"}


def test_a_run_of_something_else_or_of_nothing_is_refused() -> None:
    plain = [c for c in run().cases if "+" not in c.layer]
    with pytest.raises(UserError, match="is not a run of `bitbench rates`") as refused:
        launches_of(run(cases=plain), {})
    assert not isinstance(refused.value, ToolError)
    with pytest.raises(ToolError, match="holds no measurement"):
        launches_of(run(records=[]), {})
    with pytest.raises(ToolError, match="the gate's own proof did not go through all launches"):
        launches_of(run(records=failing(SLOWER)), {})
    none = [r for r in run().records if "+" not in r.case]
    with pytest.raises(ToolError, match="no case with its slowed twins went through all launches"):
        launches_of(run(records=none), {})


def test_launches_that_lack_a_part_make_no_pool() -> None:
    whole = launches_of(run(), {})
    for lacking in (
        [t for t in whole.times if t.role != "null"],
        [t for t in whole.times if (t.label, t.slowdown) != (TERNARY, 0.1)],
        [t for t in whole.times if t.role != "case"],
    ):
        with pytest.raises(UserError, match="are not whole"):
            pool_of(LaunchPool.model_validate({**dict(whole), "times": lacking}))
