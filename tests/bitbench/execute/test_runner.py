"""The runner against workers that die, hang, raise and lie."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import ToolError, UserError
from bitbench.execute import runner
from bitbench.execute.runner import Limits
from bitbench.measure import host
from bitbench.store import writer
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Record, Status


def statuses(run: RunData) -> dict[str, Status]:
    layers = {case.id: case.layer for case in run.cases}
    return {layers[record.case]: record.status for record in run.records}


def reasons(run: RunData) -> dict[str, str]:
    layers = {case.id: case.layer for case in run.cases}
    return {layers[record.case]: record.reason for record in run.records}


def assert_complete(run: RunData) -> None:
    """Every (case, launch) has exactly one line in the file."""
    lines = (run.path / writer.SAMPLES_FILE).read_text().splitlines()
    seen = Counter((json.loads(line)["case"], json.loads(line)["launch"]) for line in lines)
    assert set(seen.values()) == {1}
    assert set(seen) == {(case.id, n) for case in run.cases for n in range(case.launches)}


def test_each_failure_costs_its_case_only(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path, sink: Any
) -> None:
    plan = plan_of(
        {
            "good": {},
            "aborts": {"does": "abort"},
            "aborts-late": {"does": "abort", "at": "call"},
            "raises": {"does": "raise"},
            "raises-late": {"does": "raise", "at": "call"},
            "memory": {"does": "memory"},
            "torch-memory": {"does": "torch_memory", "at": "call"},
            "wrong": {"does": "wrong"},
            "wrong-after": {"does": "wrong_after"},
            "refuses": {"does": "refuse"},
            "falls-back": {"does": "fallback"},
            "invalid": {"does": "invalid"},
        }
    )
    run = run_of(plan, tmp_path / "run", sink=sink)
    assert [note.startswith("launch-0: the worker died of SIGABRT") for note in sink.notes] == [True] * 2
    assert statuses(run) == {
        "good": Status.OK,
        "aborts": Status.CRASH,
        "aborts-late": Status.CRASH,
        "raises": Status.ERROR,
        "raises-late": Status.ERROR,
        "memory": Status.OOM,
        "torch-memory": Status.OOM,
        "wrong": Status.INCORRECT,
        "wrong-after": Status.INCORRECT,
        "refuses": Status.UNSUPPORTED,
        "falls-back": Status.FALLBACK,
        "invalid": Status.INVALID,
    }
    told = reasons(run)
    assert told["raises"] == "ValueError: first line"
    assert "SIGABRT" in told["aborts"]
    assert "logs/launch-0.log" in told["aborts"]
    assert told["wrong-after"].startswith("after timing")
    assert told["refuses"] == "needs a package that is missing: pip install it"
    assert_complete(run)
    by_layer = {case.id: case.layer for case in run.cases}
    for record in run.records:
        name = by_layer[record.case]
        timed = name in ("good", "falls-back", "invalid")
        assert bool(record.samples_ns) == timed, name
        if timed:
            assert 2 <= len(record.samples_ns) <= 64
            assert record.before is not None
            assert record.after is not None
            assert record.kernel == "fake/kernel"
            assert record.metrics["cpu.utilisation"] > 0
    assert "Traceback" in (tmp_path / "run" / "logs" / "launch-0.log").read_text()
    assert not (tmp_path / "run" / "cache").exists()


def test_hang_is_killed_and_the_rest_goes_on(plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path) -> None:
    plan = plan_of({"good": {}, "hangs": {"does": "hang", "at": "call"}}, exact=1)
    began = time.monotonic()
    run = run_of(plan, tmp_path / "run", limits=Limits(start=120, least=2, factor=0))
    assert time.monotonic() - began < 100
    of = {(c.layer, c.phase): r for r in run.records for c in run.cases if c.id == r.case}
    assert of["hangs", "timed"].status is Status.TIMEOUT
    assert "2 s" in of["hangs", "timed"].reason
    assert of["hangs", "once"].status is Status.TIMEOUT
    assert of["good", "timed"].status is Status.OK
    assert of["good", "once"].metrics == {"memory.layer_bytes": 8.0}
    pids = {int(line.split()[1]) for line in plugin.read_text().splitlines()}
    assert not any(_alive(pid) for pid in pids)


def test_what_a_dead_worker_has_started_ends_with_it(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path
) -> None:
    run = run_of(plan_of({"good": {}, "leaves": {"does": "orphan"}}), tmp_path / "run")
    assert statuses(run) == {"good": Status.OK, "leaves": Status.CRASH}
    words = (line.split() for line in plugin.read_text().splitlines())
    (left,) = (int(rest[0]) for word, *rest in words if word == "orphan")
    deadline = time.monotonic() + 30
    while _alive(left):
        assert time.monotonic() < deadline, "it still takes time from what is measured"
        time.sleep(0.02)


@pytest.mark.parametrize("short", [True, False])
def test_sigkill_is_oom_only_when_memory_was_short(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
) -> None:
    calls = iter(range(1000))
    monkeypatch.setattr(host, "oom_kills", lambda: next(calls) if short else 7)
    run = run_of(plan_of({"good": {}, "killed": {"does": "kill"}}), tmp_path / "run")
    assert statuses(run) == {"good": Status.OK, "killed": Status.OOM if short else Status.CRASH}


def test_once_jobs_come_first_and_bytes_share_a_process(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path
) -> None:
    run = run_of(plan_of({"a": {}, "b": {}}, exact=2), tmp_path / "run")
    lines = [line.split() for line in plugin.read_text().splitlines()]
    measured = [(words[3], words[4]) for words in lines if words[0] == "measure"]
    assert measured == [("0", "a"), ("0", "b"), ("1", "a"), ("1", "b")]
    kinds = [words[0] for words in lines]
    assert kinds == ["open", *["measure"] * 2, "open", *["measure"] * 2, "open", *["build"] * 2]
    assert len({words[1] for words in lines[:6]}) == 1
    assert len({words[1] for words in lines}) == 2
    assert_complete(run)


def test_accuracy_of_an_entry_opens_once_for_all_layers(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path
) -> None:
    layers: dict[str, Any] = {"a": {"sense": 1}, "a-too": {"sense": 1}, "b": {"sense": 2}}
    run = run_of(plan_of(layers, timed=0, documents=1), tmp_path / "run")
    assert [line.split()[0] for line in plugin.read_text().splitlines()] == ["open", "measure", "measure"]
    assert_complete(run)
    found = {r.case: r.metrics["quality.perplexity"] for r in run.records}
    case = {c.layer: c.id for c in run.cases}
    # The random streams of the process start afresh for every layer: no layer's number depends on
    # which others were measured before it.
    assert found[case["a"]] - 1 == pytest.approx(found[case["b"]] - 2)
    alone = run_of(plan_of({"b": {"sense": 2}}, timed=0, documents=1), tmp_path / "alone")
    assert alone.records[0].metrics["quality.perplexity"] == found[case["b"]]


@pytest.mark.parametrize("phase", ["exact", "documents"])
def test_a_failure_in_a_shared_process_costs_its_case_only(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path, phase: str
) -> None:
    layers = {
        "good": {},
        "aborts": {"does": "abort", "sense": 1},
        "raises": {"does": "raise", "sense": 2},
        "hangs": {"does": "hang", "sense": 3},
        "memory": {"does": "memory", "sense": 4},
        "refuses": {"does": "refuse", "sense": 5},
        "last": {"sense": 6},
        "same-as-aborts": {"sense": 1},
    }
    plan = plan_of(layers, timed=0, **{phase: 1})
    run = run_of(plan, tmp_path / "run", limits=Limits(start=120, least=2, factor=0))
    assert statuses(run) == {
        "good": Status.OK,
        "aborts": Status.CRASH,
        "raises": Status.ERROR,
        "hangs": Status.TIMEOUT,
        "memory": Status.OOM,
        "refuses": Status.UNSUPPORTED,
        "last": Status.OK,
        "same-as-aborts": Status.OK,
    }
    assert_complete(run)
    log = [line.split() for line in plugin.read_text().splitlines()]
    assert sorted(words[4] for words in log if words[0] == "measure") == sorted(layers)


def test_equal_numerics_are_computed_once(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path, sink: Any
) -> None:
    layers = {"a": {"sense": 1}, "a-packed": {"sense": 1}, "b": {"sense": 2}}
    run = run_of(plan_of(layers, timed=0, scored=1, seeds=2), tmp_path / "run", sink=sink)
    measured = [line.split()[4:] for line in plugin.read_text().splitlines() if line.startswith("measure")]
    assert measured == [["a", "0"], ["a", "1"], ["b", "0"], ["b", "1"]]
    assert_complete(run)
    case = {c.layer: c.id for c in run.cases}
    shared = [r for r in run.records if r.case == case["a-packed"]]
    assert [r.shared_from for r in shared] == [case["a"]] * 2
    # Accuracy is copied; bytes belong to the layer that was measured.
    assert [r.metrics for r in shared] == [{"quality.perplexity": 21.0}, {"quality.perplexity": 22.0}]
    assert shared[0].replicates == {"quality.nll": [1.0, 2.0]}
    assert sink.total == 6
    assert sink.ended


def test_failed_accuracy_is_not_shared(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    layers: dict[str, Any] = {"a": {"does": "abort"}, "a-packed": {}}
    run = run_of(plan_of(layers, timed=0, scored=1), tmp_path / "run")
    assert statuses(run) == {"a": Status.CRASH, "a-packed": Status.OK}


def test_point_order_and_build_order_differ_between_launches(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path
) -> None:
    plan = plan_of({"a": {}, "b": {}}, launches=3, timed=3)
    run = run_of(plan, tmp_path / "run")
    visits: dict[str, list[str]] = {}
    for line in plugin.read_text().splitlines():
        word, pid, point, *_ = line.split()
        if word == "open":
            visits.setdefault(pid, []).append(point)
    orders = [tuple(order) for order in visits.values()]
    assert len(orders) == 3
    assert all(sorted(order) == ["0", "1", "2"] for order in orders)
    assert len(set(orders)) > 1
    # Positions stored are permutations within each point and launch.
    at: dict[tuple[str, int], list[int]] = {}
    points = {case.id: case.point for case in run.cases}
    for record in run.records:
        at.setdefault((points[record.case], record.launch), []).append(record.order)
    assert all(sorted(order) == [0, 1] for order in at.values())


KILLABLE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import make_plan, run_plan
run_plan(make_plan({layers!r}, launches=2, timed=4), Path({run!r}), resume={resume!r})
"""


