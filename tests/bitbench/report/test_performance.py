from __future__ import annotations

import re
from pathlib import Path

import pytest

from bitbench.analysis.summary import Summary, summarise
from bitbench.cli import main
from bitbench.errors import UserError
from bitbench.report.performance import blocks, embed
from bitbench.store.reader import load_run

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
