from __future__ import annotations

import errno
import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.errors import ToolError, UserError
from bitbench.store import reader, writer
from bitbench.store.reader import latest_run, load_run
from bitbench.store.schema import (
    SCHEMA_VERSION,
    Case,
    Check,
    CodeIdentity,
    Record,
    RunInfo,
    Status,
    TelemetrySample,
)
from bitbench.store.writer import RunWriter, check_file, new_run_dir, repair, write_file


def info(name: str = "s", created: str = "2026-01-01T00:00:00+00:00") -> RunInfo:
    return RunInfo(
        run="r",
        created=created,
        suite_path="s.yaml",
        suite={"name": name},
        threads=2,
        environment={},
        code=CodeIdentity(bitbench="0", impl="0"),
    )


def case(number: int = 0, launches: int = 2) -> Case:
    return Case(
        id=f"c{number}",
        point="p",
        workload="linear",
        entry=0,
        phase="timed",
        replicate="launches",
        launches=launches,
        layer="a",
        params={"shape": [1, 2]},
        numerics="n",
    )


def record(launch: int = 0, number: int = 0) -> Record:
    return Record(case=f"c{number}", launch=launch, status=Status.OK, calls=3, samples_ns=[5, 6])


def make(run_dir: Path, *records: Record) -> Path:
    run_dir.mkdir(parents=True)
    with RunWriter.create(run_dir, info(), [case(0), case(1)]) as out:
        out.records(records)
        out.telemetry(TelemetrySample(t=0.5, launch="launch-0"))
    return run_dir


def test_a_run_reads_back_as_written(tmp_path: Path) -> None:
    bad = Record(
        case="c1",
        launch=0,
        status=Status.INCORRECT,
        reason="wrong",
        before=Check(passed=False, max_error=math.inf, tolerance=0.1, compared=4),
    )
    run = load_run(make(tmp_path / "r", record(0), bad))
    assert run.info == info()
    assert run.cases == [case(0), case(1)]
    assert run.records == [record(0), bad]
    assert run.telemetry == [TelemetrySample(t=0.5, launch="launch-0")]
    assert run.missing() == {("c0", 1), ("c1", 1)}
    for line in (tmp_path / "r" / writer.SAMPLES_FILE).read_text().splitlines():
        json.loads(line, parse_constant=_refuse)  # strict JSON: no NaN, no Infinity


def _refuse(word: str) -> None:
    raise AssertionError(f"not JSON: {word}")


@given(cut=st.integers(0, 200))
def test_any_torn_tail_is_tolerated_and_repaired(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    run_dir = make(tmp_path_factory.mktemp("torn") / "r", record(0), record(1))
    samples = run_dir / writer.SAMPLES_FILE
    data = samples.read_bytes()
    first = data.index(b"\n") + 1
    samples.write_bytes(data[: min(len(data), first + cut)])
    whole = 2 if first + cut >= len(data) else 1
    assert len(load_run(run_dir).records) == whole
    with RunWriter.reopen(run_dir) as out:
        out.records([record(1)])
    assert samples.read_bytes().endswith(b"\n")
    assert len(load_run(run_dir).records) == 2
    for line in samples.read_text().splitlines():
        json.loads(line)


def test_garbage_in_a_whole_last_line_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b'{"a": 1}\n\0\0\0\n')
    assert repair(path) == 4
    assert path.read_bytes() == b'{"a": 1}\n'
    assert repair(path) == 0
    assert repair(tmp_path / "missing") == 0


def test_damage_before_the_end_is_refused_with_its_place(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "r", record(0), record(1))
    samples = run_dir / writer.SAMPLES_FILE
    samples.write_bytes(b"{broken\n" + samples.read_bytes())
    with pytest.raises(UserError, match=r"samples\.jsonl:1"):
        load_run(run_dir)


def test_the_last_record_of_a_pair_counts(tmp_path: Path) -> None:
    again = record(0).model_copy(update={"samples_ns": [9]})
    assert load_run(make(tmp_path / "r", record(0), record(1), again)).records == [record(1), again]


