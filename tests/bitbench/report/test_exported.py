"""The JSON of a comparison and a gate."""

from __future__ import annotations

import json

import pytest

from bitbench.analysis.gate import GateResult
from bitbench.report.exported import comparison_data, gate_data, to_json


@pytest.mark.parametrize(
    ("outcome", "code", "strict_code"),
    [("passed", 0, 0), ("failed", 1, 1), ("inconclusive", 0, 4), ("broken", 3, 3)],
)
def test_the_file_says_what_the_exit_status_says(
    gates: dict[str, GateResult], outcome: str, code: int, strict_code: int
) -> None:
    data = json.loads(to_json(gate_data(gates[outcome])))
    assert data["outcome"] == outcome
    assert data["exit_code"] == code
    assert gate_data(gates[outcome], strict=True)["exit_code"] == strict_code


def test_every_row_and_figure_is_there_unrounded(gates: dict[str, GateResult]) -> None:
    result = gates["failed"]
    data = json.loads(to_json(gate_data(result)))
    assert [row["fails"] for row in data["rows"]] == [row.fails for row in result.rows]
    found = {(row["label"], row["metric"]): row for row in data["comparison"]["results"]}
    for compared in result.comparison.results:
        row = found[compared.case.label, compared.metric]
        assert compared.head is not None
        assert row["head"]["value"] == compared.head.value
        assert row["p"] == compared.verdict.p
    assert data["proof"]["holds"] is True
    assert data["proof"]["slowed"]["word"] == "slower"


def test_what_is_not_finite_is_still_json(empty_values_gate: GateResult) -> None:
    text = to_json(comparison_data(empty_values_gate.comparison))
    assert "Infinity" not in text
    assert json.loads(text)["results"][1]["head"]["value"] == "inf"
    assert json.loads(text)["results"][0]["head"] is None
