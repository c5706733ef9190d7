from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from bitbench.analysis.claims import evaluate
from bitbench.analysis.summary import summarise
from bitbench.report.console import show, show_claims
from bitbench.store.reader import load_run


def printed(run: Path, report: Path | None = None, width: int = 100) -> str:
    out = io.StringIO()
    show(run, Console(file=out, width=width, force_terminal=False), report)
    return out.getvalue()


def test_the_summary_fits_100_columns_and_loses_nothing(stored_run: Path) -> None:
    text = printed(stored_run)
    assert max(len(line) for line in text.splitlines() if not line.startswith(("samples", "report"))) <= 100
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("ternary "))
    assert "1.609" in row
    assert "19.88x" in row
    assert row.count("x +") == 5
    assert "n/a" in next(line for line in text.splitlines() if line.startswith("k3-g64"))


def test_claims_and_places_are_named(stored_run: Path, tmp_path: Path) -> None:
    text = printed(stored_run, tmp_path)
    for part in ("twenty-fold (gating)", "pass", "fail", "inconclusive", "not evaluated", "at least 19.5x"):
        assert part in text
    assert str(tmp_path / "index.html") in text
    assert str(stored_run) in text
    assert "9 of 135 cases have no result" in text


def test_a_quick_run_shows_no_marks(run_maker: ModuleType, tmp_path: Path) -> None:
    text = printed(run_maker.write_run(tmp_path, quick=True))
    assert "x +" not in text
    assert "Quick run" in text


def test_a_quick_run_groups_the_claims_it_leaves_open(run_maker: ModuleType, tmp_path: Path) -> None:
    path = run_maker.write_run(tmp_path, quick=True)
    text = " ".join(printed(path).split())
    assert text.count("not evaluated") == 1
    assert "4 left open by a quick run: fast-when-cold, near-lossless, wide-interval, never-measured" in text
    assert "pass twenty-fold (gating): 19.88x" in text
    out = io.StringIO()
    show_claims(evaluate(summarise(load_run(path))), Console(file=out, width=100))
    assert out.getvalue().count("not evaluated") == 4, "the command `claims` lists each"


def test_a_suite_without_claims_says_so(run_maker: ModuleType, tmp_path: Path) -> None:
    assert "makes no claims" in printed(run_maker.write_run(tmp_path, claims=[]))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_off_whatever_the_width(stored_run: Path, width: int) -> None:
    shown = io.StringIO()
    show(stored_run, Console(file=shown, width=width))
    table = shown.getvalue().partition("Claims")[0].partition("note")[0]
    assert "…" not in table
    assert table.count("\nlinear ") == (1 if width == 200 else 2)
