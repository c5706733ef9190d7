"""Tables of a comparison: columns, order and words, in Markdown and on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bitbench.analysis.gate import GateResult
from bitbench.analysis.statistics import Estimate
from bitbench.report import compared, html, markdown
from bitbench.report.context import build
from bitbench.report.markdown import table
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import CodeIdentity


def printed(result: GateResult, width: int = 160) -> str:
    out = io.StringIO()
    compared.show_gate(result, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize(
    ("effect", "said"),
    [
        (0.931, "takes 7.4 % longer"),
        (1.05, "takes 4.8 % less time"),
        (1.0, "takes as long"),
        (0.5, "takes 100 % longer"),
    ],
)
def test_a_speed_up_is_told_as_time(effect: float, said: str) -> None:
    assert compared.time_change(Estimate(effect)) == said


def test_nothing_is_said_without_an_effect() -> None:
    assert compared.time_change(None) == ""


def test_times_and_figures_have_tables_of_their_own(gates: dict[str, GateResult]) -> None:
    results = gates["failed"].comparison.results
    times, figures = compared.time_table(results), compared.figure_table(results)
    assert times is not None
    assert figures is not None
    assert len(times.rows) + len(figures.rows) == len(results)
    assert all(len(row) == len(times.columns) for row in times.rows)
    assert [row[0].text for row in times.rows] == ["same", "slower", "inconclusive", "slower"]
    assert [cell.text for cell in figures.rows[0]][-3:] == ["824 KiB", "1.008 MiB", "+25 %"]


def test_the_gate_adds_what_each_row_counts_for(gates: dict[str, GateResult]) -> None:
    result = gates["failed"]
    times = compared.time_table(result.comparison.results, compared.by_figure(result.rows))
    assert times is not None
    assert times.columns[-1].title == "Counts for"
    assert [row[-1].text for row in times.rows] == ["control", "gating", "gating", "shown"]
    assert times.rows[3][-1].notes == ("spread 4.1 % exceeds 3 %",)


def test_no_table_of_nothing(gates: dict[str, GateResult]) -> None:
    nothing = gates["broken"].comparison
    assert compared.time_table(nothing.results) is None
    assert compared.figure_table(nothing.results) is None
    assert compared.difference_table(nothing) is None
    assert compared.headline(nothing)[0].endswith("nothing was compared.")


def test_headline_counts_words_but_no_controls(gates: dict[str, GateResult]) -> None:
    first = compared.headline(gates["failed"].comparison)[0]
    assert "**2 slower**, **1 worse**, **1 inconclusive**" in first
    assert "same" not in first


def test_the_markdown_document_holds_every_row(gates: dict[str, GateResult]) -> None:
    comparison = gates["failed"].comparison
    text = compared.markdown(comparison)
    assert text.startswith("# Head against base\n")
    times = compared.time_table(comparison.results)
    assert times is not None
    assert table(times) in text
    assert "governor" in text
    assert "Only the head has `linear/2048x2048/tokens=1/cache=hot/k3`" in text


def test_a_terminal_gets_outcome_last_and_failures_before_it(gates: dict[str, GateResult]) -> None:
    lines = printed(gates["failed"]).splitlines()
    assert lines[-1] == "gate failed: 2 of 4 gating figures are worse"
    assert any(line.startswith("fails linear/2048x2048") for line in lines)
    assert "warning the calibration is 12 days old" in lines
    assert any("differs (soft) governor: performance -> powersave" in line for line in lines)


def test_of_many_cases_all_that_changed_are_listed(big_gate: GateResult) -> None:
    text = printed(big_gate, 200)
    assert "9000 more that are the same are not listed" in text
    assert text.count("slower") >= 1000


def test_markup_of_the_terminal_is_text(hostile_gate: GateResult) -> None:
    assert "[link](http://x)" in printed(hostile_gate)


def test_a_missing_side_is_shown_as_such(empty_values_gate: GateResult) -> None:
    times = compared.time_table(empty_values_gate.comparison.results)
    assert times is not None
    assert times.rows[0][0].text == "not comparable"
    assert "n/a" in [cell.text for cell in times.rows[0]]


@pytest.fixture(scope="module")
def paired_run(stored_run: Path) -> RunData:
    """The stored run as if it had measured two versions; the head's ternary layers take a fifth longer."""
    run = load_run(stored_run)
    layers = {case.id: case.layer for case in run.cases}
    base = [record.model_copy(update={"side": "base"}) for record in run.records]
    head = [
        record.model_copy(
            update={
                "side": "head",
                "samples_ns": [
                    round(ns * (1.2 if layers[record.case] == "ternary" else 1.0)) for ns in record.samples_ns
                ],
            }
        )
        for record in run.records
    ]
    code = {side: CodeIdentity(bitbench="1", impl="1", label=f"{side} of it") for side in ("base", "head")}
    info = run.info.model_copy(update={"purpose": "compare", "sides": code})
    return replace(run, info=info, records=[*base, *head])


def test_the_report_of_a_comparison_begins_with_it(paired_run: RunData) -> None:
    context = build(paired_run)
    assert context.sections[0].id == "compared"
    assert "`head of it` against `base of it`" in context.sections[0].prose[0]
    times = next(data for data in context.sections[0].tables if data.id == "compared-times")
    said = {row[1].text: row[0].text for row in times.rows}
    assert said["linear/2048x2048/tokens=1/cache=hot/ternary"] == "slower"
    assert said["linear/2048x2048/tokens=1/cache=hot/linear"] == "same"
    text = markdown.render(context)
    assert "## Head against base" in text
    assert "<h2" in html.render(context)


def test_a_plain_run_has_no_such_section(stored_run: Path) -> None:
    assert "compared" not in {section.id for section in build(load_run(stored_run)).sections}


def test_a_comparison_that_measured_nothing_says_so(paired_run: RunData) -> None:
    section = build(replace(paired_run, records=[])).sections[0]
    assert section.prose[0].startswith("**Nothing was compared:**")
    assert section.tables == []
