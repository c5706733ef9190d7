"""The files of continuous integration: well formed, safe with strangers' code, and true to the commands
that they call."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from bitbench.cli import create_app
from bitbench.report.comment import marker

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTIONS = sorted((ROOT / ".github" / "actions").glob("*/action.yml"))
FILES = [*WORKFLOWS, *ACTIONS]
NAMES = [str(path.relative_to(ROOT / ".github")) for path in FILES]

EVENTS = {"push", "pull_request", "workflow_run", "schedule", "workflow_dispatch"}
JOB_KEYS = {
    "runs-on",
    "timeout-minutes",
    "permissions",
    "env",
    "steps",
    "strategy",
    "if",
    "needs",
    "defaults",
}
STEP_KEYS = {
    "name",
    "id",
    "if",
    "uses",
    "with",
    "run",
    "env",
    "shell",
    "continue-on-error",
    "working-directory",
}
PUBLISHERS = {"actions"}
"""Whose actions are used besides our own."""


class Loader(yaml.SafeLoader):
    """As GitHub reads YAML 1.2: ``on`` is a word, and a key may not come twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key comes twice in {keys}"
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def load(path: Path) -> dict[str, Any]:
    data = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)
    assert isinstance(data, dict)
    return data


@dataclass(frozen=True)
class Script:
    """One ``run`` of a step."""

    file: Path
    text: str
    shell: str

    def lines(self) -> list[str]:
        """Commands, continued lines joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and line.strip()[0] != "#"]


def steps_of(data: dict[str, Any]) -> list[dict[str, Any]]:
    if "runs" in data:
        return list(data["runs"]["steps"])
    return [step for job in data["jobs"].values() for step in job["steps"]]


def scripts() -> Iterator[Script]:
    for path in FILES:
        data = load(path)
        default = data.get("defaults", {}).get("run", {}).get("shell", "")
        for step in steps_of(data):
            if "run" in step:
                yield Script(path, step["run"], step.get("shell", default))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every call of bitbench or pytest in a script: program and its words."""
    for script in scripts():
        for line in script.lines():
            found = re.match(r"(?:[A-Z]+=\S+ )?(bitbench|pytest) (.*)", line)
            if found:
                words = shlex.split(found.group(2), comments=True)
                for end in ("||", ">>", ">", "|"):
                    words = words[: words.index(end)] if end in words else words
                yield found.group(1), words


