from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitbench.cli import main


def test_report_renders_again(stored_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(stored_run), "--reports", str(tmp_path)]) == 0
    out = capsys.readouterr().out.split()
    assert out == [
        str(tmp_path / stored_run.name / name) for name in ("index.html", "report.md", "cases.csv")
    ]
    assert all(Path(name).stat().st_size > 1000 for name in out)


def test_report_of_no_run_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "gone"), "--reports", str(tmp_path / "out")]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "impl"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from bitbench.cli import main
run, reports = sys.argv[1:]
codes = main(["report", run, "--reports", reports]), main(["claims", run])
sys.exit(codes != (0, 0))
"""


def test_report_and_claims_work_without_torch(stored_run: Path, tmp_path: Path) -> None:
    """A machine that only reads results needs neither torch nor the layer library."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(stored_run), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / stored_run.name / "index.html").is_file()