def start(run_dir: Path, layers: dict[str, Any], resume: bool = False) -> subprocess.Popen[bytes]:
    run_dir.mkdir(exist_ok=True)
    code = KILLABLE.format(tests=str(Path(__file__).parent), layers=layers, run=str(run_dir), resume=resume)
    return subprocess.Popen([sys.executable, "-c", code])


def wait_for_records(run_dir: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    samples = run_dir / writer.SAMPLES_FILE
    while not samples.exists() or samples.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "ended early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_loses_at_most_the_point_in_flight(
    plugin: Path, plan_of: Any, run_of: Any, tmp_path: Path
) -> None:
    layers = {"a": {}, "b": {"does": "slow"}}
    run_dir = tmp_path / "run"
    process = start(run_dir, layers)
    wait_for_records(run_dir, 4, process)
    process.kill()
    process.wait()
    workers = {int(line.split()[1]) for line in plugin.read_text().splitlines()}
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    before = load_run(run_dir)
    done = {(r.case, r.launch): r.samples_ns for r in before.records}
    assert 4 <= len(done) < 16
    with (run_dir / writer.SAMPLES_FILE).open("a") as file:
        file.write('{"case": "torn')  # what a kill in the middle of a write would leave
    assert len(load_run(run_dir).records) == len(done)

    run = run_of(plan_of(layers, launches=2, timed=4), run_dir, resume=True)
    assert_complete(run)
    after = {(r.case, r.launch): r.samples_ns for r in run.records}
    assert {key: after[key] for key in done} == done


