"""Larger values of an axis on which a layer ran out are not tried, and say so."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.execute.backstop import Backstop
from bitbench.execute.runner import Limits
from bitbench.store import writer
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, Record, Status
from bitbench.suite.expand import Plan, expand
from bitbench.suite.schema import Suite

SHAPES = [[64, 32], [64, 64], [128, 16], [128, 64]]
TOKENS = [1, 16, 512]


def linear_plan(**entry: Any) -> Plan:
    layers = {"linear": {"kind": "linear"}, "ternary": {"kind": "ternary"}}
    workloads = [{"kind": "linear", "shapes": SHAPES, "tokens": TOKENS, "cache": ["hot", "cold"], **entry}]
    return expand(
        Suite.model_validate(
            {"schema": 1, "name": "s", "baseline": "linear", "layers": layers, "workloads": workloads}
        )
    )


PLAN = linear_plan()
TIMED = [case for case in PLAN.cases if case.phase == "timed"]


def ended(case: Case, status: Status = Status.OOM, **fields: Any) -> Record:
    return Record(case=case.id, launch=0, status=status, reason="RuntimeError: out of memory", **fields)


def find(layer: str, shape: list[int], tokens: int, cache: str = "hot", plan: Plan = PLAN) -> Case:
    wanted = {"shape": shape, "tokens": tokens, "cache": cache}
    return next(case for case in plan.cases if case.layer == layer and case.params == wanted)


def spared_after(*records: Record) -> set[str]:
    backstop = Backstop(PLAN)
    for record in records:
        backstop.saw(record)
    return {case.label for case in PLAN.cases if backstop.spares(case.id)}


@given(st.sampled_from(TIMED), st.sampled_from(TIMED))
def test_exactly_the_same_layer_at_no_smaller_a_place_is_spared(failed: Case, other: Case) -> None:
    backstop = Backstop(PLAN)
    backstop.saw(ended(failed))
    same = failed.layer == other.layer and failed.params["cache"] == other.params["cache"]
    no_smaller = other.params["tokens"] >= failed.params["tokens"] and all(
        mine >= its for mine, its in zip(other.params["shape"], failed.params["shape"], strict=True)
    )
    assert (backstop.spares(other.id) is not None) == (same and no_smaller)


def test_the_reason_names_what_ran_out_and_where() -> None:
    backstop = Backstop(PLAN)
    failed = find("ternary", [64, 64], 16)
    backstop.saw(ended(failed))
    larger = find("ternary", [128, 64], 512)
    assert backstop.spares(larger.id) == (
        Status.OOM,
        "not tried: it ran out of memory at linear/64x64/tokens=16/cache=hot/ternary",
    )
    assert backstop.spares(failed.id) == (Status.OOM, "not tried: it ran out of memory in launch 0")
    backstop.saw(ended(find("linear", [64, 32], 1), Status.TIMEOUT))
    found = backstop.spares(find("linear", [64, 32], 16).id)
    assert found is not None
    assert found[0] is Status.TIMEOUT
    assert "took too long" in found[1]


@pytest.mark.parametrize("status", [Status.CRASH, Status.ERROR, Status.INCORRECT, Status.UNSUPPORTED])
def test_other_ends_spare_nothing(status: Status) -> None:
    assert spared_after(ended(find("ternary", [64, 32], 1), status)) == set()


def test_a_spared_case_is_no_reason_to_spare_another() -> None:
    small = find("ternary", [64, 32], 1)
    told = Record(case=small.id, launch=0, status=Status.OOM, reason="not tried: it ran out of memory at x")
    assert spared_after(told) == set()


def test_sides_of_a_comparison_and_bytes_are_apart() -> None:
    failed = find("ternary", [64, 32], 1)
    backstop = Backstop(PLAN)
    backstop.saw(ended(failed, side="head"))
    assert backstop.spares(failed.id, "base") is None
    assert backstop.spares(failed.id, "head") is not None
    assert not any("memory" in label for label in spared_after(ended(failed)))


def test_entries_that_measure_something_else_are_apart() -> None:
    base = linear_plan().suite.model_dump(mode="json", by_alias=True)
    base["workloads"].append({**base["workloads"][0], "bias": True})
    plan = expand(Suite.model_validate(base))
    first, second = (
        [case for case in plan.cases if case.entry == entry and case.phase == "timed"] for entry in (0, 1)
    )
    backstop = Backstop(plan)
    backstop.saw(ended(first[0]))
    assert backstop.spares(first[0].id)
    assert not any(backstop.spares(case.id) for case in second)


def rows(run: RunData) -> dict[str, dict[int, list[Record]]]:
    """Records by layer and size, in order of launches; every pair once in the file."""
    lines = [json.loads(line) for line in (run.path / writer.SAMPLES_FILE).read_text().splitlines()]
    seen = Counter((line["case"], line["launch"]) for line in lines)
    assert set(seen.values()) == {1}
    assert set(seen) == {(case.id, n) for case in run.cases for n in range(case.launches)}
    cases = {case.id: case for case in run.cases}
    found: dict[str, dict[int, list[Record]]] = {}
    for record in sorted(run.records, key=lambda record: record.launch):
        case = cases[record.case]
        found.setdefault(case.layer, {}).setdefault(case.params["size"], []).append(record)
    return found


@pytest.mark.parametrize("at", ["build", "call"])
def test_a_run_has_a_row_for_every_case_and_tries_each_end_once(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path, at: str
) -> None:
    layers = {"good": {}, "hungry": {"does": "torch_memory", "at": at, "from_size": 4}}
    run = run_of(plan_of(layers, launches=3, timed=0, sizes=[1, 2, 4, 8, 16]), tmp_path / "run")
    found = rows(run)
    assert {r.status for records in found["good"].values() for r in records} == {Status.OK}
    for size, records in found["hungry"].items():
        assert {r.status for r in records} == ({Status.OK} if size < 4 else {Status.OOM})
    tried = [r for records in found["hungry"].values() for r in records if r.status is Status.OOM]
    not_tried = [r for r in tried if r.reason.startswith("not tried")]
    # The order of points is drawn: a larger size may come first. No size fails in earnest twice.
    assert 1 <= len(tried) - len(not_tried) <= 3
    built = Counter(
        int(line.split()[4])
        for line in plugin.read_text().splitlines()
        if line.startswith("build") and "hungry" in line
    )
    assert all(built[size] == 1 for size in built if size >= 4)
    assert built[1] == built[2] == 3


def test_a_hang_is_waited_for_once(plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path) -> None:
    layers = {"good": {}, "stuck": {"does": "hang", "from_size": 2, "timeout": 1.5}}
    run = run_of(
        plan_of(layers, launches=2, timed=0, sizes=[2, 1, 4]), tmp_path / "run", limits=Limits(start=120)
    )
    found = rows(run)
    assert [r.status for r in found["stuck"][1]] == [Status.OK] * 2
    assert {r.status for size in (2, 4) for r in found["stuck"][size]} == {Status.TIMEOUT}
    real = [r.reason for size in (2, 4) for r in found["stuck"][size] if not r.reason.startswith("not tried")]
    assert 1 <= len(real) <= 2
    assert all("2 s" in reason for reason in real)
    assert {r.status for records in found["good"].values() for r in records} == {Status.OK}
