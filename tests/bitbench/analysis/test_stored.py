from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bitbench.analysis.compare import compare_runs, compare_sides
from bitbench.analysis.comparison import Compared, Comparison
from bitbench.analysis.stored import SESSION_EFFECT
from bitbench.analysis.verdicts import Word
from bitbench.errors import ToolError, UserError
from bitbench.store.reader import RunData
from bitbench.store.schema import Status


def found(comparison: Comparison, case: str) -> Compared:
    return next(r for r in comparison.results if r.case.id == case)


def test_two_runs_of_equal_code_are_the_same_whatever_the_machines_clock(builder: Any) -> None:
    comparison = compare_runs(builder.plain("a"), builder.plain("b", seed=2, machine=1.4))
    assert (comparison.base, comparison.head, comparison.paired) == ("a", "b", False)
    assert {r.verdict.word for r in comparison.results} == {Word.SAME}
    assert {r.metric for r in comparison.results if r.kind == "time"} == {"time.speedup"}
    assert "linear" not in {r.case.layer for r in comparison.results if r.kind == "time"}
    assert any("absolute times are not judged" in note and "0.714" in note for note in comparison.notes)


def test_a_slower_head_is_found_on_the_ratio(builder: Any) -> None:
    comparison = compare_runs(builder.plain("a"), builder.plain("b", seed=2, slow={"p4-binary": 0.15}))
    result = found(comparison, "p4-binary")
    assert result.verdict.word is Word.SLOWER
    assert result.verdict.effect is not None
    assert result.verdict.effect.value == pytest.approx(1 / 1.15, rel=0.01)
    assert result.verdict.minimum_effect == SESSION_EFFECT
    assert comparison.regressions() == [result]
    back = compare_runs(builder.plain("b", seed=2, slow={"p4-binary": 0.15}), builder.plain("a"))
    assert found(back, "p4-binary").verdict.word is Word.FASTER


def test_another_machine_forbids_times_and_not_bytes(builder: Any) -> None:
    other = {"device": "cpu", "cpu": {"model": "Other CPU"}, "packages": {"torch": "2.13.0"}}
    comparison = compare_runs(builder.plain("a"), builder.plain("b", environment=other))
    first = comparison.differences[0]
    assert (first.what, first.weight) == ("processor", "hard")
    assert found(comparison, "p4-binary").verdict.word is Word.NOT_COMPARABLE
    assert "processor (Example CPU and Other CPU)" in found(comparison, "p4-binary").verdict.reason
    assert found(comparison, "memory-binary").verdict.word is Word.SAME
    assert found(comparison, "text-binary").verdict.word is Word.SAME
    assert comparison.measured


def test_another_seed_forbids_accuracies_only(builder: Any) -> None:
    comparison = compare_runs(builder.plain("a"), builder.plain("b", seed=2, suite_path="s"))
    assert comparison.differences == ()
    moved = builder.plain("b")
    moved = RunData(moved.path, moved.info.model_copy(update={"seed": 3}), moved.cases, moved.records)
    comparison = compare_runs(builder.plain("a"), moved)
    assert found(comparison, "text-binary").verdict.reason == "not the same: seed (0 and 3)"
    assert found(comparison, "p4-binary").verdict.word is Word.SAME


def test_cases_of_one_run_only_are_listed(builder: Any) -> None:
    a, b = builder.plain("a"), builder.plain("b", seed=2)
    fewer = [case for case in b.cases if case.id != "p0-binary"]
    comparison = compare_runs(a, RunData(b.path, b.info, fewer, b.records))
    assert comparison.only_base == ("linear/64x64/tokens=1/cache=hot/binary",)
    assert comparison.only_head == ()
    back = compare_runs(RunData(b.path, b.info, fewer, b.records), a)
    assert back.only_head == comparison.only_base


def test_failures_are_not_comparable(builder: Any, change: Callable[..., RunData]) -> None:
    b = change(
        builder.plain("b"), lambda r: r.case == "p0-linear",
        status=Status.OOM, reason="no memory", samples_ns=[], calls=0,
    )  # fmt: skip
    comparison = compare_runs(builder.plain("a"), b)
    assert found(comparison, "p0-binary").verdict.reason == "linear was not measured beside it in head"
    b = change(
        builder.plain("b"), lambda r: r.case in ("p0-binary", "memory-binary"),
        status=Status.OOM, reason="no memory", samples_ns=[], calls=0, metrics={},
    )  # fmt: skip
    comparison = compare_runs(builder.plain("a"), b)
    for case in ("p0-binary", "memory-binary"):
        assert found(comparison, case).verdict.word is Word.NOT_COMPARABLE
        assert found(comparison, case).verdict.reason == "head is oom: no memory"
        assert found(comparison, case).regressed
    other = {"device": "cpu", "cpu": {"model": "Other CPU"}, "packages": {"torch": "2.13.0"}}
    elsewhere = RunData(b.path, b.info.model_copy(update={"environment": other}), b.cases, b.records)
    assert compare_runs(builder.plain("a"), elsewhere).regressions() == []


def test_every_shared_case_has_a_row_however_it_ended(builder: Any, change: Callable[..., RunData]) -> None:
    broken = change(
        builder.plain("b"), lambda r: True,
        status=Status.ERROR, reason="no", samples_ns=[], calls=0, metrics={}, replicates={},
    )  # fmt: skip
    comparison = compare_runs(broken, broken)
    assert [r.case.id for r in comparison.results] == [case.id for case in broken.cases]
    assert not comparison.measured


def test_nothing_in_common_and_nothing_measured_are_errors(builder: Any) -> None:
    a, b = builder.plain("a"), builder.plain("b")
    renamed = [case.model_copy(update={"id": f"x{case.id}"}) for case in b.cases]
    records = [r.model_copy(update={"case": f"x{r.case}"}) for r in b.records]
    with pytest.raises(UserError, match="runs a and b have no case in common"):
        compare_runs(a, RunData(b.path, b.info, renamed, records))
    with pytest.raises(ToolError, match="run b holds no measurement"):
        compare_runs(a, RunData(b.path, b.info, b.cases, []))


def test_a_comparison_stands_for_its_heads_first_round(builder: Any) -> None:
    sided = builder.sided(slow={"p4-binary": 0.15}, seed=3)
    result = found(compare_runs(builder.plain("a"), sided), "p4-binary")
    assert result.verdict.word is Word.SLOWER


def test_a_run_that_was_cut_short_says_so(builder: Any) -> None:
    cut = replace(builder.plain("b"), warnings=("b/samples.jsonl: the last line was half written",))
    assert compare_runs(builder.plain("a"), cut).notes[0] == cut.warnings[0]
    sided = replace(builder.sided(), warnings=cut.warnings)
    assert compare_sides(sided).notes == cut.warnings
