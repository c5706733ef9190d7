"""Error rates as a page: intervals against published values, and what a row says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.rates import Rate, Rates
from bitbench.report.rates import page, sentence, wilson


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_of_the_literature(hits: int, trials: int, low: float, high: float) -> None:
    found = wilson(Rate(hits, trials))
    assert found == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_the_share_and_mirrors_that_of_the_rest(counts: tuple[int, int]) -> None:
    hits, trials = counts
    low, high = wilson(Rate(hits, trials))
    assert 0.0 <= low <= hits / trials + 1e-12
    assert hits / trials - 1e-12 <= high <= 1.0
    mirrored = wilson(Rate(trials - hits, trials))
    assert mirrored == (pytest.approx(1 - high, abs=1e-9), pytest.approx(1 - low, abs=1e-9))


def test_nothing_tried_tells_nothing() -> None:
    assert wilson(Rate(0, 0)) == (0.0, 1.0)


def rates(draw: str = "consecutive") -> Rates:
    return Rates(
        draw=draw,  # type: ignore[arg-type]
        gates=200,
        launches=10,
        false_alarms=Rate(1, 200),
        alone={0.05: Rate(180, 200), 0.1: Rate(200, 200)},
        together={0.05: Rate(350, 400), 0.1: Rate(400, 400)},
        alone_by_case={
            0.05: {"linear/a/ternary": Rate(180, 200), "linear/a/loud": Rate(0, 0)},
            0.1: {"linear/a/ternary": Rate(200, 200), "linear/a/loud": Rate(0, 0)},
        },
        admitted={"linear/a/ternary": Rate(200, 200), "linear/a/loud": Rate(0, 200)},
        confirmed=Rate(30, 200),
        contaminated=Rate(7, 200),
        unproven=Rate(2, 200),
    )


def rows(text: str) -> list[list[str]]:
    """Cells of the lines that belong to a table, rules left out."""
    lines = [line.strip("| \n") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_every_rate_of_every_draw_has_its_row() -> None:
    found = [rates("consecutive"), rates("scattered")]
    text = page(
        found,
        launches=240,
        source="suites/gate.yaml",
        machine={"processor": "Example CPU", "threads": 1, "governor": "", "driver": [], "gpus": None},
    )
    said = rows(text)
    for draw in ("consecutive", "scattered"):
        of_draw = {row[0]: row[2] for row in said if row[1] == draw}
        assert len(of_draw) == 8
        assert of_draw["A/A: gate calls something slower"] == "0.5 % (0.1 % to 2.8 %; 1 of 200)"
        assert of_draw["A/A: a control moves, no time decides"].endswith("7 of 200)")
        assert of_draw["+5 % in one case: it is called slower"].startswith("90.0 % (")
        assert of_draw["+10 % in all cases: each is called slower"].endswith("400 of 400)")
    assert "240 stored launches of `suites/gate.yaml`, resampled into 200 gates of 10 launches" in text
    assert "Machine: Example CPU" not in text
    assert "Machine: processor Example CPU, threads 1\n" in text, "what is not known is left out"


def test_a_case_that_was_never_admitted_has_no_rate() -> None:
    text = page([rates()], launches=240, source="s.yaml", machine={})
    by_case = {row[0]: row[1:] for row in rows(text) if row[0].startswith("linear/")}
    assert by_case["linear/a/ternary"][0] == "100.0 %"
    assert by_case["linear/a/ternary"][1].endswith("180 of 200)")
    assert by_case["linear/a/loud"] == ["0.0 %", "never tried", "never tried"]


def test_the_sentence_says_what_was_found_and_heads_the_page() -> None:
    found = rates()
    told = sentence(found, 90)
    assert told == (
        "90 stored launches resampled into 200 gates: 0.5 % of them called something slower where nothing "
        "was, and a slowdown of one case was found: +5 % in 90.0 % of them, +10 % in 100.0 % of them"
    )
    assert f"{told}." in page([found], launches=90, source="suites/gate.yaml", machine={}).splitlines()
