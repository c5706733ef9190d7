"""Figures against a baseline, and which figures of a run there are to hold."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.figures import figures_of_run, figures_of_summary, head_of, lost
from bitbench.analysis.held import case_of, hold, launches_like, session_threshold
from bitbench.analysis.summary import summarise
from bitbench.analysis.verdicts import Word
from bitbench.errors import UserError
from bitbench.store.figures import Figure, FigureSet
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import CodeIdentity

LABEL = "linear/2048x2048/memory/ternary"


def of(metric: str, figure: Figure, label: str = LABEL) -> FigureSet:
    return FigureSet(source="s", figures={label: {metric: figure}})


def exact(value: float) -> Figure:
    return Figure(kind="exact", value=value)


def ratio(mean: float, sd: float | None = 0.003, launches: int = 10) -> Figure:
    return Figure(kind="time", value=math.exp(mean), log_mean=mean, log_sd=sd, launches=launches)


@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_bytes_are_equal_or_moved(before: float, after: float) -> None:
    found = hold(of("memory.layer_bytes", exact(after)), of("memory.layer_bytes", exact(before)), cases={})
    (result,) = found.results
    assert result.moved == ("" if before == after else "worse" if after > before else "better")
    assert (result.verdict.word is Word.SAME) == (before == after)


@given(st.floats(1, 1e6), st.floats(0, 0.1), st.floats(0.5, 2.0))
def test_accuracy_may_differ_by_its_tolerance(value: float, tolerance: float, factor: float) -> None:
    before = Figure(kind="accuracy", value=value, tolerance=tolerance)
    after = Figure(kind="accuracy", value=value * factor, tolerance=tolerance)
    (result,) = hold(of("quality.perplexity", after), of("quality.perplexity", before), cases={}).results
    within = abs(value * factor - value) <= tolerance * value
    assert result.moved == ("" if within else "worse" if factor > 1 else "better")


def test_more_is_better_where_the_metric_says_so() -> None:
    (result,) = hold(
        of("memory.weight_ratio", exact(19.0)), of("memory.weight_ratio", exact(20.0)), cases={}
    ).results
    assert result.moved == "worse"


def test_a_figure_of_which_no_way_is_better_must_not_move() -> None:
    for after in (90.0, 110.0):
        (result,) = hold(
            of("quality.tokens", exact(after)), of("quality.tokens", exact(100.0)), cases={}
        ).results
        assert result.moved == "worse"


@pytest.mark.parametrize("value", [math.inf, 0.0])
def test_values_that_cannot_be_divided_are_compared_all_the_same(value: float) -> None:
    figure = Figure(kind="accuracy", value=value, tolerance=0.001)
    (same,) = hold(of("quality.perplexity", figure), of("quality.perplexity", figure), cases={}).results
    assert same.moved == ""
    other = Figure(kind="accuracy", value=7.0, tolerance=0.001)
    (moved,) = hold(of("quality.perplexity", other), of("quality.perplexity", figure), cases={}).results
    assert moved.moved in ("better", "worse")


@pytest.mark.parametrize(
    ("difference", "word"),
    [(0.0, Word.SAME), (-0.1, Word.SLOWER), (0.1, Word.FASTER), (-0.031, Word.INCONCLUSIVE)],
)
def test_a_ratio_of_times_is_judged_by_its_interval(difference: float, word: Word) -> None:
    (result,) = hold(
        of("time.speedup", ratio(0.5 + difference)), of("time.speedup", ratio(0.5)), cases={}
    ).results
    assert result.verdict.word is word
    assert result.spread == pytest.approx(0.003)


def test_a_ratio_without_a_spread_decides_nothing() -> None:
    weak = ratio(0.1, sd=None, launches=1)
    (result,) = hold(of("time.speedup", weak), of("time.speedup", ratio(0.5)), cases={}).results
    assert result.verdict.word is Word.INCONCLUSIVE
    assert result.spread is None


@given(st.floats(0, 0.03), st.floats(0, 0.03))
def test_what_a_session_may_do_grows_with_the_spread(one: float, other: float) -> None:
    calm = session_threshold(ratio(0, one), ratio(0, one))
    assert calm >= 0.03
    assert session_threshold(ratio(0, one + 0.01), ratio(0, other)) >= session_threshold(
        ratio(0, one), ratio(0, other)
    )


@given(st.floats(-5, 5), st.floats(0, 1), st.integers(2, 50))
def test_launches_of_a_stored_figure_have_its_mean_and_spread(mean: float, sd: float, n: int) -> None:
    logs = launches_like(ratio(mean, sd, n))
    assert len(logs) == n
    assert statistics.fmean(logs) == pytest.approx(mean, abs=1e-9)
    assert statistics.stdev(logs) == pytest.approx(sd, abs=1e-9)


@given(
    st.lists(st.sampled_from(["linear", "2048x2048", "tokens=1", "a b", "x::y[1]"]), min_size=1, max_size=5)
)
def test_a_label_of_another_tool_stays_readable(parts: list[str]) -> None:
    label = "/".join(parts)
    assert case_of(label).label in (label, f"benchmark/{label}")
    assert case_of(label).id == case_of(label).id


def test_what_was_to_be_measured_and_is_missing_is_worse_and_says_why() -> None:
    accepted, nothing = of("memory.layer_bytes", exact(1)), FigureSet(source="s")
    planned = {LABEL: case_of(LABEL, "exact")}
    (gone,) = hold(nothing, accepted, cases=planned, lost={LABEL: "crash: it died"}).results
    assert (gone.verdict.word, gone.verdict.reason, gone.moved) == (
        Word.NOT_COMPARABLE,
        "crash: it died",
        "worse",
    )
    (unable,) = hold(nothing, accepted, cases=planned, lost={LABEL: "unsupported: no bf16"}).results
    assert unable.moved == ""
    (silent,) = hold(nothing, accepted, cases=planned).results
    assert silent.verdict.reason == "memory.layer_bytes was not measured"


def test_a_time_that_is_not_to_be_believed_says_nothing_of_the_code() -> None:
    nothing, why = FigureSet(source="s"), {LABEL: "invalid: above the roofline"}
    planned = {LABEL: case_of(LABEL)}
    (time,) = hold(nothing, of("time.speedup", ratio(0.5)), cases=planned, lost=why).results
    assert (time.verdict.reason, time.moved) == (why[LABEL], "")
    (size,) = hold(nothing, of("memory.layer_bytes", exact(1)), cases=planned, lost=why).results
    assert size.moved == "worse"


@pytest.mark.parametrize("after", [math.nan, math.inf])
def test_an_accuracy_that_is_no_number_any_more_is_worse(after: float) -> None:
    before = Figure(kind="accuracy", value=1.9, tolerance=0.02)
    broken = before.model_copy(update={"value": after})
    (lost,) = hold(
        of("training.bits_per_byte", broken), of("training.bits_per_byte", before), cases={}
    ).results
    assert (lost.verdict.word, lost.moved) == (Word.MOVED, "worse")
    (mended,) = hold(
        of("training.bits_per_byte", before), of("training.bits_per_byte", broken), cases={}
    ).results
    assert mended.moved == "better"
    (as_bad,) = hold(
        of("training.bits_per_byte", broken), of("training.bits_per_byte", broken), cases={}
    ).results
    assert as_bad.moved == ""


def test_what_was_not_to_be_measured_is_only_named() -> None:
    accepted = of("memory.layer_bytes", exact(1))
    found = hold(of("memory.layer_bytes", exact(1), "new"), accepted, cases={})
    assert found.results == ()
    assert found.unmeasured == (f"{LABEL} memory.layer_bytes",)
    assert found.unaccepted == ("new memory.layer_bytes",)


def test_a_figure_that_changed_its_kind_is_not_compared() -> None:
    (result,) = hold(of("time.speedup", exact(1)), of("time.speedup", ratio(0.5)), cases={}).results
    assert result.verdict.word is Word.NOT_COMPARABLE


def test_kinds_that_are_not_asked_for_are_left_out() -> None:
    found = hold(of("time.speedup", ratio(0.1)), of("time.speedup", ratio(0.5)), cases={}, kinds=("exact",))
    assert found == hold(FigureSet(source=""), FigureSet(source=""), cases={})


# --- figures of a run ---------------------------------------------------------------------------


def test_figures_of_a_run_are_bytes_accuracy_and_ratios(stored_run: Path) -> None:
    run = load_run(stored_run)
    found = figures_of_run(run)
    summary = summarise(run)
    kinds = {metric: figure.kind for own in found.figures.values() for metric, figure in own.items()}
    assert kinds["memory.layer_bytes"] == "exact"
    assert kinds["quality.perplexity"] == "accuracy"
    assert kinds["time.speedup"] == "time"
    assert not {"time.latency", "memory.peak_bytes", "memory.weight_ratio"} & set(kinds)
    for case in summary.cases:
        own = found.figures.get(case.case.label, {})
        assert not (own and not case.ok)
        if "time.speedup" in own:
            assert case.case.layer != summary.baseline
            estimate = case.value("time.speedup")
            assert estimate is not None
            assert own["time.speedup"].value == pytest.approx(estimate.value)
            assert own["time.speedup"].launches == estimate.n
    assert found.machine["threads"] == run.info.threads
    assert set(lost(summary)) == {case.case.label for case in summary.cases if not case.ok}


def two_sided(run: RunData, factor: int) -> RunData:
    """``run`` as the head of a comparison, whose base and second round are ``factor`` times slower."""
    from dataclasses import replace

    head = [record.model_copy(update={"side": "head"}) for record in run.records]

    def slower(record: Any, **changes: Any) -> Any:
        samples = [factor * ns for ns in record.samples_ns]
        return record.model_copy(update={"samples_ns": samples, **changes})

    launches = {case.id: case.launches for case in run.cases}
    base = [slower(record, side="base") for record in head]
    again = [slower(record, launch=record.launch + launches[record.case]) for record in head]
    sides = {side: CodeIdentity(bitbench="0", impl="0") for side in ("base", "head")}
    info = run.info.model_copy(update={"sides": sides, "purpose": "gate"})
    return replace(run, info=info, records=[*base, *head, *again])


def test_of_two_sides_the_head_s_first_round_counts(stored_run: Path) -> None:
    run = load_run(stored_run)
    assert figures_of_run(two_sided(run, 3)) == figures_of_run(run)
    assert head_of(run) is run


def test_a_run_without_any_such_figure_is_refused(stored_run: Path) -> None:
    from dataclasses import replace

    empty = replace(load_run(stored_run), records=[])
    with pytest.raises(UserError, match="holds no figure"):
        figures_of_run(empty)
    assert figures_of_summary(summarise(empty)).figures == {}


def test_holding_a_large_set_is_linear() -> None:
    """Ten thousand figures: a quadratic search would make this test run for minutes."""
    rng = random.Random(7)
    figures = {f"linear/{i}/a/b": {"time.speedup": ratio(rng.gauss(0, 0.01))} for i in range(10_000)}
    large = FigureSet(source="s", figures=figures)
    found = hold(large, large, cases={})
    assert len(found.results) == 10_000
