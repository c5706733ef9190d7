"""``bitbench calibrate`` from the outside, on a machine whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitbench.cli import main
from bitbench.errors import Exit


def test_calibrate_tells_quiet_from_noisy(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lab.spread["binary"] = 0.1
    assert main(["calibrate", str(lab.suite()), "--calibration", "c/mine.json"]) == Exit.OK
    out = " ".join(capsys.readouterr().out.split())
    assert "3 of 4 cases are quiet enough" in out
    assert "kept in c/mine.json; it expires with" in out
    stored = json.loads(Path("c/mine.json").read_text())
    admitted = {case["label"].rpartition("/")[2]: case["admitted"] for case in stored["cases"].values()}
    assert admitted == {"linear": True, "binary": False, "ternary": True, "self-proof-null": True}
    assert stored["machine"]["torch"] == "2.13.0"
    assert main(["gate", str(lab.suite()), "--base", "main", "--calibration", "c/mine.json"]) == Exit.OK
    assert [r["purpose"] for r in lab.rounds].count("calibrate") == 1


def test_calibrate_measures_one_version_against_itself(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitbench.execute.paired as paired

    seen = []
    measure = paired.execute_paired

    def watched(plan: Any, run_dir: Any, sides: Any, **options: Any) -> Any:
        seen.append(sides)
        return measure(plan, run_dir, sides, **options)

    monkeypatch.setattr(paired, "execute_paired", watched)
    main(["calibrate", str(lab.suite()), "--ref", "v1"])
    ((base, head),) = seen
    assert (base.side, head.side) == ("base", "head")
    assert base.root == head.root
    assert base.label == "v1"


def test_a_suite_that_times_nothing_cannot_be_calibrated(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(lab.suite()), "--only", "memory"]) == Exit.USAGE
    assert "times nothing that matches memory" in capsys.readouterr().err


def test_too_many_launches_and_a_folder_for_a_file_are_refused(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("place").mkdir()
    assert main(["calibrate", str(lab.suite()), "--calibration", "place"]) == Exit.USAGE
    assert "place is a folder" in capsys.readouterr().err
    assert main(["calibrate", str(lab.suite()), "--launches", "1001"]) == Exit.USAGE
    assert main(["gate", str(lab.suite()), "--base", "main", "--launches", "1001"]) == Exit.USAGE
    assert lab.rounds == []
