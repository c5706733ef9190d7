from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bitbench.cli import main
from bitbench.measure import fitness
from bitbench.measure.findings import Finding, Level


@pytest.mark.parametrize(("level", "code"), [(Level.FIT, 0), (Level.DEGRADED, 1), (Level.UNFIT, 2)])
def test_exit_code_and_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: Level, code: int
) -> None:
    found = [
        Finding("cores", Level.FIT, "2 of them"),
        Finding("load", level, "busy", "times [are] long", "wait [a] minute"),
    ]
    monkeypatch.setattr(fitness, "examine", lambda: found)
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert f"this machine is {level} for measuring" in out
    assert "times [are] long" in out
    assert "-> wait [a] minute" in out
    assert main(["doctor", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == level
    assert told["findings"][1]["remedy"] == "wait [a] minute"
    assert told["findings"][1]["why"] == "times [are] long"


def test_this_machine_is_examined_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(fitness.Path(fitness.__file__).parents[2]))
    assert main(["doctor", "--json"]) in (0, 1, 2)
    told = json.loads(capsys.readouterr().out)
    subjects = {finding["what"] for finding in told["findings"]}
    assert subjects >= {"cores", "isa", "torch", "kernels", "governor", "memory", "load", "gpu", "disk"}
    assert subjects >= {"processes", "interrupts", "smt", "clock", "swap", "compiler"}
    assert not any("cannot be examined" in finding["found"] for finding in told["findings"])


def test_importing_the_commands_loads_no_torch() -> None:
    modules = "bitbench.cli.run, bitbench.cli.doctor, bitbench.measure.fitness, bitbench.execute.runner"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