def test_interrupt_keeps_everything_and_stops_the_worker(
    plan_of: Any, run_of: Any, tmp_path: Path, plugin: Path, sink: Any
) -> None:
    def interrupt(_case: Any, _record: Record) -> None:
        if len(sink.records) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    sink.on_record = interrupt
    plan = plan_of({"a": {}, "b": {}}, launches=2, timed=2)
    with pytest.raises(KeyboardInterrupt):
        run_of(plan, tmp_path / "run", sink=sink)
    assert sink.ended
    assert 2 <= len(load_run(tmp_path / "run").records) < 8
    assert not any(_alive(int(line.split()[1])) for line in plugin.read_text().splitlines())
    run = run_of(plan, tmp_path / "run", resume=True)
    assert_complete(run)


def test_resume_refuses_another_suite_and_names_what_differs(
    plan_of: Any, run_of: Any, tmp_path: Path
) -> None:
    run_of(plan_of({"a": {}}), tmp_path / "run")
    with pytest.raises(UserError, match=r"suite 'fakes': layers\.a\.sense: 0 then, 3 now") as caught:
        run_of(plan_of({"a": {"sense": 3}}), tmp_path / "run", resume=True)
    assert "--resume" in caught.value.remedy
    with pytest.raises(UserError, match=r"layers\.b: absent then"):
        run_of(plan_of({"a": {}, "b": {}}), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match=r"workloads\[0\]\.timed: 1 then, 2 now"):
        run_of(plan_of({"a": {}}, timed=2), tmp_path / "run", resume=True)


