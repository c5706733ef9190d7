"""``bitbench run --rerun`` and ``--wait`` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitbench.cli import main
from bitbench.errors import Exit
from bitbench.execute import identity
from bitbench.store.reader import load_run
from bitbench.store.schema import Record, Status
from bitbench.store.writer import RunWriter

ROOT = Path(__file__).parents[3]
SUITE = """
schema: 1
name: tiny
baseline: linear
launches: 1
device: cpu
layers:
  linear: {kind: linear}
workloads:
  - {kind: linear, shapes: [[64, 32]], memory: false}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of one case, of the code as it is for the rest of the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(identity.environment, "source_digest", lambda: "as it was")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SUITE)
    assert main(["run", "tiny.yaml", "--threads", "1"]) == Exit.OK
    (folder,) = (tmp_path / "results").iterdir()
    return folder


def test_failed_measures_what_has_no_result(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = load_run(run).cases[0]
    assert main(["run", "--rerun", "failed"]) == Exit.OK
    assert "nothing has failed" in capsys.readouterr().out
    with RunWriter.reopen(run) as writer:
        writer.records([Record(case=case.id, launch=0, status=Status.OOM, reason="too little memory")])
    assert main(["run", "--resume"]) != Exit.OK, "a run without any result is no success"
    assert main(["run", "--rerun", "failed", "tiny.yaml", str(run)]) == Exit.OK
    assert [record.status for record in load_run(run).records] == [Status.OK]
    assert not (run / "earlier").exists()


def test_stale_measures_everything_once_the_code_has_changed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_run(run)
    assert main(["run", "--rerun", "stale"]) == Exit.OK
    assert "nothing is stale" in capsys.readouterr().out
    assert load_run(run).records == before.records
    monkeypatch.setattr(identity.environment, "source_digest", lambda: "as it is now")
    assert main(["run", "--rerun", "failed"]) == Exit.OK, "nothing to do, whatever the code"
    assert main(["run", "--rerun", "stale"]) == Exit.OK
    assert "stale: source code: as it was then, as it is now now" in capsys.readouterr().out
    after = load_run(run)
    assert after.info.code.digest == "as it is now"
    assert after.missing() == set()
    assert load_run(run / "earlier" / "1").records == before.records


def test_failed_cannot_be_mixed_with_other_code(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = load_run(run).cases[0]
    with RunWriter.reopen(run) as writer:
        writer.records([Record(case=case.id, launch=0, status=Status.ERROR, reason="x")])
    monkeypatch.setattr(identity.environment, "source_digest", lambda: "other")
    assert main(["run", "--rerun", "failed"]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "source code: as it was then, other now" in told
    assert "--rerun stale" in told


def test_all_measures_everything(run: Path) -> None:
    before = load_run(run)
    assert main(["run", "--rerun", "all"]) == Exit.OK
    assert load_run(run).missing() == set()
    assert load_run(run / "earlier" / "1").records == before.records


def test_a_suite_that_cannot_be_read_any_more_is_one_message(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = json.loads((run / "run.json").read_text())
    head["suite"]["layers"]["linear"]["kind"] = "gone"
    (run / "run.json").write_text(json.dumps(head))
    assert main(["run", "--rerun", "all", str(run)]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "cannot be read here" in told
    assert "gone" in told


def test_a_comparison_is_not_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = json.loads((run / "run.json").read_text())
    head["purpose"] = "compare"
    (run / "run.json").write_text(json.dumps(head))
    assert main(["run", "--resume", str(run)]) == Exit.USAGE
    assert "compares two versions" in capsys.readouterr().err


def test_a_device_in_use_is_named_with_its_process(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\nfrom bitbench.measure.lock import device_lock\n"
        "with device_lock('cpu'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    count = len(list(run.parent.iterdir()))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for arguments in (["tiny.yaml"], ["--rerun", "all"]):
            assert main(["run", *arguments]) == Exit.USAGE
            told = capsys.readouterr().err
            assert f"process {other.pid}" in told
            assert "--wait" in told
        other.kill()
    assert len(list(run.parent.iterdir())) == count, "a refused run leaves no folder"
    assert not (run / "earlier").exists()