def test_two_writers_are_refused(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "r")
    with RunWriter.reopen(run_dir), pytest.raises(UserError, match="another bitbench"):
        RunWriter.reopen(run_dir)
    RunWriter.reopen(run_dir).close()


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    run_dir = make(tmp_path / "r")
    head = run_dir / writer.RUN_FILE
    head.write_text(json.dumps({**json.loads(head.read_text()), "schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match=f"reads up to {SCHEMA_VERSION}"):
        load_run(run_dir)


def test_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make(tmp_path / "r")
    monkeypatch.setattr(reader, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setitem(reader.MIGRATIONS, SCHEMA_VERSION, lambda data: {**data, "run": "migrated"})
    assert load_run(run_dir).info.run == "migrated"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": "1"}', '{"schema_version": 1}'])
def test_damaged_heads_are_refused(tmp_path: Path, text: str) -> None:
    run_dir = make(tmp_path / "r")
    (run_dir / writer.RUN_FILE).write_text(text)
    with pytest.raises(UserError, match=r"run\.json"):
        load_run(run_dir)


def test_a_folder_without_head_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="is not a run"):
        load_run(tmp_path / "missing")


def test_latest_run_is_newest_by_its_head(tmp_path: Path) -> None:
    for folder, name, created in (
        ("z", "a", "2026-01-01T00:00:00+00:00"),
        ("m", "a", "2026-03-01T00:00:00+00:00"),
        ("b", "b", "2026-04-01T00:00:00+00:00"),
    ):
        (tmp_path / folder).mkdir()
        RunWriter.create(tmp_path / folder, info(name, created), []).close()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "run.json").write_text("{")
    assert latest_run(tmp_path).name == "b"
    assert latest_run(tmp_path, "a").name == "m"
    with pytest.raises(UserError, match="suite 'c'"):
        latest_run(tmp_path, "c")
    with pytest.raises(UserError, match="no run"):
        latest_run(tmp_path / "missing")


def test_run_folders_have_suite_time_and_four_hex(tmp_path: Path) -> None:
    made = new_run_dir(tmp_path / "results", "llm", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    stem, _, tail = made.name.rpartition("-")
    assert stem == "llm-20260102T030405Z"
    assert len(tail) == 4
    int(tail, 16)
    assert made.is_dir()


def test_unwritable_results_directory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="--results"):
        new_run_dir(blocked / "results", "llm")


@pytest.mark.parametrize("written", [0, 7])
def test_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    run_dir = make(tmp_path / "r", record(0))
    real, turn = os.write, iter(range(10))

    def full(fd: int, data: bytes) -> int:
        if written and next(turn) == 0:
            return real(fd, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunWriter.reopen(run_dir) as out:
        monkeypatch.setattr(writer.os, "write", full)
        with pytest.raises(ToolError, match="disk is full"):
            out.records([record(1)])
        monkeypatch.undo()
    assert (run_dir / writer.SAMPLES_FILE).read_bytes().count(b"\n") == 1
    assert load_run(run_dir).records == [record(0)]


def test_a_head_that_cannot_be_written_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, "fsync", full)
    with pytest.raises(ToolError, match="disk is full"):
        RunWriter.create(tmp_path, info(), [case()])
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_where_it_was_found_possible(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    check_file(path, "--json")
    assert not path.parent.exists(), "looking makes nothing"
    write_file(path, "text")
    assert path.read_text() == "text"
    check_file(path, "--json")
    write_file(path, "again")
    assert path.read_text() == "again"


def test_where_no_file_can_be_written_is_told_with_the_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder") as error:
        check_file(tmp_path, "--json")
    assert error.value.remedy == "name a file with --json FILE"
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "x.json"
    with pytest.raises(UserError, match="is a file") as error:
        check_file(below, "--json")
    assert error.value.remedy == "give a writable one with --json FILE"
    with pytest.raises(ToolError, match="cannot write"):
        write_file(below, "text")
