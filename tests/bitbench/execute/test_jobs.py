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
    plan = plan_of({"a": {}, "b": {}}, timed=2, scored=1, seeds=3, documents=2)
    missing = {(case.id, n) for case in plan.cases for n in range(case.launches)}
    groups = once_groups(plan)
    once = [once_job(plan, SETTING, n, group, missing) for n, group in enumerate(groups)]
    for job in (timed_job(plan, SETTING, 0, missing), *once):
        everything = list(pairs(job))
        assert len(set(everything)) == len(everything)
        for count in range(len(everything) + 1):
            rest = list(pairs(without(job, everything[:count])))
            assert sorted(rest) == sorted(everything[count:])
        assert without(job, everything).visits == []


def test_layers_that_lack_different_seeds_are_visited_apart(plan_of: Any) -> None:
    """A pair is never asked for twice, whatever a kill has left."""
    layers = {"a": {"sense": 1}, "b": {"sense": 2}, "c": {"sense": 3}}
    plan = plan_of(layers, timed=0, documents=1, seeds=3)
    case = {c.layer: c.id for c in plan.cases}
    missing = {(case["a"], 1), (case["a"], 2), (case["b"], 2), (case["c"], 1), (case["c"], 2)}
    job = once_job(plan, SETTING, 0, once_groups(plan)[0], missing)
    assert [(list(v.cases), v.launches) for v in job.visits] == [(["a", "c"], [1, 2]), (["b"], [2])]
    assert set(pairs(job)) == missing


def test_of_equal_numerics_the_first_that_is_missing_is_asked_for(plan_of: Any) -> None:
    plan = plan_of({"a": {"sense": 1}, "b": {"sense": 2}, "a-too": {"sense": 1}}, timed=0, documents=1)
    case = {c.layer: c.id for c in plan.cases}
    group = once_groups(plan)[0]
    wanted = {(id, 0) for id in case.values()}
    assert [list(v.cases) for v in once_job(plan, SETTING, 0, group, wanted).visits] == [["a", "b"]]
    wanted.remove((case["a"], 0))
    assert [list(v.cases) for v in once_job(plan, SETTING, 0, group, wanted).visits] == [["b", "a-too"]]


def test_bytes_share_a_process_so_does_the_accuracy_of_an_entry_and_training_does_not(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, exact=2, scored=1, documents=2)
    groups = [sorted((case.layer, case.params["measure"]) for case in group) for group in once_groups(plan)]
    assert groups == [
        [("a", "bytes"), ("a", "bytes"), ("b", "bytes"), ("b", "bytes")],
        [("a", "score")],
        [("b", "score")],
        [("a", "text"), ("a", "text"), ("b", "text"), ("b", "text")],
    ]


def test_a_stored_run_narrows_the_plan_to_itself(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, timed=2, launches=5)
    stored = [case.model_copy(update={"launches": 2}) for case in plan.cases if case.layer == "a"][:1]
    small = narrowed(plan, stored)
    assert small.cases == stored
    assert [(point.layers, point.launches) for point in small.points] == [(["a"], 2)]
    assert small.launches == 2
