"""Expansion: which points and cases, under which names, and what may not change them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitbench.errors import UserError
from bitbench.suite.expand import PROCESS_SECONDS, Plan, expand, thread_counts
from bitbench.suite.load import parse_suite
from bitbench.suite.schema import Suite

LAYERS: dict[str, Any] = {
    "linear": {"kind": "linear"},
    "ternary": {"kind": "ternary"},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit"},
}


def suite(*workloads: dict[str, Any], **fields: Any) -> Suite:
    head = {"schema": 1, "name": "demo", "baseline": "linear", "layers": LAYERS, "launches": 3}
    return parse_suite(yaml.safe_dump({**head, "workloads": list(workloads), **fields}))


def entry(**fields: Any) -> dict[str, Any]:
    base = {
        "kind": "linear",
        "shapes": [[8, 16]],
        "tokens": [1, 16],
        "cache": ["hot", "cold"],
        "memory": False,
    }
    return {**base, **fields}


def params(plan: Plan) -> list[tuple[Any, ...]]:
    return [tuple(p.params.values()) for p in plan.points]


def ids(plan: Plan) -> set[str]:
    return {c.id for c in plan.cases}


def test_the_product_with_every_layer() -> None:
    plan = expand(suite(entry(memory=True)))
    assert [p.label for p in plan.points] == [
        "linear/8x16/tokens=1/cache=hot",
        "linear/8x16/tokens=1/cache=cold",
        "linear/8x16/tokens=16/cache=hot",
        "linear/8x16/tokens=16/cache=cold",
        "linear/8x16/memory",
    ]
    assert len(plan.cases) == 15
    assert len(ids(plan)) == 15
    assert plan.cases[1].label == "linear/8x16/tokens=1/cache=hot/ternary"
    memory = plan.points[-1]
    assert (memory.phase, memory.replicate, memory.launches) == ("once", "exact", 1)
    assert {p.launches for p in plan.points[:-1]} == {3}


@given(
    tokens=st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True),
    caches=st.lists(st.sampled_from(["hot", "cold"]), min_size=1, max_size=2, unique=True),
    dropped=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["hot", "cold"])), max_size=3, unique=True),
)
def test_exclude_drops_exactly_what_it_names(
    tokens: list[int], caches: list[str], dropped: list[tuple[int, str]]
) -> None:
    everything = {(t, c) for t in tokens for c in caches}
    named = {(tokens[i], c) for i, c in dropped if i < len(tokens) and c in caches}
    left = everything - named
    if not left:
        return
    exclude = [{"tokens": t, "cache": c} for t, c in sorted(named)]
    plan = expand(suite(entry(tokens=tokens, cache=caches, exclude=exclude)))
    assert {(p.params["tokens"], p.params["cache"]) for p in plan.points} == left
    assert len(plan.points) == len(left)


def test_zip_advances_lists_together() -> None:
    plan = expand(suite(entry(zip=[["tokens", "cache"]])))
    assert params(plan) == [([8, 16], 1, "hot"), ([8, 16], 16, "cold")]


def test_include_adds_variants_and_repeats_no_point() -> None:
    plan = expand(
        suite(entry(cache=["hot"], include=[{"shapes": "squares", "tokens": [1]}, {"tokens": [16, 32]}]))
    )
    assert params(plan) == [
        ([8, 16], 1, "hot"),
        ([8, 16], 16, "hot"),
        ([1024, 1024], 1, "hot"),
        ([2048, 2048], 1, "hot"),
        ([4096, 4096], 1, "hot"),
        ([8192, 8192], 1, "hot"),
        ([8, 16], 32, "hot"),
    ]


def test_an_included_variant_brings_its_own_settings_to_the_worker() -> None:
    plan = expand(suite(entry(tokens=[1], cache=["hot"], include=[{"bias": True}])))
    assert [p.spec.model_dump()["bias"] for p in plan.points] == [False, True]
    assert len({p.id for p in plan.points}) == 2
    for point in plan.points:
        dumped = point.spec.model_dump()
        assert (dumped["include"], dumped["exclude"], dumped["zip"], dumped["when"]) == ([], [], [], None)


def test_layers_of_an_entry_are_in_suite_order() -> None:
    plan = expand(suite(entry(layers=["ternary", "linear"])))
    assert plan.points[0].layers == ["linear", "ternary"]


def test_a_point_that_two_entries_name_is_visited_once() -> None:
    plan = expand(
        suite(
            entry(tokens=[1], cache=["hot"], layers=["linear", "ternary-2bit"]),
            entry(tokens=[1, 2], cache=["hot"], layers=["linear", "ternary"], launches=5),
        )
    )
    assert params(plan) == [([8, 16], 1, "hot"), ([8, 16], 2, "hot")]
    assert plan.points[0].layers == ["linear", "ternary", "ternary-2bit"]
    assert plan.points[0].launches == 5
    assert len(plan.cases) == 5


def test_when_keeps_entries_to_their_device() -> None:
    both = suite(entry(tokens=[1]), entry(tokens=[512], when={"device": "cuda"}))
    assert {p.params["tokens"] for p in expand(both, device="cpu").points} == {1}
    assert {p.params["tokens"] for p in expand(both, device="cuda").points} == {1, 512}
    assert {p.params["tokens"] for p in expand(both).points} == {1, 512}
    with pytest.raises(UserError, match="nothing to measure on cpu"):
        expand(suite(entry(when={"device": "cuda"})), device="cpu")


def test_ids_depend_on_nothing_that_does_not_change_the_number() -> None:
    plain = expand(suite(entry()))
    others = [
        suite(entry(), title="Another title", launches=9, seed=4),
        suite({k: entry()[k] for k in reversed(entry())}),
        suite(entry(shapes=[[8, 16], [4, 4]], tokens=[16, 1, 3], memory=True)),
        suite(entry(tokens=[9]), entry()),
        suite(entry(shapes="mine"), shapes={"mine": [[8, 16]]}),
    ]
    for other in others:
        assert ids(plain) <= ids(expand(other))
    for changed in (
        suite(entry(bias=True)),
        suite(
            entry(),
            layers={
                n: {**f, "group_size": 8} if n != "linear" else {"kind": "linear", "dtype": "float16"}
                for n, f in LAYERS.items()
            },
        ),
    ):
        assert not ids(plain) & ids(expand(changed))


def test_numerics_are_shared_by_formats_only() -> None:
    cases = {c.layer: c for c in expand(suite(entry(tokens=[1], cache=["hot"]))).cases}
    assert cases["ternary"].numerics == cases["ternary-2bit"].numerics != cases["linear"].numerics
    assert cases["ternary"].id != cases["ternary-2bit"].id


def test_launches_and_seed_from_the_command_line() -> None:
    made = suite(entry(launches=7))
    assert {p.launches for p in expand(made).points} == {7}
    assert {p.launches for p in expand(made, launches=4).points} == {4}
    assert {p.launches for p in expand(made, quick=True).points} == {2}
    assert expand(made, seed=11).seed == 11


def test_quick_measures_less_of_the_same() -> None:
    made = suite(entry(shapes="squares", include=[{"tokens": [512]}]))
    assert len(expand(made, quick=True).cases) < len(expand(made).cases)
    assert ids(expand(made, quick=True)) <= ids(expand(made))


def test_only_keeps_matches_and_their_baseline() -> None:
    made = suite(entry(memory=True))
    plan = expand(made, only=["*cache=hot/ternary"])
    assert {c.label.rpartition("/")[2] for c in plan.cases} == {"ternary", "linear"}
    assert {p.params["cache"] for p in plan.points} == {"hot"}
    assert [p.layers for p in plan.points] == [["linear", "ternary"]] * 2
    # Bytes are exact, their ratios need no baseline case.
    assert [c.layer for c in expand(made, only=["memory/ternary-2bit"]).cases] == ["ternary-2bit"]
    one = plan.cases[1]
    assert one.id in ids(expand(made, only=[one.id[:8]]))
    with pytest.raises(UserError, match="no case matches 'binary'"):
        expand(made, only=["binary"])


def test_the_estimate_adds_up() -> None:
    plan = expand(suite(entry(memory=True)))
    timed, once = plan.points[:-1], plan.points[-1]
    for point in timed:
        assert plan.point_seconds(point) == pytest.approx(3 * sum(plan.case_seconds(point).values()))
    work = sum(plan.point_seconds(p) for p in timed) + plan.point_seconds(once)
    # Three launches, and one process for the bytes of all layers.
    assert plan.estimate_seconds() == pytest.approx(work + 4 * PROCESS_SECONDS)


def test_a_model_is_loaded_once_a_launch_and_once_for_all_accuracy() -> None:
    model = {"model": "tiny-random", "launches": 3}
    plan = expand(suite({"kind": "decode", **model}, {"kind": "perplexity", "text": "synthetic", **model}))
    for point, loads in zip(plan.points, (3, 1), strict=True):
        work = point.launches * sum(plan.case_seconds(point).values())
        assert plan.open_seconds(point) > 0
        assert plan.point_seconds(point) == pytest.approx(work + loads * plan.open_seconds(point))
    trained = expand(suite({"kind": "pretrain", "text": "synthetic", "seeds": 2}))
    assert trained.processes_at(trained.points[0]) == len(trained.suite.layers)


def test_accuracy_is_estimated_once_for_equal_numerics() -> None:
    def seconds(*layers: str) -> float:
        made = suite({"kind": "pretrain", "text": "synthetic", "layers": list(layers)})
        plan = expand(made)
        return plan.point_seconds(plan.points[0])

    assert seconds("linear", "ternary", "ternary-2bit") == seconds("linear", "ternary") > seconds("linear")


def test_quick_keeps_the_first_entry_of_each_workload() -> None:
    entries = [
        {"kind": "linear", "shapes": [[8, 8]], "tokens": [1]},
        {"kind": "linear", "shapes": [[16, 16], [8, 16]], "tokens": [1, 4]},
        {"kind": "decode", "model": "tiny-random"},
    ]
    plan = expand(suite(workloads=entries), quick=True)
    assert {p.workload for p in plan.points} == {"linear", "decode"}
    assert {tuple(p.params["shape"]) for p in plan.points if p.workload == "linear"} == {(8, 8)}


def test_an_entry_may_name_its_threads() -> None:
    """They are part of what is timed; bytes are those of any number and are measured once."""
    both = suite(entry(tokens=[1], cache=["hot"], memory=True, include=[{"threads": 1}, {"threads": 3}]))
    plan = expand(both)
    assert [p.label for p in plan.points] == [
        "linear/8x16/tokens=1/cache=hot",
        "linear/8x16/memory",
        "linear/8x16/tokens=1/cache=hot/threads=1",
        "linear/8x16/tokens=1/cache=hot/threads=3",
    ]
    assert thread_counts(both) == {1, 3}
    assert thread_counts(suite(entry())) == set()
    # Naming the number changes nothing for the points that do not.
    assert plan.points[0].id == expand(suite(entry(tokens=[1], cache=["hot"]))).points[0].id
    assert [point.spec.threads for point in plan.points] == [None, None, 1, 3]


def test_an_entry_may_name_busy_neighbours() -> None:
    """They are part of what is timed, as threads are, and of the time that it takes."""
    both = suite(entry(tokens=[1], cache=["hot"], memory=True, include=[{"neighbours": "all", "threads": 1}]))
    plan = expand(both)
    assert [p.label for p in plan.points] == [
        "linear/8x16/tokens=1/cache=hot",
        "linear/8x16/memory",
        "linear/8x16/tokens=1/cache=hot/threads=1/neighbours=all",
    ]
    quiet, _, beside = (sum(plan.case_seconds(point).values()) for point in plan.points)
    assert beside > 1.5 * quiet


def test_threads_can_be_excluded_like_any_other_param() -> None:
    plan = expand(suite(entry(include=[{"threads": 1}], exclude=[{"threads": 1, "cache": "cold"}])))
    assert params(plan)[4:] == [([8, 16], 1, "hot", 1), ([8, 16], 16, "hot", 1)]