def test_all_that_are_promised_are_there() -> None:
    assert {path.name for path in WORKFLOWS} == {
        *("tests.yml", "kernels.yml", "kernels-comment.yml", "nightly.yml")
    }
    assert [path.parent.name for path in ACTIONS] == ["comment", "gate"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_the_shape_that_github_takes(path: Path) -> None:
    data = load(path)
    assert set(data) <= {"name", "on", "permissions", "concurrency", "defaults", "env", "jobs"}
    assert set(data["on"]) <= EVENTS
    assert data["jobs"]
    for job in data["jobs"].values():
        assert set(job) <= JOB_KEYS
        assert job["runs-on"] == "ubuntu-latest"
        assert 0 < job["timeout-minutes"] <= 180, "a hung job costs money for six hours"


@pytest.mark.parametrize("path", ACTIONS, ids=lambda path: path.parent.name)
def test_actions_have_the_shape_that_github_takes(path: Path) -> None:
    data = load(path)
    assert set(data) == {"name", "description", "inputs", "runs"}
    assert data["runs"]["using"] == "composite"
    for item in data["inputs"].values():
        assert set(item) <= {"description", "default", "required"}
        assert isinstance(item.get("default", ""), str), "inputs are strings"
    for step in steps_of(data):
        assert ("run" in step) == ("shell" in step), "a composite action's script names its shell"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_step_runs_or_uses_something_pinned(path: Path) -> None:
    for step in steps_of(load(path)):
        assert set(step) <= STEP_KEYS
        assert ("run" in step) != ("uses" in step)
        if "uses" not in step:
            continue
        if step["uses"].startswith("./"):
            action = load(ROOT / step["uses"] / "action.yml")
            assert set(step.get("with", {})) <= set(action["inputs"])
        else:
            found = re.fullmatch(r"([\w-]+)/[\w/-]+@v\d+", step["uses"])
            assert found, f"{step['uses']} is not pinned to a major version"
            assert found.group(1) in PUBLISHERS


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_expressions_name_what_exists(path: Path) -> None:
    data = load(path)
    text = path.read_text(encoding="utf-8")
    inputs = set(data.get("inputs", {}))
    assert set(re.findall(r"\binputs\.([\w-]+)", text)) <= inputs
    ids = {step["id"] for step in steps_of(data) if "id" in step}
    assert set(re.findall(r"\bsteps\.([\w-]+)\.", text)) <= ids
    matrix = {
        key for job in data.get("jobs", {}).values() for key in job.get("strategy", {}).get("matrix", {})
    }
    assert set(re.findall(r"\bmatrix\.([\w-]+)", text)) <= matrix
    for cached in re.findall(r"hashFiles\('([^']+)'\)", text):
        assert (ROOT / cached).is_file()


def test_no_expression_is_pasted_into_a_script() -> None:
    """A branch's name is a stranger's text: as part of a script it would be run."""
    found = list(scripts())
    assert len(found) >= 10
    for script in found:
        assert "${{" not in script.text, script.file


def test_no_script_can_lose_an_exit_status() -> None:
    for script in scripts():
        if len(script.lines()) > 1:
            assert script.lines()[0] == "set -euo pipefail", script.file
            assert script.shell == "bash"
        for line in script.lines():
            assert "|| true" not in line
            if re.search(r"(?<!\|)\|(?!\|)", line):
                assert script.shell == "bash", f"a pipe without pipefail: {line}"
            if line.startswith(("bitbench gate", "bitbench run", "pytest")):
                assert "|" not in line


@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: script.file.stem)
def test_scripts_are_bash(script: Script) -> None:
    done = subprocess.run(["bash", "-n"], input=script.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_permissions_are_minimal() -> None:
    for path in WORKFLOWS:
        data = load(path)
        granted = [data["permissions"], *(job.get("permissions", {}) for job in data["jobs"].values())]
        writing = {key for rights in granted for key, value in rights.items() if value == "write"}
        text = path.read_text(encoding="utf-8")
        assert "pull_request_target" not in data["on"]
        assert "secrets." not in text
        if path.name == "kernels-comment.yml":
            assert data["permissions"] == {}
            assert writing == {"pull-requests"}
        else:
            assert granted[0] == {"contents": "read"}
            assert writing == set()


def test_who_may_write_runs_no_code_of_the_pull_request() -> None:
    data = load(ROOT / ".github/workflows/kernels-comment.yml")
    assert set(data["on"]) == {"workflow_run"}
    (job,) = data["jobs"].values()
    assert job["if"] == "github.event.workflow_run.event == 'pull_request'"
    for step in job["steps"]:
        assert "run" not in step
        assert "ref" not in step.get("with", {}), "only the default branch is checked out"
    for step in steps_of(load(ROOT / ".github/actions/comment/action.yml")):
        if "run" in step:
            assert step["run"].startswith('python3 "$GITHUB_ACTION_PATH/')


def test_checkouts_leave_no_token_behind() -> None:
    found = [
        step
        for path in WORKFLOWS
        for step in steps_of(load(path))
        if step.get("uses", "").startswith("actions/checkout@")
    ]
    assert len(found) == 5
    assert all(step["with"]["persist-credentials"] is False for step in found)


def test_the_two_steps_of_the_comment_fit_together() -> None:
    gate = load(ROOT / ".github/actions/gate/action.yml")
    comment = load(ROOT / ".github/actions/comment/action.yml")
    kernels = load(ROOT / ".github/workflows/kernels.yml")
    posting = load(ROOT / ".github/workflows/kernels-comment.yml")
    assert posting["on"]["workflow_run"]["workflows"] == [kernels["name"]]
    assert comment["inputs"]["artifact"]["default"] == gate["inputs"]["artifact"]["default"]
    (upload,) = (step for step in steps_of(gate) if "upload-artifact" in step.get("uses", ""))
    assert "bitbench/comment.md" in upload["with"]["path"]
    pattern = re.search(r'MARKER = re\.compile\(r"(.+)"\)', post_source())
    assert pattern is not None
    for name in ("gate", "suites/gate.yaml", "build/benchmarks/bench.json", "x --> y"):
        assert re.fullmatch(pattern.group(1), marker(name))


def post_source() -> str:
    return (ROOT / ".github/actions/comment/post.py").read_text(encoding="utf-8")


def test_every_command_and_option_exists() -> None:
    known = get_command(create_app()).commands  # type: ignore[attr-defined]
    called = set()
    for program, words in commands():
        if program == "pytest":
            assert any(word.startswith("--benchmark-json=") for word in words)
            assert (ROOT / words[0]).is_dir()
            called.add("pytest")
            continue
        command = known[words[0]]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words
        called.add(words[0])
    assert called >= {"calibrate", "gate", "run", "doctor", "history", "pytest"}


def test_options_built_up_by_the_action_exist() -> None:
    known = get_command(create_app()).commands  # type: ignore[attr-defined]
    script = gate_script()
    both = " ".join(re.findall(r"shared\+?=\((.*)\)", script))
    of_gate = " ".join(re.findall(r"options\+?=\((.*)\)", script))
    for text, names in ((both, ("calibrate", "gate")), (of_gate, ("gate",))):
        found = set(re.findall(r"--[a-z-]+", text))
        assert found
        for name in names:
            assert found <= {opt for parameter in known[name].params for opt in parameter.opts}


def test_every_file_named_exists() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for named in re.findall(
            r"(?<![\w/])(suites/\w+\.yaml|requirements\.txt|\.ci/run|tests/benchmarks)\b", text
        ):
            assert (ROOT / named).exists(), named
    (job,) = load(ROOT / ".github/workflows/nightly.yml")["jobs"].values()
    for suite in job["strategy"]["matrix"]["suite"]:
        assert (ROOT / "suites" / f"{suite}.yaml").is_file()
    assert os.access(ROOT / ".ci/run", os.X_OK)


def gate_script() -> str:
    steps = steps_of(load(ROOT / ".github/actions/gate/action.yml"))
    (found,) = (step["run"] for step in steps if "bitbench gate" in step.get("run", ""))
    return str(found)
