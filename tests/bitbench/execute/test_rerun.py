"""Measuring again: what failed in place, everything beside a kept copy of what was."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import ToolError, UserError
from bitbench.execute import identity
from bitbench.execute.identity import changed_code, check_same_suite
from bitbench.execute.runner import Machine
from bitbench.execute.stopping import Allowance
from bitbench.measure.lock import device_lock
from bitbench.store import earlier, writer
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Status
from bitbench.store.writer import RunWriter

FAILED = set(Status) - {Status.OK}


def by_layer(run: RunData) -> dict[str, list[Status]]:
    layers = {case.id: case.layer for case in run.cases}
    found: dict[str, list[Status]] = {}
    for record in sorted(run.records, key=lambda record: record.launch):
        found.setdefault(layers[record.case], []).append(record.status)
    return found


def test_only_what_failed_is_measured_again(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BROKEN", "1")
    layers = {"good": {}, "bad": {"does": "broken"}, "refuses": {"does": "refuse"}}
    plan = plan_of(layers, launches=2)
    run = run_of(plan, tmp_path / "run")
    good = {(r.case, r.launch): r.samples_ns for r in run.records if r.status is Status.OK}
    assert by_layer(run)["bad"] == [Status.ERROR] * 2
    plugin.unlink()
    monkeypatch.delenv("FAKE_BROKEN")
    again = run_of(plan, tmp_path / "run", resume=True, again=FAILED)
    assert by_layer(again) == {
        "good": [Status.OK] * 2,
        "bad": [Status.OK] * 2,
        "refuses": [Status.UNSUPPORTED] * 2,
    }
    built = Counter(line.split()[3] for line in plugin.read_text().splitlines() if line.startswith("build"))
    assert built == {"bad": 2, "refuses": 2}
    after = {(r.case, r.launch): r.samples_ns for r in again.records}
    assert {pair: after[pair] for pair in good} == good


def test_a_launch_that_a_budget_added_is_measured_again_too(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: Any
) -> None:
    plan = plan_of({"good": {}, "bad": {"does": "broken"}}, launches=3)
    monkeypatch.setattr(sink, "note", lambda message: monkeypatch.setenv("FAKE_BROKEN", "1"))
    wide = Allowance(seconds=300, width=50.0)  # three launches reach it, a fourth confirms it
    run = run_of(plan, tmp_path / "run", sink=sink, allowance=wide)
    assert by_layer(run)["bad"] == [Status.OK] * 3 + [Status.ERROR]
    monkeypatch.delenv("FAKE_BROKEN")
    again = run_of(plan, tmp_path / "run", resume=True, again=FAILED)
    assert by_layer(again) == {"good": [Status.OK] * 4, "bad": [Status.OK] * 4}


def test_resuming_alone_leaves_failures_as_they_are(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"good": {}, "bad": {"does": "raise"}})
    run_of(plan, tmp_path / "run")
    before = (tmp_path / "run" / writer.SAMPLES_FILE).read_bytes()
    run_of(plan, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / writer.SAMPLES_FILE).read_bytes() == before


def test_an_end_of_memory_is_tried_again_when_asked_for(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path
) -> None:
    layers = {"good": {}, "hungry": {"does": "memory", "from_size": 2}}
    plan = plan_of(layers, timed=0, sizes=[2, 4])
    run_of(plan, tmp_path / "run")
    plugin.unlink()
    again = run_of(plan, tmp_path / "run", resume=True, again=FAILED)
    assert by_layer(again)["hungry"] == [Status.OOM] * 2
    assert "hungry" in plugin.read_text()


def test_everything_anew_keeps_what_was(plan_of: Any, run_of: Any, tmp_path: Path, sink: Any) -> None:
    plan = plan_of({"a": {}, "b": {}}, launches=2)
    first = run_of(plan, tmp_path / "run")
    second = run_of(plan, tmp_path / "run", anew=True, sink=sink)
    third = run_of(plan, tmp_path / "run", anew=True)
    kept = [load_run(tmp_path / "run" / "earlier" / number) for number in ("1", "2")]
    assert [run.records for run in kept] == [first.records, second.records]
    assert kept[0].info == first.info
    assert third.missing() == set()
    assert any("earlier" in note for note in sink.notes)
    lines = (tmp_path / "run" / writer.SAMPLES_FILE).read_text().count("\n")
    assert lines == len(third.records) == 4


def test_a_copy_that_fails_leaves_the_run_whole(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(plan_of({"a": {}}), tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(earlier.shutil, "copy2", full)
    with pytest.raises(ToolError, match="cannot keep the earlier results"):
        earlier.set_aside(tmp_path / "run")
    assert load_run(tmp_path / "run").records == run.records
    monkeypatch.undo()
    assert earlier.set_aside(tmp_path / "run").name == "1"


def test_a_run_that_is_being_written_is_not_set_aside(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    run_of(plan_of({"a": {}}), tmp_path / "run")
    with RunWriter.reopen(tmp_path / "run"), pytest.raises(UserError, match="another bitbench is writing"):
        earlier.set_aside(tmp_path / "run")
    assert not (tmp_path / "run" / "earlier").exists()


def test_other_code_is_told_in_words(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(plan_of({"a": {}}), tmp_path / "run")
    monkeypatch.setattr(identity.environment, "source_digest", lambda: run.info.code.digest)
    machine = Machine("cpu", 1)
    assert changed_code(run, machine) == []
    monkeypatch.setattr(identity.environment, "source_digest", lambda: "other")
    assert changed_code(run, machine) == [f"source code: {run.info.code.digest} then, other now"]
    machine.facts["native"] = {"library_sha256": "1", "isa": "avx2"}
    assert [part.partition(":")[0] for part in changed_code(run, machine)] == [
        "source code",
        "native library",
    ]


def test_a_suite_stored_before_it_gained_a_field_is_still_the_same(
    plan_of: Any, run_of: Any, tmp_path: Path
) -> None:
    plan = plan_of({"a": {}})
    run = run_of(plan, tmp_path / "run")
    for part in (run.info.suite["layers"]["a"], run.info.suite["workloads"][0]):
        del part["timeout"], part["require_backend"]
    check_same_suite(run, plan.suite)
    run.info.suite["layers"]["a"]["timeout"] = 3.0
    with pytest.raises(UserError, match=r"layers\.a\.timeout: 3.0 then, None now"):
        check_same_suite(run, plan.suite)


def test_a_run_holds_the_device(plan_of: Any, run_of: Any, tmp_path: Path, sink: Any) -> None:
    code = "from bitbench.measure.lock import device_lock\nwith device_lock('cpu'): pass"
    answers: list[str] = []

    def ask(*_: Any) -> None:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        answers.append(done.stderr.strip().splitlines()[-2] if done.returncode else "free")

    sink.on_record = ask
    run_of(plan_of({"a": {}}), tmp_path / "run", sink=sink)
    assert len(answers) == 1
    assert "is measuring on cpu" in answers[0]
    with device_lock("cpu"):
        pass
