"""``.github/actions/gate``: its script, run by bash in a real repository with a bitbench that only notes
how it was called."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ACTION = Path(__file__).resolve().parents[1] / ".github" / "actions" / "gate" / "action.yml"


def gate_script() -> str:
    steps = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"]
    (found,) = (step["run"] for step in steps if "bitbench gate" in step.get("run", ""))
    return str(found)


STUB = """#!/usr/bin/env bash
printf '%q ' "$@" >> "$CALLS"; echo >> "$CALLS"
case "$1" in
  doctor) exit "${DOCTOR:-0}" ;;
  calibrate) exit "${CALIBRATE:-0}" ;;
  gate) exit "${GATE:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a main branch that moved on and a change that left it before, as checked out."""
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    git(tmp_path, "init", "-q", "-b", "main", str(origin))
    commit(origin, "one")
    git(tmp_path, "clone", "-q", str(origin), str(clone))
    git(clone, "checkout", "-q", "-b", "change")
    commit(clone, "two")
    commit(origin, "later")
    git(clone, "fetch", "-q")
    stub = tmp_path / "bin" / "bitbench"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    return clone


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, name: str) -> None:
    (folder / name).write_text(name)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", name)


def run_gate(checkout: Path, **variables: str) -> tuple[int, list[list[str]], str]:
    """Exit status, calls of bitbench and output of the action's main step."""
    temporary = checkout.parent / "runner"
    calls = checkout.parent / "calls"
    calls.unlink(missing_ok=True)
    environment = {
        "PATH": f"{checkout.parent / 'bin'}:{os.environ['PATH']}",
        "HOME": str(checkout.parent),
        "RUNNER_TEMP": str(temporary),
        "CALLS": str(calls),
        "SUITE": "suites/gate.yaml",
        "BASE": "",
        "BRANCH": "main",
        "PACKAGES": "impl",
        "BUILD_COMMAND": "",
        "STRICT": "false",
        **variables,
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", gate_script()],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [shlex.split(line) for line in lines], done.stdout + done.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4])
def test_the_action_ends_as_the_gate_does(checkout: Path, status: int) -> None:
    assert run_gate(checkout, GATE=str(status))[0] == status


def test_the_action_measures_against_the_point_where_the_change_left(checkout: Path) -> None:
    left = git(checkout, "rev-parse", "HEAD~1")
    assert left != git(checkout, "rev-parse", "origin/main")
    _, (doctor, calibrate, gate), _ = run_gate(checkout)
    assert doctor == ["doctor"]
    assert calibrate[:4] == ["calibrate", "suites/gate.yaml", "--ref", left]
    assert gate[:6] == ["gate", "suites/gate.yaml", "--base", left, "--head", "HEAD"]
    assert "--strict" not in gate


def test_the_action_passes_its_inputs_as_they_are(checkout: Path) -> None:
    build = "make all; touch $(pwd)/x"
    code, (_, calibrate, gate), _ = run_gate(
        checkout, PACKAGES="one two", BUILD_COMMAND=build, STRICT="true", SUITE="my suite.yaml", BASE="HEAD~1"
    )
    assert code == 0
    for call in (calibrate, gate):
        assert call[1] == "my suite.yaml"
        assert [call[i + 1] for i, word in enumerate(call) if word == "--package"] == ["one", "two"]
        assert call[call.index("--build-command") + 1] == build
    assert "--strict" in gate
    assert not (checkout / "x").exists()


def test_a_branch_name_is_never_run(checkout: Path) -> None:
    code, calls, _ = run_gate(checkout, BRANCH="$(touch pwned)")
    assert (code, calls) == (2, [])
    assert not (checkout / "pwned").exists()


@pytest.mark.parametrize(
    ("variables", "code", "said", "calls"),
    [
        ({"BRANCH": ""}, 2, "no base: give the input 'base'", 0),
        ({"BASE": "origin/gone"}, 2, "check out with 'fetch-depth: 0'", 0),
        ({"DOCTOR": "1"}, 0, "", 3),
        ({"DOCTOR": "2"}, 3, "this runner is unfit for measuring", 1),
        ({"CALIBRATE": "3"}, 3, "", 2),
    ],
)
def test_the_action_stops_where_it_must(
    checkout: Path, variables: dict[str, str], code: int, said: str, calls: int
) -> None:
    ended, made, output = run_gate(checkout, **variables)
    assert (ended, len(made)) == (code, calls), output
    assert said in output
