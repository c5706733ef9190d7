"""Damaged and odd run folders: what is tolerated, with which warning, and what is refused where."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import pytest

from bitbench.analysis.summary import summarise
from bitbench.errors import UserError
from bitbench.report import answer
from bitbench.store.reader import collector_paused, load_run

SAMPLES = "samples.jsonl"


@pytest.fixture
def run(stored_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored_run, tmp_path / "run"))


def lines(run: Path) -> list[bytes]:
    return (run / SAMPLES).read_bytes().splitlines(keepends=True)


def test_a_whole_run_gives_no_warning(run: Path) -> None:
    assert load_run(run).warnings == ()


@pytest.mark.parametrize("name", [SAMPLES, "cases.jsonl", "telemetry.jsonl"])
def test_a_half_written_last_line_is_dropped_and_told(run: Path, name: str) -> None:
    before = load_run(run)
    with (run / name).open("ab") as file:
        file.write(b'{"case": "x", "laun')
    found = load_run(run)
    assert (found.records, found.cases, found.telemetry) == (before.records, before.cases, before.telemetry)
    assert found.warnings == (f"run/{name}: the last line was half written and is left out (19 bytes)",)


def test_a_last_line_cut_inside_with_its_end_intact_is_dropped_and_told(run: Path) -> None:
    """What a power cut can leave: the line's length is there, not its content."""
    with (run / SAMPLES).open("ab") as file:
        file.write(b'{"case": \0\0\0\0\0\n')
    assert len(load_run(run).warnings) == 1


def test_the_reader_of_a_report_is_told(run: Path) -> None:
    with (run / SAMPLES).open("ab") as file:
        file.write(b"{")
    told = answer.caveats(summarise(load_run(run)))
    assert told[0] == "Run/samples.jsonl: the last line was half written and is left out (1 bytes)."


@pytest.mark.parametrize("bad", [b"{\n", b"\n", b"[]\n", b'{"case": "x"}\n', b"\xff\xfe\n"])
def test_any_other_bad_line_is_refused_with_its_place(run: Path, bad: bytes) -> None:
    whole = lines(run)
    (run / SAMPLES).write_bytes(b"".join([*whole[:3], bad, *whole[3:]]))
    with pytest.raises(UserError, match=r"samples\.jsonl:4: not a Record: ") as error:
        load_run(run)
    assert "restore it or run again" in error.value.remedy


@pytest.mark.parametrize("blocks", [[1000, 0], [1000, -5]])
@pytest.mark.parametrize("last", [False, True])
def test_no_block_takes_zero_or_negative_time(run: Path, blocks: list[int], last: bool) -> None:
    """Not torn, but wrong: refused wherever it stands, the last line too."""
    whole = lines(run)
    at = len(whole) - 1 if last else next(i for i, line in enumerate(whole) if b"samples_ns" in line)
    record = {**json.loads(whole[at]), "samples_ns": blocks, "calls": 3}
    whole[at] = json.dumps(record).encode() + b"\n"
    (run / SAMPLES).write_bytes(b"".join(whole))
    with pytest.raises(UserError, match=rf"samples\.jsonl:{at + 1}: .*zero or negative time"):
        load_run(run)


def test_the_last_record_of_a_case_and_launch_counts(run: Path) -> None:
    whole = lines(run)
    again = {**json.loads(whole[0]), "wall_s": 123.0}
    with (run / SAMPLES).open("ab") as file:
        file.write(json.dumps(again).encode() + b"\n")
    found = [r for r in load_run(run).records if (r.case, r.launch) == (again["case"], again["launch"])]
    assert [r.wall_s for r in found] == [123.0]


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_left_as_it_was_found(on: bool) -> None:
    was_on = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled() is on
        with pytest.raises(ZeroDivisionError), collector_paused():
            1 / 0  # noqa: B018
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()
