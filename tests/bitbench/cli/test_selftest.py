from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bitbench.cli import main
from bitbench.cli.selftest import word
from bitbench.measure import selftest
from bitbench.measure.selftest import Check, Outcome


def stand_in(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome) -> None:
    def examine(judge: selftest.Judge) -> Iterator[Check]:
        assert judge is word
        for number, outcome in enumerate(outcomes):
            yield Check(f"thing {number}", "1 [to] 2", "1.5", outcome, tries=2)

    monkeypatch.setattr(selftest, "examine", examine)


@pytest.mark.parametrize(
    ("outcomes", "code", "says"),
    [
        ((Outcome.PASS, Outcome.SKIPPED), 0, "the ruler is right"),
        ((Outcome.PASS, Outcome.FAIL), 3, "1 check failed"),
        ((Outcome.FAIL, Outcome.FAIL), 3, "2 checks failed"),
    ],
)
def test_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: tuple[Outcome, ...],
    code: int,
    says: str,
) -> None:
    stand_in(monkeypatch, *outcomes)
    assert main(["selftest"]) == code
    out = capsys.readouterr().out
    assert says in out
    assert "1 [to] 2" in out
    assert "try 2" in out


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, Outcome.PASS, Outcome.FAIL)
    assert main(["selftest", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is False
    assert [check["outcome"] for check in told["checks"]] == ["pass", "fail"]


def test_the_word_is_that_of_a_suite() -> None:
    launches = range(8)
    assert word({n: 1.0 + 0.001 * (-1) ** n for n in launches}) == "same"
    assert word({n: 0.9 + 0.001 * (-1) ** n for n in launches}) == "slower"
    assert word({n: 1.1 + 0.001 * (-1) ** n for n in launches}) == "faster"
    assert word({n: 1.0 + 0.1 * (-1) ** n for n in launches}) == "inconclusive"


@pytest.mark.slow
def test_the_ruler_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Every check is made and says something. Whether times pass depends on who else is at work
    here; bytes do not."""
    assert main(["selftest", "--json"]) in (0, 3)
    told = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert len(told) >= 15
    for what in ("bytes of a layer", "bytes behind a view", "bytes of a file"):
        assert told[what]["outcome"] == "pass"
    assert all(check["measured"] for check in told.values())
