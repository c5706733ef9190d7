from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from bitbench.analysis.compare import compare_sides, needs_confirmation
from bitbench.analysis.comparison import Compared, Comparison
from bitbench.analysis.summary import summarise
from bitbench.analysis.verdicts import Word
from bitbench.errors import Exit, ToolError, UserError
from bitbench.store.reader import RunData
from bitbench.store.schema import Status

Change = Callable[..., RunData]


def found(comparison: Comparison, case: str, metric: str = "time.latency") -> Compared:
    return next(r for r in comparison.results if r.case.id == case and r.metric == metric)


def test_equal_versions_are_the_same(builder: Any) -> None:
    comparison = compare_sides(builder.sided())
    assert (comparison.base, comparison.head, comparison.paired) == ("aaaa0000", "bbbb1111", True)
    assert {r.verdict.word for r in comparison.results} == {Word.SAME}
    assert comparison.differences == ()
    assert comparison.contaminated == ""
    assert comparison.regressions() == []
    assert needs_confirmation(comparison) == set()


def test_every_figure_has_its_row_in_plan_order(builder: Any) -> None:
    run = builder.sided()
    comparison = compare_sides(run)
    order = [case.id for case in run.cases]
    rows = [(order.index(r.case.id), r.metric, r.kind) for r in comparison.results]
    assert rows == sorted(rows, key=lambda row: row[0])
    assert {row[1:] for row in rows} == {
        ("time.latency", "time"),
        ("memory.layer_bytes", "exact"),
        ("quality.perplexity", "accuracy"),
    }
    assert len(rows) == len(run.cases)


def test_a_slow_case_is_flagged_confirmed_and_reported(builder: Any) -> None:
    slow = {"p2-ternary": 0.06}
    first = compare_sides(builder.sided(slow=slow))
    assert needs_confirmation(first) == {"p2-ternary"}
    comparison = compare_sides(builder.sided(slow=slow, again={"p2-ternary"}))
    result = found(comparison, "p2-ternary")
    assert (result.verdict.word, result.verdict.rounds) == (Word.SLOWER, 2)
    assert result.verdict.effect is not None
    assert result.verdict.effect.value == pytest.approx(1 / 1.06, rel=0.005)
    assert result.base is not None
    assert result.head is not None
    assert result.base.value == pytest.approx(4e-4, rel=0.01)
    assert result.head.value == pytest.approx(4.24e-4, rel=0.01)
    assert result.spread == pytest.approx(0.005, rel=0.7)
    assert comparison.regressions() == [result]
    assert any("measured again" in note for note in comparison.notes)


def test_what_the_second_round_does_not_repeat_is_no_regression(builder: Any) -> None:
    run = builder.sided(slow={"p2-ternary": 0.06}, again={"p2-ternary"}, again_slow={})
    result = found(compare_sides(run), "p2-ternary")
    assert result.verdict.word is Word.INCONCLUSIVE
    assert not result.regressed


def test_thresholds_are_per_case(builder: Any) -> None:
    run = builder.sided(slow={"p1-binary": 0.04, "p2-binary": 0.04})
    comparison = compare_sides(run, minimum_effects={"p1-binary": 0.08})
    assert found(comparison, "p1-binary").verdict.word is Word.SAME
    assert found(comparison, "p1-binary").verdict.minimum_effect == 0.08
    assert found(comparison, "p2-binary").verdict.word is Word.SLOWER


def test_only_the_family_counts_in_the_correction(builder: Any) -> None:
    run = builder.sided(slow={"p1-binary": 0.04})
    family = {"p1-binary", "p2-binary"}
    comparison = compare_sides(run, family=family)
    assert found(comparison, "p1-binary").verdict.corrected_over == 2
    assert found(comparison, "p0-binary").verdict.corrected_over == 10
    assert found(comparison, "p0-linear").verdict.corrected_over == 6
    assert needs_confirmation(comparison, family) == {"p1-binary"}
    assert needs_confirmation(comparison, {"p2-binary"}) == set()


