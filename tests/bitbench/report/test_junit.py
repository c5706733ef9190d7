"""JUnit XML of a gate, read back by an XML parser."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from bitbench.analysis.gate import GateResult
from bitbench.report.junit import junit


def parsed(result: GateResult, *, strict: bool = False) -> ElementTree.Element:
    return ElementTree.fromstring(junit(result, strict=strict).encode())


def counts(result: GateResult, *, strict: bool = False) -> tuple[int, int, int, int]:
    root = parsed(result, strict=strict)
    tests, failures, errors, skipped = (
        int(root.get(key, "-1")) for key in ("tests", "failures", "errors", "skipped")
    )
    return tests, failures, errors, skipped


@pytest.mark.parametrize("outcome", ["passed", "failed", "inconclusive", "broken"])
def test_totals_are_those_of_the_elements(gates: dict[str, GateResult], outcome: str) -> None:
    root = parsed(gates[outcome])
    tags = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for key, tag in tags.items():
        assert int(root.get(key, "-1")) == len(list(root.iter(tag)))
    assert int(root.get("tests", "0")) == len(gates[outcome].rows) + 1


def test_nothing_fails_in_a_passed_gate(gates: dict[str, GateResult]) -> None:
    assert counts(gates["passed"]) == (6, 0, 0, 0)


def test_each_failing_row_is_a_failure_and_what_is_shown_is_skipped(gates: dict[str, GateResult]) -> None:
    # Two rows and the outcome; the shown row and the inconclusive one.
    assert counts(gates["failed"]) == (6, 3, 0, 2)
    messages = [found.get("message", "") for found in parsed(gates["failed"]).iter("failure")]
    assert any("takes 7.4 % longer" in message for message in messages)
    skipped = [found.get("message", "") for found in parsed(gates["failed"]).iter("skipped")]
    assert any("spread 4.1 % exceeds 3 %" in message for message in skipped)


def test_a_broken_gate_is_an_error(gates: dict[str, GateResult]) -> None:
    assert counts(gates["broken"]) == (1, 0, 1, 0)
    (error,) = parsed(gates["broken"]).iter("error")
    assert error.get("message") == "the self-proof failed"


def test_inconclusive_is_skipped_unless_strict(gates: dict[str, GateResult]) -> None:
    outcome = "testsuite[last()]/testcase/"
    assert parsed(gates["inconclusive"]).find(outcome + "skipped") is not None
    assert parsed(gates["inconclusive"], strict=True).find(outcome + "failure") is not None


def test_a_control_that_moved_is_not_passed(gates: dict[str, GateResult]) -> None:
    skipped = [found.get("message", "") for found in parsed(gates["inconclusive"]).iter("skipped")]
    assert any("a control should be same; it is slower" in message for message in skipped)


def test_any_text_gives_well_formed_xml(hostile_gate: GateResult) -> None:
    (failure, outcome) = parsed(hostile_gate).iter("failure")
    assert "layer|`<b>`" in (failure.get("message") or "")
    assert "<script>" in (outcome.get("message") or "")


def test_numbers_are_kept_as_properties(gates: dict[str, GateResult]) -> None:
    found = {
        prop.get("name"): prop.get("value")
        for prop in parsed(gates["failed"]).iterfind(".//testcase[failure]/properties/property")
    }
    assert float(found["base"] or "nan") == 843776.0
    assert found["verdict"] == "worse"
    assert float(found["effect"] or "nan") == pytest.approx(0.931)