def test_resume_refuses_another_extent(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}}, timed=2)
    run_of(plan, tmp_path / "run")
    fewer = replace(plan, points=plan.points[:1], cases=plan.cases[:1])
    with pytest.raises(UserError, match=r"--only or --launches: 2 cases, 2 measurements .* then, 1 case"):
        run_of(fewer, tmp_path / "run", resume=True)


def test_resume_refuses_other_code(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"a": {}})
    run_of(plan, tmp_path / "run")
    monkeypatch.setattr("bitbench.measure.environment.source_digest", lambda: "other")
    with pytest.raises(UserError, match="source code"):
        run_of(plan, tmp_path / "run", resume=True)


def test_full_disk_is_one_clear_error_and_leaves_whole_lines(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: Any
) -> None:
    real = os.write
    cut = False

    def short_then_full(fd: int, data: bytes) -> int:
        nonlocal cut
        if len(sink.records) >= 1 and (cut or b'"case"' in data):
            if cut:
                raise OSError(errno.ENOSPC, "No space left on device")
            cut = True
            return real(fd, data[:20])
        return real(fd, data)

    monkeypatch.setattr(writer.os, "write", short_then_full)
    with pytest.raises(ToolError, match="disk is full"):
        run_of(plan_of({"a": {}, "b": {}}), tmp_path / "run", sink=sink)
    monkeypatch.undo()
    lines = (tmp_path / "run" / writer.SAMPLES_FILE).read_text()
    assert lines.count("\n") == 1
    assert lines.endswith("\n")


def test_worker_that_cannot_start_is_a_tool_error(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"a": {}})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('torch is broken here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken), str(Path(runner.__file__).parents[2])]))
    with pytest.raises(ToolError, match="torch is broken here"):
        run_of(plan, tmp_path / "run")
    assert load_run(tmp_path / "run").records == []


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_limits_measured_again_are_handed_on(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each launch would measure them once more, seconds each time, for the same result."""
    told: list[Any] = []
    handed: list[bool] = []
    one, two = ({"read_bytes_per_s": 5e9 * threads, "threads": threads} for threads in (1, 2))
    real_start, real_event = runner.Worker.__init__, runner.Worker.next_event

    def start(self: Any, job: Any, log: Path) -> None:
        told.append((job.peaks, job.peaks_at))
        real_start(self, job, log)

    def event(self: Any, *arguments: Any) -> dict[str, Any] | None:
        found = real_event(self, *arguments)
        if found == {"event": "done"} and len(told) == 1 and not handed:
            handed.append(True)
            second = {"event": "peaks", "peaks": two}
            self._buffer = json.dumps(second).encode() + b'\n{"event": "done"}\n' + self._buffer
            return {"event": "peaks", "peaks": one}
        return found

    monkeypatch.setattr(runner.Worker, "__init__", start)
    monkeypatch.setattr(runner.Worker, "next_event", event)
    run_of(plan_of({"a": {}}, launches=3), tmp_path / "run")
    assert told == [({}, {}), (one, {2: two}), (one, {2: two})]


@pytest.mark.parametrize("again", [0.0, 5e9])
def test_a_worker_tells_limits_that_rose(monkeypatch: pytest.MonkeyPatch, again: float) -> None:
    from bitbench.execute import worker
    from bitbench.execute.jobs import Job
    from bitbench.measure.roofline import Peaks

    class Rising:
        def __init__(self, peaks: dict[int, Peaks], remeasure: Any) -> None:
            assert peaks == {1: Peaks(), 2: Peaks(fp32_per_s=1e9)}

        def changed(self) -> list[Peaks]:
            return [Peaks(read_bytes_per_s=again, threads=2)] if again else []

    monkeypatch.setattr(worker, "Rulers", Rising)
    monkeypatch.setattr(worker, "set_threads", lambda threads: None)
    monkeypatch.setattr(worker.gc, "freeze", lambda: None)
    stream = io.StringIO()
    job = Job(mode="timed", name="t", seed=0, device="cpu", threads=1, peaks_at={2: {"fp32_per_s": 1e9}})
    worker.do(Job.model_validate_json(job.model_dump_json()), worker.Events(stream), io.BytesIO())
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in told] == (["peaks"] if again else [])
    assert not told or told[0]["peaks"]["read_bytes_per_s"] == again
