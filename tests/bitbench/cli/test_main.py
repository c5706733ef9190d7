"""The command line as a whole: exit codes, and what a mistake looks like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

import bitbench.cli as cli
from bitbench.errors import Exit, ToolError, UserError

SUITES = Path(__file__).parents[3] / "suites"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"bitbench {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bitbench")


@pytest.mark.parametrize(
    "arguments", [[], ["plna"], ["plan"], ["plan", "x.yaml", "--launches", "0"], ["plan", "--x"]]
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert cli.main(arguments) == Exit.USAGE


def fake_command(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | int | None) -> None:
    def plan() -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("bitbench.cli.plan.plan", plan)


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (None, 0),
        (4, 4),
        (Exit.FAILED, 1),
        (typer.Exit(3), 3),
        (UserError("a mistake", "mend it"), 2),
        (ToolError("broken"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_how_commands_end(
    monkeypatch: pytest.MonkeyPatch, outcome: BaseException | int | None, code: int
) -> None:
    fake_command(monkeypatch, outcome)
    assert cli.main(["plan"]) == code


def test_a_mistake_is_one_message_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(monkeypatch, UserError("a mistake", "mend it"))
    cli.main(["plan"])
    assert capsys.readouterr().err == "error: a mistake\n  mend it\n"


def test_a_fault_of_the_tool_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


BLOCKED = """
import sys
for name in ("torch", "impl"):
    sys.modules[name] = None  # importing it raises ImportError
from bitbench.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("suite", ["llm", "smoke", "training"])
@pytest.mark.parametrize(
    "command", [["validate"], ["plan"], ["plan", "--quick", "--json"], ["plan", "--resolved"]]
)
def test_checking_and_planning_need_no_torch(command: list[str], suite: str) -> None:
    arguments = [*command, str(SUITES / f"{suite}.yaml")]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_json_schema_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "validate", "--schema"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"LayerSpec.ternary"' in done.stdout
