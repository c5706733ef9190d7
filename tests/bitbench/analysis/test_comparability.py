from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitbench.analysis.comparability import (
    MACHINE_RULES,
    RULES,
    differences,
    hard,
    machine_differences,
    rule_for,
    said,
)
from bitbench.store.figures import machine_of
from bitbench.store.reader import load_info
from bitbench.store.schema import RunInfo

RESULTS = Path(__file__).parents[3] / "results"


def with_fact(info: RunInfo, path: str, value: Any) -> RunInfo:
    """The run with one fact changed, by its dotted path in run.json."""
    data = info.model_dump(mode="json")
    *parents, last = path.split(".")
    at: Any = data
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at.setdefault(name, {})
    at[last] = value
    return RunInfo.model_validate(data)


@pytest.fixture(scope="module")
def info() -> RunInfo:
    """Of a published run: what a run really records."""
    return load_info(next(path for path in sorted(RESULTS.iterdir()) if path.name.startswith("llm-")))


def test_a_run_is_comparable_with_itself(info: RunInfo) -> None:
    assert differences(info, info) == ()


def leaves(tree: Any, prefix: str = "") -> list[str]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in leaves(value, f"{prefix}{key}.")]
    return [prefix[:-1]]


def test_every_fact_that_a_run_records_has_a_rule(info: RunInfo) -> None:
    """A new collector has to be decided upon here."""
    assert [path for path in leaves(info.model_dump(mode="json")) if rule_for(path) is None] == []


def test_rules_are_well_formed() -> None:
    for rules in (RULES, MACHINE_RULES):
        paths = [rule.path for rule in rules]
        assert len(set(paths)) == len(paths)
        assert all(rule.word for rule in rules if rule.weight != "ignored")
    assert {rule.path for rule in MACHINE_RULES} == set(machine_of({}, 1, {}))


@pytest.mark.parametrize(
    ("path", "value", "word", "weight"),
    [
        ("environment.cpu.model", "Other", "processor", "hard"),
        ("environment.cpu.flags", ["avx2"], "processor's instruction sets", "hard"),
        ("environment.cpu.governor", "powersave", "processor's governor", "soft"),
        ("environment.cpu.caches.L2", 5, "processor's L2 cache", "hard"),
        ("environment.packages.numpy", "9.9", "numpy", "soft"),
        ("environment.packages.torch", "9.9", "torch", "hard"),
        ("environment.torch.mkl", False, "torch: mkl", "soft"),
        ("environment.variables.OMP_PROC_BIND", "true", "variable OMP PROC BIND", "soft"),
        ("environment.unheard_of", "new", "environment.unheard_of", "soft"),
        ("threads", 64, "threads", "hard"),
        ("seed", 9, "seed", "hard"),
        ("suite.baseline", "linear-bf16", "baseline layer", "hard"),
        ("code.native.isa", "portable", "instruction set of impl", "soft"),
    ],
)
def test_a_difference_is_told_in_the_users_words(
    info: RunInfo, path: str, value: Any, word: str, weight: str
) -> None:
    known = with_fact(info, path, "before") if path.startswith("environment.cpu.governor") else info
    found = differences(known, with_fact(info, path, value))
    assert [d.what for d in found] == [word]
    told_by_one_side_only = found[0].base == "unknown"
    assert found[0].weight == ("soft" if told_by_one_side_only else weight)
    assert differences(with_fact(info, path, value), known)[0].base == found[0].head


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run", "another"),
        ("code.commit", "f00"),
        ("code.dirty", True),
        ("suite.title", "x"),
        ("environment.load.load_1m", 17.0),
        ("environment.memory.available", 1),
        ("environment.variables.OMP_NUM_THREADS", "7"),
        ("environment.gpus", [{"name": "Some GPU", "driver": "1"}]),  # the run was on the CPU
    ],
)
def test_what_does_not_matter_is_silent(info: RunInfo, path: str, value: Any) -> None:
    assert differences(info, with_fact(info, path, value)) == ()


def test_numbers_have_their_tolerance(info: RunInfo) -> None:
    peak = info.environment["peaks"]["read_bytes_per_s"]
    path = "environment.peaks.read_bytes_per_s"
    assert differences(info, with_fact(info, path, peak * 1.05)) == ()
    assert [d.weight for d in differences(info, with_fact(info, path, peak * 1.5))] == ["soft"]


def test_a_fact_that_one_side_never_recorded_forbids_nothing(info: RunInfo) -> None:
    data = info.model_dump(mode="json")
    del data["environment"]["torch"]
    found = differences(RunInfo.model_validate(data), info)
    assert found
    assert hard(found, "time") == []
    assert {d.base for d in found} == {"unknown"}


def test_a_gpu_counts_where_it_does_the_work(info: RunInfo) -> None:
    on_gpu = with_fact(info, "environment.device", "cuda:0")
    gpus = [{"name": "GPU A", "driver": "1", "uuid_hash": "a"}]
    others = [{"name": "GPU A", "driver": "2", "uuid_hash": "b"}]
    found = differences(
        with_fact(on_gpu, "environment.gpus", gpus), with_fact(on_gpu, "environment.gpus", others)
    )
    assert [(d.what, d.weight) for d in found] == [
        ("GPU driver", "hard"),
        ("GPU (another of the same kind)", "soft"),
    ]


def test_hard_differences_come_first_and_know_what_they_forbid(info: RunInfo) -> None:
    other = with_fact(with_fact(with_fact(info, "environment.system.os", "X"), "threads", 64), "seed", 5)
    found = differences(info, other)
    assert [d.weight for d in found] == ["hard", "hard", "soft"]
    assert [d.what for d in hard(found, "time")] == ["threads"]
    assert [d.what for d in hard(found, "accuracy")] == ["seed"]
    assert said(hard(found, "time")) == f"threads ({info.threads} and 64)"


def test_machines_of_figures_follow_the_same_scheme() -> None:
    one = machine_of(
        {"cpu": {"model": "A"}, "device": "cpu", "torch": {"version": "2.1"}}, 1, {"isa": "avx2"}
    )
    other = {**one, "processor": "B", "isa": "avx512", "driver": ["555"], "unheard_of": 1}
    found = machine_differences(one, other)
    assert [(d.what, d.weight) for d in found] == [
        ("processor", "hard"),
        ("instruction set of impl", "soft"),
        ("unheard_of", "soft"),
    ]
    assert machine_differences(one, json.loads(json.dumps(one))) == ()
