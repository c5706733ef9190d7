"""``bitbench compare``: misuse, exit codes, files, and one comparison of two real versions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bitbench.analysis.comparison import Compared, Comparison
from bitbench.analysis.verdicts import Verdict, Word, not_comparable
from bitbench.cli import main
from bitbench.cli.compare import exit_code
from bitbench.errors import Exit
from bitbench.store.schema import Case

SUITE = """
schema: 1
name: tiny
baseline: linear
launches: 1
threads: 1
device: cpu
layers:
  linear: {kind: linear}
workloads:
  - {kind: linear, shapes: [[64, 64]], memory: false}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with two versions of a package, which is the working directory."""
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITBENCH_LOCK_DIR", str(tmp_path / "locks"))
    repo = tmp_path / "repo"
    (repo / "tool").mkdir(parents=True)
    (repo / "suite.yaml").write_text(SUITE)
    git = ["git", "-C", str(repo), "-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "init", "-q", "-b", "main", str(repo)], check=True)
    for version in (1, 2):
        (repo / "tool" / "__init__.py").write_text(f"VERSION = {version}\n")
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", str(version)], check=True)
    monkeypatch.chdir(repo)
    return repo


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "two runs are needed, 0 given"),
        (["one"], "two runs are needed, 1 given"),
        (["one", "two", "three"], "two runs are needed, 3 given"),
        (["one", "two"], "one is not a run"),
        (["one", "two", "--head", "main"], "need --base"),
        (["one", "two", "--launches", "3"], "need --base"),
        (["--base", "main", "suite.yaml", "suite.yaml"], "one suite at most"),
        (["--base", "main", "none.yaml"], "no such file"),
        (["--base", "main", "suite.yaml", "--only", "nothing"], "no case matches"),
        (["--base", "main", "suite.yaml", "--threads", "4000"], "4000 threads are more"),
        (["one", "two", "--json", "suite.yaml/x.json"], "give a writable one with --json"),
        (["one", "two", "--markdown", "tool"], "tool is a folder"),
    ],
)
def test_misuse_is_told_in_one_message(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["compare", *arguments]) == Exit.USAGE
    said = capsys.readouterr()
    assert told in " ".join(said.err.split())
    assert "Traceback" not in said.err
    assert not (place / "results").exists()


def _result(word: Word, **more: Any) -> Compared:
    case = Case(
        id="a", point="p", workload="linear", entry=0, phase="timed", replicate="launches", launches=5,
        layer="x", params={}, numerics="n",
    )  # fmt: skip
    verdict = not_comparable("base", "why") if word is Word.NOT_COMPARABLE else Verdict(word, "base")
    return Compared(case, "time.latency", "time", verdict, **more)


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([_result(Word.SAME)], Exit.OK),
        ([_result(Word.INCONCLUSIVE), _result(Word.FASTER)], Exit.OK),
        ([_result(Word.SAME), _result(Word.SLOWER)], Exit.FAILED),
        ([_result(Word.SAME, moved="worse")], Exit.FAILED),
        ([_result(Word.NOT_COMPARABLE), _result(Word.SAME)], Exit.OK),
        ([_result(Word.NOT_COMPARABLE)], Exit.TOOL),
        ([_result(Word.NOT_COMPARABLE, moved="worse")], Exit.FAILED),
        ([], Exit.TOOL),
    ],
)
def test_exit_codes(results: list[Compared], code: Exit) -> None:
    assert exit_code(Comparison("a", "b", True, results=tuple(results))) is code


@pytest.mark.parametrize(
    ("worse", "code"),
    [
        (_result(Word.SLOWER), Exit.OK),
        (_result(Word.MOVED, moved="worse"), Exit.FAILED),
        (_result(Word.NOT_COMPARABLE, moved="worse"), Exit.FAILED),
    ],
)
def test_where_a_control_moved_no_slower_time_counts_and_the_rest_does(worse: Compared, code: Exit) -> None:
    control = _result(Word.SLOWER, control=True)
    found = Comparison("a", "b", True, results=(control, worse), contaminated="1 control moved")
    assert exit_code(found) is code


def test_an_unknown_version_leaves_nothing_behind(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--base", "nowhere", "suite.yaml", "--package", "tool"]) == Exit.USAGE
    assert "'nowhere' names no commit" in capsys.readouterr().err
    assert not list(place.glob("results/*"))


def test_a_build_that_fails_is_a_fault_of_the_tool(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--base",
        "main",
        "suite.yaml",
        "--package",
        "tool",
        "--build-command",
        "echo broken; exit 7",
    ]
    assert main(["compare", *arguments]) == Exit.TOOL
    assert "broken" in capsys.readouterr().err
    assert not list(place.glob("results/*"))


def test_two_versions_are_built_measured_and_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "tool" / "__init__.py").write_text("VERSION = 3\n")
    options = ["--package", "tool", "--json", "out/c.json", "--markdown", "out/c.md"]
    code = main(["compare", "--base", "main", "suite.yaml", *options])
    said = " ".join(capsys.readouterr().out.split())
    assert code == Exit.OK, said
    assert "working tree (" in said
    assert ", changed) against main (" in said
    data = json.loads((place / "out" / "c.json").read_text())
    assert data["base"].startswith("main (")
    assert (place / "out" / "c.md").read_text().startswith("# ")
    (run,) = place.glob("results/tiny-compare-*")
    info = json.loads((run / "run.json").read_text())
    assert info["purpose"] == "compare"
    assert info["sides"]["head"]["dirty"]
    records = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert sorted(record["side"] for record in records if record["launch"] == 0) == ["base", "head"]


def test_two_stored_runs(place: Path, stored_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(stored_run), str(stored_run)]) == Exit.OK
    assert "two stored runs" in " ".join(capsys.readouterr().out.split())
    # By name, where runs are kept.
    named = ["compare", stored_run.name, stored_run.name, "--results", str(stored_run.parent)]
    assert main(named) == Exit.OK


def test_an_interrupt_says_what_is_kept(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitbench.execute import paired

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(paired, "execute_paired", interrupted)
    assert main(["compare", "--base", "main", "suite.yaml", "--package", "tool"]) == Exit.INTERRUPTED
    assert "interrupted" in capsys.readouterr().out
    assert not list(place.glob("results/*"))
