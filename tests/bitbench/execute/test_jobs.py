from __future__ import annotations

from typing import Any

from bitbench.execute.jobs import (
    Setting,
    derive_seed,
    narrowed,
    once_groups,
    once_job,
    pairs,
    timed_job,
    without,
)

SETTING = Setting("cpu", 1, "", {})


def test_derived_seeds_depend_on_every_part() -> None:
    seeds = {derive_seed(1, 2, "x"), derive_seed(1, 2, "y"), derive_seed(1, 3, "x"), derive_seed(12, "x")}
    assert len(seeds) == 4
    assert derive_seed(1, 2, "x") == derive_seed(1, 2, "x")
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_point_order_does_not_depend_on_what_is_missing(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, timed=8)
    everything = {(case.id, 0) for case in plan.cases}
    whole = timed_job(plan, SETTING, 0, everything)
    gone = {pair for pair in everything if pair[0] == next(iter(whole.visits[3].cases.values()))}
    rest = timed_job(plan, SETTING, 0, everything - gone)
    assert [v.point for v in rest.visits] == [v.point for v in whole.visits]
    assert len(rest.visits[3].cases) == 1
    assert [v.point for v in whole.visits] != [p.id for p in plan.points]
    assert [v.point for v in timed_job(plan, SETTING, 1, {(c.id, 1) for c in plan.cases}).visits] != [
        v.point for v in whole.visits
    ]


def test_without_leaves_exactly_the_unsettled_pairs(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, timed=2, scored=1, seeds=3)
    missing = {(case.id, n) for case in plan.cases for n in range(case.launches)}
    for job in (
        timed_job(plan, SETTING, 0, missing),
        once_job(plan, SETTING, 0, once_groups(plan)[0], missing),
    ):
        settled = sorted(pairs(job))[:2]
        assert set(pairs(without(job, settled))) == set(pairs(job)) - set(settled)
        assert without(job, pairs(job)).visits == []


def test_once_cases_are_grouped_by_entry_and_layer(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, exact=2, scored=1)
    groups = once_groups(plan)
    assert [(group.entry, group.layer, len(group.cases)) for group in groups] == [(0, "a", 3), (0, "b", 3)]


def test_a_stored_run_narrows_the_plan_to_itself(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, timed=2, launches=5)
    stored = [case.model_copy(update={"launches": 2}) for case in plan.cases if case.layer == "a"][:1]
    small = narrowed(plan, stored)
    assert small.cases == stored
    assert [(point.layers, point.launches) for point in small.points] == [(["a"], 2)]
    assert small.launches == 2
