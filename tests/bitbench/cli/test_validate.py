"""``bitbench validate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitbench.cli import main

SOUND = """\
schema: 1
name: demo
baseline: linear
layers:
  linear: {kind: linear}
workloads:
  - {kind: linear, shapes: [[8, 8]]}
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    made = {}
    for name, text in {
        "good": SOUND,
        "bad": SOUND.replace("baseline: linear", "baseline: liner"),
        "worse": SOUND.replace("[[8, 8]]", "[[8, 0]]"),
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        made[name] = str(tmp_path / f"{name}.yaml")
    return made


def test_a_sound_suite(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", files["good"]]) == 0
    assert capsys.readouterr().out == f"{files['good']}: sound; 1 layer, 2 points, 2 cases, 0 claims\n"


def test_every_broken_suite_is_reported_and_the_sound_one_too(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", files["bad"], files["good"], files["worse"]]) == 2
    captured = capsys.readouterr()
    assert f"{files['bad']}:3: baseline: this suite has no layer 'liner'" in captured.err
    assert f"{files['worse']}:7: workloads[0].shapes[0]: in_features must be" in captured.err
    assert f"{files['good']}: sound" in captured.out


def test_nothing_to_validate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate"]) == 2
    assert "no suite given" in capsys.readouterr().err


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Suite"
