"""``bitbench plan``."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from bitbench.cli import main
from bitbench.cli.plan import duration, show
from bitbench.suite.expand import expand
from bitbench.suite.load import load_suite, parse_suite

SUITE = """\
schema: 1
name: demo
baseline: linear
launches: 3
layers:
  linear: {kind: linear}
  a: {kind: ternary}
  b: {kind: binary}
  c: {kind: binary, activation_bits: 1}
  d: {kind: k_ternary}
workloads:
  - {kind: linear, shapes: [[8, 16]], tokens: [1], cache: [hot]}
  - {kind: linear, shapes: [[8, 8]], tokens: [2], cache: [hot], memory: false, layers: [linear, a, b, c]}
  - {kind: pretrain, text: synthetic, seeds: 2, layers: [linear, a]}
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    (tmp_path / "demo.yaml").write_text(SUITE)
    return str(tmp_path / "demo.yaml")


def test_plain_columns(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", path]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["point", "measured", "layers", "time"]
    assert [row.split("\t")[:3] for row in rows] == [
        ["linear/8x16/tokens=1/cache=hot", "3 launches", "all 5"],
        ["linear/8x16/memory", "once, exact", "all 5"],
        ["linear/8x8/tokens=2/cache=hot", "3 launches", "all but d"],
        ["pretrain/model=gpt-nano/text=synthetic/steps=400", "2 seeds", "linear, a"],
    ]
    assert last.startswith("demo: 4 points, 5 layers, 16 cases, 3 launches; about ")


def test_a_table_on_a_terminal() -> None:
    out = io.StringIO()
    show(expand(parse_suite(SUITE)), Console(file=out, force_terminal=True, width=120))
    text = out.getvalue()
    assert "\x1b[" in text
    assert "linear/8x16/memory" in text
    assert "4 points, 5 layers, 16 cases" in text


def test_data_to_fetch_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text(SUITE.replace("text: synthetic", "text: sotu"))
    assert main(["plan", str(tmp_path / "x.yaml")]) == 0
    assert "data: sotu" in capsys.readouterr().out


def test_json_holds_every_case(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", path, "--json", "--seed", "5", "--launches", "4"]) == 0
    data = json.loads(capsys.readouterr().out)
    plan = expand(load_suite(path))
    assert [c["id"] for c in data["cases"]] == [c.id for c in plan.cases]
    assert (data["seed"], data["launches"]) == (5, 4)
    assert {c["launches"] for c in data["cases"] if c["phase"] == "timed"} == {4}
    assert data["estimate_s"] > 0


def test_only_and_device(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", path, "--json", "--only", "*memory/a", "--device", "cpu"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [c["layer"] for c in data["cases"]] == ["a"]
    assert main(["plan", path, "--device", "tpu"]) == 2


def test_the_resolved_suite_is_the_same_suite_however_written(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", path, "--resolved"]) == 0
    first = capsys.readouterr().out
    shuffled = tmp_path / "shuffled.yaml"
    reordered = {k: yaml.safe_load(SUITE)[k] for k in reversed(yaml.safe_load(SUITE))}
    shuffled.write_text(yaml.safe_dump(reordered, sort_keys=False))
    assert main(["plan", str(shuffled), "--resolved"]) == 0
    # Layers keep their order: it is that of the report.
    assert capsys.readouterr().out == first
    again = tmp_path / "again.yaml"
    again.write_text(first)
    assert load_suite(again).resolved() == load_suite(path).resolved()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42.4, "42 s"),
        (119.4, "119 s"),
        (450, "7 min 30 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