def test_a_control_that_moves_contaminates_the_session(builder: Any) -> None:
    comparison = compare_sides(builder.sided(slow={"p3-linear": 0.08}))
    assert found(comparison, "p3-linear").control
    assert not found(comparison, "p3-ternary").control
    assert comparison.contaminated.startswith("1 control moved that the change cannot affect: ")
    assert "slower (0.9" in comparison.contaminated
    assert "p3-linear" in needs_confirmation(comparison, set())
    both = compare_sides(builder.sided(slow={"p3-linear": 0.08}, again={"p3-linear"}, again_slow={}))
    assert both.contaminated == ""


def test_the_proof_is_neither_control_nor_family(builder: Any) -> None:
    run = builder.sided(slow={"p3-linear": 0.10})
    cases = [
        case.model_copy(update={"workload": "self_proof"}) if case.point == "p3" else case
        for case in run.cases
    ]
    comparison = compare_sides(RunData(run.path, run.info, cases, run.records))
    proof = found(comparison, "p3-linear")
    assert (proof.verdict.word, proof.control, proof.verdict.corrected_over) == (Word.SLOWER, False, 1)
    assert comparison.contaminated == ""
    assert needs_confirmation(comparison) == set()


@pytest.mark.parametrize(
    ("status", "moved"),
    [
        (Status.CRASH, "worse"),
        (Status.INCORRECT, "worse"),
        (Status.FALLBACK, "worse"),
        (Status.INVALID, ""),  # says nothing about the code
    ],
)
def test_a_head_that_fails_is_worse_than_a_slow_one(
    builder: Any, change: Change, status: Status, moved: str
) -> None:
    def bad(record: Any) -> bool:
        return bool(record.case == "p1-ternary" and record.side == "head" and record.launch == 4)

    run = change(builder.sided(), bad, status=status, reason="it did", samples_ns=[], calls=0)
    result = found(compare_sides(run), "p1-ternary")
    assert result.verdict.word is Word.NOT_COMPARABLE
    assert result.verdict.reason == f"head is {status.value}: it did"
    assert (result.moved, result.regressed) == (moved, moved == "worse")
    assert result.head is None
    assert result.base is not None


def test_the_side_that_was_dragged_along_is_not_blamed(builder: Any, change: Change) -> None:
    for side, other, moved in (("head", "base", "worse"), ("base", "head", "better")):
        run = change(
            builder.sided(),
            lambda r, side=side: r.case == "p1-ternary" and r.side == side and r.launch == 4,
            status=Status.CRASH, reason="killed by SIGSEGV", samples_ns=[], calls=0,
        )  # fmt: skip
        run = change(
            run,
            lambda r, other=other: r.case == "p1-ternary" and r.side == other and r.launch == 4,
            status=Status.ERROR, reason=f"not measured: the {side} side was lost at this case",
            samples_ns=[], calls=0,
        )  # fmt: skip
        assert found(compare_sides(run), "p1-ternary").moved == moved


def test_what_neither_side_can_do_is_no_regression(builder: Any, change: Change) -> None:
    run = change(
        builder.sided(), lambda r: r.case == "p1-ternary",
        status=Status.UNSUPPORTED, reason="no such package", samples_ns=[], calls=0,
    )  # fmt: skip
    result = found(compare_sides(run), "p1-ternary")
    assert (result.verdict.word, result.moved) == (Word.NOT_COMPARABLE, "")
    assert result.verdict.reason == (
        "base is unsupported: no such package; head is unsupported: no such package"
    )


