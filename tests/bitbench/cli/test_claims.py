from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.cli import main


def run_with(run_maker: ModuleType, folder: Path, **claim: Any) -> str:
    fields = {"id": "one", "says": "it holds", "gating": True, **claim}
    return str(run_maker.write_run(folder, claims=[fields]))


MEMORY = {"metric": "memory.weight_ratio", "where": {"layer": "ternary", "shape": [4096, 4096]}}
OPEN = {
    "metric": "time.latency",
    "where": {"layer": "k3-g64", "tokens": 512},
    "of": {"layer": "linear-int8"},
    "at_most": 1.9,
}


def test_claims_that_hold(stored_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", str(stored_run)]) == 0
    out = capsys.readouterr().out
    assert "twenty-fold" in out
    assert "19.88x" in out


def test_a_failed_gate_exits_1(
    run_maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claims", run_with(run_maker, tmp_path, **MEMORY, at_least=20)]) == 1
    assert "fail" in capsys.readouterr().out


def test_a_gate_that_matches_nothing_exits_1(
    run_maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_with(run_maker, tmp_path, metric="time.speedup", where={"layer": "misspelt"}, at_least=1)
    assert main(["claims", path]) == 1
    assert "not evaluated" in capsys.readouterr().out


def test_an_open_gate_exits_4_when_strict_only(run_maker: ModuleType, tmp_path: Path) -> None:
    path = run_with(run_maker, tmp_path, **OPEN)
    assert main(["claims", path]) == 0
    assert main(["claims", path, "--strict"]) == 4


def test_an_empty_run_exits_3(run_maker: ModuleType, tmp_path: Path) -> None:
    path = run_with(run_maker, tmp_path, **MEMORY, at_least=19)
    (Path(path) / "samples.jsonl").write_text("")
    assert main(["claims", path]) == 3
