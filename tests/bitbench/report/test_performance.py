from __future__ import annotations

import re
from pathlib import Path

import pytest

from bitbench.analysis.summary import Summary, summarise
from bitbench.cli import main
from bitbench.errors import UserError
from bitbench.report.performance import blocks, embed
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import CodeIdentity, Record, RunInfo, Status
from bitbench.suite.expand import expand
from bitbench.suite.load import load_suite

PAGE = """# Mine

<!-- performance: llm 2048x2048 -->
<!-- end of performance -->

text between

<!-- performance: other 2048x2048 threads=2 -->
left alone
<!-- end of performance -->
"""


@pytest.fixture(scope="module")
def summary(stored_run: Path) -> Summary:
    return summarise(load_run(stored_run))


def test_a_block_names_a_suite_a_shape_and_threads() -> None:
    first, second = blocks(PAGE)
    assert (first.suite, first.shape, first.threads, first.run) == ("llm", [2048, 2048], None, "")
    assert (second.suite, second.threads, second.body) == ("other", 2, "left alone\n")


def test_the_blocks_of_the_suite_are_filled_and_nothing_else_is_touched(summary: Summary) -> None:
    page = embed(PAGE, summary, "results/that-run")
    assert page.startswith("# Mine\n\n<!-- performance: llm 2048x2048 -->\n")
    assert page.endswith("\ntext between" + PAGE.partition("\ntext between")[2])
    (block, _) = blocks(page)
    assert block.run == "results/that-run"
    lines = [line for line in block.body.splitlines() if "|" in line]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows[0] == ["layer", "M=1 hot", "M=1 cold", "M=16 hot", "M=16 cold", "M=512 hot"]
    by_layer = {row[0].strip("`"): row[1:] for row in rows[2:]}
    assert list(by_layer) == list(summary.layers)
    case = summary.one("linear", "ternary", shape=[2048, 2048], tokens=512, cache="hot")
    assert case is not None
    share = case.value("roofline.share")
    assert re.fullmatch(r"[\d.]+ (µs|ms)" + (r", \d+ %" if share else ""), by_layer["ternary"][4])
    assert by_layer["binary"][1] == "invalid", "what failed has its row, and says so"


def test_filling_twice_is_filling_once(summary: Summary) -> None:
    once = embed(PAGE, summary, "results/that-run")
    assert embed(once, summary, "results/that-run") == once


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("no block at all", "no block of suite 'llm'"),
        (PAGE.replace("2048x2048 -->", "2048x2049 -->"), "no layer of 2048x2049"),
        (PAGE.replace("2048x2048 -->", "2048x2048 threads=1 -->"), "2048x2048 with threads=1"),
    ],
)
def test_a_page_that_asks_for_what_is_not_there_is_told(page: str, told: str, summary: Summary) -> None:
    with pytest.raises(UserError, match=told):
        embed(page, summary, "results/that-run")


def test_the_command_fills_a_file(
    stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE)
    assert main(["report", str(stored_run), "--reports", str(tmp_path / "reports"), "--into", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    assert blocks(page.read_text())[0].run == f"{stored_run.parent.name}/{stored_run.name}"
    missing = tmp_path / "gone.md"
    assert main(["report", str(stored_run), "--reports", str(tmp_path), "--into", str(missing)]) == 2


@pytest.mark.parametrize(("name", "threads"), [("kernels", None), ("kernels", 1), ("peers", None)])
def test_runs_of_the_suites_that_are_about_speed_fill_a_page(name: str, threads: int | None) -> None:
    """At the shape that people quote: every layer timed there has a row, every point a column."""
    plan = expand(load_suite(Path(__file__).parents[3] / "suites" / f"{name}.yaml"))
    info = RunInfo(
        run="r",
        created="2026-01-02T03:04:05Z",
        suite_path="",
        suite=plan.suite.resolved(),
        threads=2,
        environment={},
        code=CodeIdentity(bitbench="0", impl="0"),
    )
    timed = [case for case in plan.cases if case.workload == "linear" and case.phase == "timed"]
    records = [
        Record(case=case.id, launch=0, status=Status.OK, calls=10, samples_ns=[10_000_000] * 4)
        for case in timed
    ]
    head = f"{name} 4096x4096" + ("" if threads is None else f" threads={threads}")
    page = f"<!-- performance: {head} -->\n<!-- end of performance -->\n"
    [block] = blocks(embed(page, summarise(RunData(Path("r"), info, plan.cases, records)), "results/r"))
    lines = [line for line in block.body.splitlines() if line.startswith("|")]
    here = [
        case
        for case in timed
        if case.params["shape"] == [4096, 4096]
        and case.params.get("threads") == threads
        and "neighbours" not in case.params
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0].strip("`") for row in rows] == list(dict.fromkeys(case.layer for case in here))
    assert len(rows[0]) == 1 + len({case.point for case in here})
    assert rows[0][1] == "1.00 ms"
    assert ("threads=1" in block.body) is (threads == 1)
