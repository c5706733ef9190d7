"""The pull-request comment, pinned by golden files.

After a change made on purpose: ``BITBENCH_WRITE_GOLDEN=1 pytest tests/bitbench/report/test_comment.py``,
then read the difference.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bitbench.analysis.gate import GateResult
from bitbench.report.comment import comment, marker
from bitbench.report.markdown import LIMIT

GOLDEN = Path(__file__).parent / "golden"
COMMAND = "bitbench calibrate suites/gate.yaml && bitbench gate suites/gate.yaml --base origin/main"


@pytest.mark.parametrize("outcome", ["passed", "failed", "inconclusive", "broken"])
def test_the_comment_is_the_golden_one(gates: dict[str, GateResult], outcome: str) -> None:
    text = comment(gates[outcome], name="suites/gate.yaml", command=COMMAND)
    path = GOLDEN / f"comment-{outcome}.md"
    if os.environ.get("BITBENCH_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("outcome", ["passed", "failed", "inconclusive", "broken"])
def test_marker_first_and_verdict_before_anything_else(gates: dict[str, GateResult], outcome: str) -> None:
    lines = [line for line in comment(gates[outcome], name="n").splitlines() if line]
    assert lines[0] == marker("n") == "<!-- bitbench gate: n -->"
    assert lines[1].startswith("## ")
    assert gates[outcome].reason in lines[2]


def test_every_fold_is_closed(gates: dict[str, GateResult]) -> None:
    for result in gates.values():
        text = comment(result, command=COMMAND)
        assert text.count("<details>") == text.count("</details>") > 0
        # A table in a fold is only read as one after an empty line.
        assert not re.search(r"</summary>\n[^\n]", text)


def test_what_fails_is_named_outside_the_folds(gates: dict[str, GateResult]) -> None:
    head = comment(gates["failed"]).partition("<details>")[0]
    assert "takes 7.4 % longer" in head
    assert "0.931x" in head
    assert "layer_bytes: 824 KiB → 1.008 MiB" in head
    assert "/k2" not in head, "what is only shown fails nothing"


def test_ten_thousand_cases_fit_and_the_rest_is_counted(big_gate: GateResult) -> None:
    text = comment(big_gate)
    assert len(text) <= LIMIT
    assert "and 960 more" in text
    assert re.search(r"9[789]\d\d more rows are in the job's artifact", text)


def test_the_slow_cases_survive_the_cut(big_gate: GateResult) -> None:
    table = comment(big_gate).partition("<summary>All times</summary>")[2]
    listed = [line for line in table.splitlines() if line.startswith("| **")]
    assert listed
    assert all(line.startswith("| **slower**") for line in listed)


def test_data_is_never_read_as_markup(hostile_gate: GateResult) -> None:
    text = comment(hostile_gate, name="x --> <img src=y>", command="bitbench gate `x`")
    assert "<script" not in text
    assert "<img" not in text
    assert text.splitlines()[0].count("-->") == 1
    assert text.splitlines()[0].endswith("-->")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # The same number of unescaped bars in each line of the table.
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_a_case_without_a_figure_says_why(empty_values_gate: GateResult) -> None:
    text = comment(empty_values_gate)
    assert "* linear/2048x2048/tokens=1/cache=hot/k3: head: crash, the worker died of signal 11" in text
    assert "20 → inf" in text


def test_a_name_too_long_is_cut(gates: dict[str, GateResult]) -> None:
    assert len(comment(gates["passed"], command="x" * 2 * LIMIT)) <= LIMIT