def test_bytes_are_judged_by_equality_and_accuracy_within_its_tolerance(builder: Any, change: Change) -> None:
    run = change(
        builder.sided(), lambda r: r.case == "memory-ternary" and r.side == "head",
        metrics={"memory.layer_bytes": 1101.0},
    )  # fmt: skip
    run = change(
        run, lambda r: r.case == "memory-binary" and r.side == "head", metrics={"memory.layer_bytes": 600.0}
    )
    for case, nll in (("text-ternary", 3.0002), ("text-binary", 3.2)):
        run = change(
            run, lambda r, case=case: r.case == case and r.side == "head",
            replicates={"quality.nll": [nll + 0.1 * i for i in range(4)]},
        )  # fmt: skip
    comparison = compare_sides(run)
    larger = found(comparison, "memory-ternary", "memory.layer_bytes")
    assert (larger.verdict.word, larger.moved, larger.regressed) == (Word.MOVED, "worse", True)
    smaller = found(comparison, "memory-binary", "memory.layer_bytes")
    assert (smaller.verdict.word, smaller.moved, smaller.regressed) == (Word.MOVED, "better", False)
    close = found(comparison, "text-ternary", "quality.perplexity")
    assert (close.verdict.word, close.moved) == (Word.SAME, "")
    far = found(comparison, "text-binary", "quality.perplexity")
    assert (far.verdict.word, far.moved) == (Word.MOVED, "worse")
    assert far.head is not None
    assert far.head.value == pytest.approx(math.exp(3.35))


def test_launches_of_one_side_only_do_not_count(builder: Any) -> None:
    run = builder.sided()
    records = [r for r in run.records if not (r.side == "head" and r.launch >= 6)]
    result = found(compare_sides(RunData(run.path, run.info, run.cases, records)), "p1-ternary")
    assert result.verdict.effect is not None
    assert result.verdict.effect.n == 6
    none = [r for r in run.records if r.side == "base"]
    result = found(compare_sides(RunData(run.path, run.info, run.cases, none)), "p1-ternary")
    assert result.verdict.word is Word.NOT_COMPARABLE
    assert result.moved == ""
    assert "head is missing" in result.verdict.reason


def test_what_is_different_between_the_sides_besides_the_code_is_told(builder: Any) -> None:
    run = builder.sided(slowdown=0.1)
    sides = dict(run.info.sides)
    sides["head"] = sides["head"].model_copy(
        update={"native": {"isa": "avx2"}, "label": "working tree (bbbb1111, changed)"}
    )
    info = run.info.model_copy(update={"sides": sides})
    comparison = compare_sides(RunData(run.path, info, run.cases, run.records))
    assert comparison.head == "working tree (bbbb1111, changed)"
    assert [(d.what, d.base, d.head, d.weight) for d in comparison.differences] == [
        ("instruction set of impl", "avx512", "avx2", "soft")
    ]
    assert comparison.notes[0] == "the head was slowed down on purpose, by up to 10 %"


def test_a_plain_run_has_no_sides(builder: Any) -> None:
    with pytest.raises(UserError, match="run a has no two sides") as error:
        compare_sides(builder.plain())
    assert "bitbench compare" in error.value.remedy


def test_an_empty_run_is_a_failure_of_the_tool(builder: Any) -> None:
    run = builder.sided()
    with pytest.raises(ToolError, match="holds no measurement") as error:
        compare_sides(RunData(run.path, run.info, run.cases, []))
    assert error.value.exit_code is Exit.TOOL


def test_a_run_in_which_everything_failed_measured_nothing(builder: Any, change: Change) -> None:
    run = change(
        builder.sided(), lambda r: True,
        status=Status.ERROR, reason="no", samples_ns=[], calls=0, metrics={}, replicates={},
    )  # fmt: skip
    comparison = compare_sides(run)
    assert not comparison.measured
    assert len(comparison.results) == len(run.cases)
    assert compare_sides(builder.sided()).measured


def test_summary_of_two_sides_is_that_of_the_heads_first_round(builder: Any) -> None:
    run = builder.sided(slow={"p2-ternary": 0.5}, again={"p2-ternary"}, again_slow={"p2-ternary": 7.0})
    summary = summarise(run)
    case = next(c for c in summary.cases if c.case.id == "p2-ternary")
    latency = case.value("time.latency")
    assert latency is not None
    assert latency.n == 10
    assert latency.value == pytest.approx(6e-4, rel=0.01)
