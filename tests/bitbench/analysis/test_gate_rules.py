"""What counts, what fails, and when the gate does not believe itself."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.comparison import Compared, Comparison, Kind
from bitbench.analysis.gate import GateResult, Outcome, Role
from bitbench.analysis.gate_rules import (
    MIN_LAUNCHES,
    SAME_AT_LEAST,
    SAME_WITHIN,
    barred,
    judge_paired,
    judge_stored,
    minimum_effects,
    prove,
    unproven,
)
from bitbench.analysis.held import Held, hold
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.verdicts import Verdict, Word
from bitbench.errors import Exit
from bitbench.store.calibration import Calibration, CaseCalibration
from bitbench.store.figures import Figure, FigureSet
from bitbench.store.schema import Case
from bitbench.workloads.self_proof import KIND, NULL, SLOWER

Moved = Literal["", "better", "worse"]


def case(layer: str, workload: str = "linear", *, measure: str = "") -> Case:
    return Case(
        id=f"{workload}-{layer}-{measure}",
        point=f"p-{workload}-{measure}",
        workload=workload,
        entry=0,
        phase="once" if measure else "timed",
        replicate="exact" if measure else "launches",
        launches=10,
        layer=layer,
        params={"measure": measure} if measure else {"tokens": 1},
        numerics=layer,
    )


def timed(layer: str, word: Word = Word.SAME, **changes: Any) -> Compared:
    effect = {Word.SLOWER: 0.9, Word.FASTER: 1.1}.get(word, 1.0)
    low = changes.pop("low", effect * 0.99)
    verdict = Verdict(word, "main", "", Estimate(effect, low, effect * 1.01, 10, 0.99), 0.01)
    if word is Word.NOT_COMPARABLE:
        verdict = Verdict(word, "main", "head is crash: it died")
    workload = changes.pop("workload", "linear")
    return Compared(case(layer, workload), "time.latency", "time", verdict, spread=0.01, **changes)


def counted(layer: str, moved: Moved = "", *, kind: Kind = "exact") -> Compared:
    word = Word.MOVED if moved else Word.SAME
    metric = "memory.layer_bytes" if kind == "exact" else "quality.perplexity"
    one, other = Estimate(100.0, exact=True), Estimate(101.0 if moved else 100.0, exact=True)
    return Compared(case(layer, measure="memory"), metric, kind, Verdict(word, "main"), one, other, moved)


def proven(null: Word = Word.SAME, slowed: Word = Word.SLOWER) -> list[Compared]:
    return [timed(NULL, null, workload=KIND), timed(SLOWER, slowed, workload=KIND)]


def calibration(*layers: str, noisy: tuple[str, ...] = ()) -> Calibration:
    cases = {
        case(layer).id: CaseCalibration(label=layer, launches=10, spread=0.01, admitted=True)
        for layer in layers
    }
    for layer in noisy:
        why = "spread 4.1 % exceeds 3 %"
        cases[case(layer).id] = CaseCalibration(label=layer, launches=10, spread=0.041, why=why)
    return Calibration(created="2026-01-01T00:00:00+00:00", suite="s", machine={}, launches=10, cases=cases)


def judged(
    *results: Compared, contaminated: str = "", proof: list[Compared] | None = None, **options: Any
) -> GateResult:
    everything = [*results, *(proven() if proof is None else proof)]
    comparison = Comparison("main", "head", True, results=tuple(everything), contaminated=contaminated)
    names = [r.case.layer for r in results if r.kind == "time"]
    settings: dict[str, Any] = {
        "calibration": calibration(*names),
        "held": None,
        "slowdown": 0.1,
        "launches": 10,
        "threads": 1,
        **options,
    }
    return judge_paired(comparison, **settings)


def test_nothing_worse_passes() -> None:
    found = judged(timed("a"), timed("b", Word.FASTER), counted("a"), counted("b", "better"))
    assert found.outcome is Outcome.PASSED
    assert found.reason == "none of 4 gating figures is worse"
    assert found.exit_code(strict=True) is Exit.OK


@pytest.mark.parametrize(
    "worse",
    [
        timed("b", Word.SLOWER),
        timed("b", Word.NOT_COMPARABLE, moved="worse"),
        counted("b", "worse"),
        counted("b", "worse", kind="accuracy"),
    ],
)
def test_one_worse_figure_fails(worse: Compared) -> None:
    found = judged(timed("a"), worse)
    assert found.outcome is Outcome.FAILED
    assert found.reason == "1 of 2 gating figures is worse"
    assert [row.compared for row in found.rows if row.fails] == [worse]
    assert found.exit_code() is Exit.FAILED


def test_a_case_that_dies_in_the_head_fails_though_it_was_never_calibrated() -> None:
    died = timed("b", Word.NOT_COMPARABLE, moved="worse")
    found = judged(timed("a"), died, calibration=calibration("a", noisy=("b",)))
    assert found.outcome is Outcome.FAILED


def test_a_case_that_neither_side_could_measure_does_not_fail() -> None:
    found = judged(timed("a"), timed("b", Word.NOT_COMPARABLE))
    assert found.outcome is Outcome.PASSED
    assert found.rows[1].role is Role.SHOWN
    assert found.rows[1].why == "head is crash: it died"


def test_noisy_and_unknown_cases_are_shown_and_say_why() -> None:
    slower = [timed("b", Word.SLOWER), timed("c", Word.SLOWER)]
    found = judged(timed("a"), *slower, calibration=calibration("a", noisy=("b",)))
    assert found.outcome is Outcome.PASSED
    assert [(row.role, row.why) for row in found.rows[:3]] == [
        (Role.GATING, ""),
        (Role.SHOWN, "spread 4.1 % exceeds 3 %"),
        (Role.SHOWN, "never calibrated on this machine"),
    ]


@pytest.mark.parametrize(("launches", "threads", "why"), [
    (MIN_LAUNCHES - 1, 1, "9 launches; times gate from 10"),
    (MIN_LAUNCHES, 2, "2 threads; times gate on 1"),
])  # fmt: skip
def test_times_do_not_gate_from_few_launches_or_several_threads(
    launches: int, threads: int, why: str
) -> None:
    found = judged(timed("a", Word.SLOWER), counted("a"), launches=launches, threads=threads)
    assert barred(launches, threads) == why
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason == f"no time gates: {why}"
    assert found.exit_code() is Exit.OK
    assert found.exit_code(strict=True) is Exit.INCONCLUSIVE
    assert found.warnings == (f"1 time only shown, not gated ({why})",)


@pytest.mark.parametrize(
    ("proof", "failure"),
    [
        (proven(null=Word.SLOWER), "the same code held against itself came out slower"),
        (proven(null=Word.INCONCLUSIVE), "the same code held against itself came out inconclusive"),
        (proven(slowed=Word.SAME), "a slowdown of 10 % put in on purpose came out same"),
        (proven(slowed=Word.FASTER), "a slowdown of 10 % put in on purpose came out faster"),
        ([], "its own two cases were not measured"),
        (proven()[:1], "its own two cases were not measured"),
    ],
)
@pytest.mark.parametrize("worse", [False, True])
def test_a_gate_that_cannot_prove_itself_is_broken_whatever_it_found(
    proof: list[Compared], failure: str, worse: bool
) -> None:
    found = judged(timed("a", Word.SLOWER if worse else Word.SAME), proof=proof)
    assert found.outcome is Outcome.BROKEN
    assert found.proof is not None
    assert found.proof.failure == failure
    beside = "; besides, 1 of 1 gating figure is worse" if worse else ""
    assert found.reason == f"the gate could not prove itself: {failure}{beside}"
    assert found.exit_code() is Exit.TOOL


def test_proof_cases_that_came_out_wrong_are_named() -> None:
    assert unproven(Comparison("a", "b", True, results=tuple(proven()))) == set()
    wrong = proven(null=Word.INCONCLUSIVE, slowed=Word.SAME)
    assert unproven(Comparison("a", "b", True, results=tuple(wrong))) == {r.case.id for r in wrong}
    assert not prove(Comparison("a", "b", True, results=tuple(proven())), 0.1).failure


def test_nothing_measured_is_broken() -> None:
    assert judged().outcome is Outcome.BROKEN
    assert judged().exit_code() is Exit.TOOL


def test_cases_that_neither_side_could_measure_are_nothing_measured() -> None:
    found = judged(timed("a", Word.NOT_COMPARABLE), timed("b", Word.NOT_COMPARABLE))
    assert (found.outcome, found.exit_code()) == (Outcome.BROKEN, Exit.TOOL)
    assert found.reason == "nothing was measured that could be compared"
    assert judged(timed("a", Word.NOT_COMPARABLE, moved="worse")).outcome is Outcome.FAILED


def test_an_undecided_accuracy_leaves_the_question_open() -> None:
    seeds = counted("a", kind="accuracy")
    undecided = replace(
        seeds, verdict=Verdict(Word.INCONCLUSIVE, "main", "the interval reaches across a bound")
    )
    found = judged(timed("a"), undecided)
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.exit_code(strict=True) is Exit.INCONCLUSIVE


def test_in_a_contaminated_session_times_decide_nothing_and_bytes_still_do() -> None:
    control = timed("linear", Word.SLOWER, control=True)
    told = "1 control moved"
    times = judged(timed("a", Word.SLOWER), control, contaminated=told, calibration=calibration("a"))
    assert times.outcome is Outcome.INCONCLUSIVE
    assert told in times.reason
    assert [row.role for row in times.rows[:2]] == [Role.SHOWN, Role.CONTROL]
    bytes_too = judged(timed("a", Word.SLOWER), counted("a", "worse"), contaminated=told)
    assert bytes_too.outcome is Outcome.FAILED


def test_a_control_never_fails_by_itself() -> None:
    found = judged(
        timed("a"), timed("linear", Word.SLOWER, control=True), calibration=calibration("a", "linear")
    )
    assert found.outcome is Outcome.PASSED


@pytest.mark.parametrize(("low", "outcome"), [(0.97, Outcome.PASSED), (0.90, Outcome.INCONCLUSIVE)])
def test_a_question_is_open_only_where_a_promised_slowdown_could_hide(low: float, outcome: Outcome) -> None:
    found = judged(timed("a", Word.INCONCLUSIVE, low=low), timed("b"))
    assert found.outcome is outcome


def test_a_baseline_replaces_the_base_side_for_bytes() -> None:
    """Figures that were accepted in this very change are not held against the base side again."""
    moved = counted("a", "worse")
    accepted = Held(results=(counted("a"),))
    assert judged(timed("a"), moved).outcome is Outcome.FAILED
    assert judged(timed("a"), moved, held=accepted).outcome is Outcome.PASSED
    unknown = judged(timed("a"), moved, held=Held(unaccepted=("linear/memory/a memory.layer_bytes",)))
    assert unknown.outcome is Outcome.PASSED
    assert unknown.rows[1].why == "not in the baseline yet"
    assert any("is not in the baseline" in text for text in unknown.warnings)


def test_rows_and_comparison_show_the_same_figures() -> None:
    found = judged(timed("a"), counted("a", "worse"), held=Held(results=(counted("a"),)))
    assert found.comparison.results == tuple(row.compared for row in found.rows)


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.sampled_from([Word.SLOWER, Word.SAME, Word.FASTER, Word.INCONCLUSIVE]),
        min_size=1,
    ),
    st.sets(st.sampled_from("abcdef")),
    st.booleans(),
    st.booleans(),
)
def test_exit_codes_follow_from_the_rows(
    words: dict[str, Word], noisy: set[str], contaminated: bool, strict: bool
) -> None:
    quiet = [layer for layer in words if layer not in noisy]
    found = judged(
        *(timed(layer, word) for layer, word in words.items()),
        contaminated="a control moved" if contaminated else "",
        calibration=calibration(*quiet, noisy=tuple(noisy)),
    )
    red = any(words[layer] is Word.SLOWER for layer in quiet) and not contaminated
    assert (found.exit_code(strict=strict) is Exit.FAILED) == red
    assert (found.outcome is Outcome.FAILED) == any(row.fails for row in found.rows)
    assert len(found.rows) == len(words) + 2
    if not strict and not red:
        assert found.exit_code() is Exit.OK


def test_thresholds_are_each_case_s_own() -> None:
    found = calibration("a", "b", "linear", "null", "loud")
    cases = dict(found.cases)
    for layer, changes in {
        "b": {"floor": 0.03},
        "linear": {"equivalence": 0.04},
        "null": {"equivalence": 0.002},
        "loud": {"equivalence": 0.3},
    }.items():
        id = case(layer).id
        cases[id] = cases[id].model_copy(update=changes)
    found = found.model_copy(update={"cases": cases})
    ids = {layer: case(layer).id for layer in ("a", "b", "linear", "null", "loud", "unknown")}
    effects = minimum_effects(
        found, [ids["a"], ids["b"], ids["unknown"]], [ids["linear"], ids["null"], ids["loud"]]
    )
    assert effects == {
        ids["a"]: 0.01,
        ids["b"]: 0.03,
        ids["linear"]: 0.04,
        ids["null"]: SAME_AT_LEAST,
        ids["loud"]: SAME_WITHIN,
    }
    assert minimum_effects(None, [ids["a"]], []) == {}


# --- a stored run against a baseline ------------------------------------------------------------


def ratio(mean: float, sd: float = 0.005, launches: int = 10) -> Figure:
    return Figure(kind="time", value=2.718281828**mean, log_mean=mean, log_sd=sd, launches=launches)


def stored(
    before: dict[str, Figure], after: dict[str, Figure], *, unlike: str = "", threads: int = 1
) -> GateResult:
    sets = [
        FigureSet(source="s", figures={f"linear/x/{layer}": {"time.speedup" if f.kind == "time" else
                                       "memory.layer_bytes": f} for layer, f in side.items()})
        for side in (before, after)
    ]  # fmt: skip
    held = hold(sets[1], sets[0], cases={})
    comparison = Comparison("baseline", "run", False)
    return judge_stored(comparison, held, unlike=unlike, threads=threads)


BYTES = Figure(kind="exact", value=100.0)


def test_a_stored_ratio_gates_on_a_like_machine_and_only_there() -> None:
    slower = {"a": ratio(0.5), "b": BYTES}, {"a": ratio(0.3), "b": BYTES}
    assert stored(*slower).outcome is Outcome.FAILED
    elsewhere = stored(*slower, unlike="another machine: torch (1 and 2)")
    assert elsewhere.outcome is Outcome.PASSED
    assert [row.role for row in elsewhere.rows] == [Role.SHOWN, Role.GATING]
    assert elsewhere.proof is None


@pytest.mark.parametrize(
    ("figure", "threads", "why"),
    [
        (ratio(0.3, launches=5), 1, "5 launches; times gate from 10"),
        (ratio(0.3), 2, "2 threads; times gate on 1"),
        (ratio(0.3, sd=0.06), 1, "spread 4.3 % exceeds 3 %"),
    ],
)
def test_a_stored_ratio_that_is_weakly_measured_is_shown(figure: Figure, threads: int, why: str) -> None:
    found = stored({"a": ratio(0.5), "b": BYTES}, {"a": figure, "b": BYTES}, threads=threads)
    assert found.outcome is Outcome.PASSED
    assert found.rows[0].why == why


def test_bytes_fail_on_any_machine() -> None:
    grown = Figure(kind="exact", value=101.0)
    assert stored({"b": BYTES}, {"b": grown}, unlike="another machine").outcome is Outcome.FAILED
    shrunk = stored({"b": grown}, {"b": BYTES})
    assert shrunk.outcome is Outcome.PASSED
    assert shrunk.rows[0].compared.moved == "better"


def test_a_ratio_that_is_missing_fails_on_the_same_machine_and_is_shown_on_another() -> None:
    before = {"a": ratio(0.5), "b": BYTES}
    figures = {
        label: {"time.speedup" if f.kind == "time" else "memory.layer_bytes": f}
        for label, f in before.items()
    }
    planned = {label: case(label) for label in figures}
    accepted = FigureSet(source="s", figures=figures)
    head = FigureSet(source="s", figures={"b": figures["b"]})
    held = hold(head, accepted, cases=planned, lost={"a": "crash: SIGSEGV"})
    comparison = Comparison("baseline", "run", False)
    here = judge_stored(comparison, held, unlike="", threads=1)
    assert here.outcome is Outcome.FAILED
    there = judge_stored(comparison, held, unlike="another machine", threads=1)
    assert there.outcome is Outcome.PASSED
    assert [(row.role, row.why) for row in there.rows] == [(Role.SHOWN, "another machine"), (Role.GATING, "")]


def test_only_foreign_ratios_leave_everything_open_and_no_figure_at_all_is_broken() -> None:
    found = stored({"a": ratio(0.5)}, {"a": ratio(0.5)}, unlike="another machine")
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.reason == "nothing gates: another machine"
    assert stored({}, {}).outcome is Outcome.BROKEN


def test_equal_sessions_hardly_ever_alarm() -> None:
    rng = random.Random(6)
    alarms = 0
    for _ in range(200):
        session = [rng.gauss(0, 0.005) for _ in range(20)]  # what a session does to a ratio
        before = {str(i): ratio(rng.gauss(0.5, 0.002)) for i in range(20)}
        after = {str(i): ratio(rng.gauss(0.5 + session[i], 0.002)) for i in range(20)}
        alarms += stored(before, after).outcome is Outcome.FAILED
    assert alarms <= 2


def test_a_time_row_keeps_the_threshold_it_was_judged_by() -> None:
    lenient = timed("a")
    lenient = replace(lenient, verdict=replace(lenient.verdict, minimum_effect=0.034))
    assert judged(lenient).rows[0].threshold == 0.034
