from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bitbench.measure import environment


def test_everything_is_collected_as_plain_json() -> None:
    found = environment.collect()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == set(environment.COLLECTORS)
    assert found["cpu"]["usable_physical"] >= 1
    assert found["system"]["python"]


def test_one_failing_collector_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no")

    monkeypatch.setitem(environment.COLLECTORS, "cpu", broken)
    found = environment.collect()
    assert found["cpu"] == {"error": "OSError: no"}
    assert found["memory"]["total"] > 0


def test_no_secret_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-aws")
    monkeypatch.setenv("HF_TOKEN", "hunter2-hf")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    text = json.dumps(environment.collect())
    assert "hunter2" not in text
    assert environment.variables()["OMP_PROC_BIND"] == "close"


def test_git_state_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    package = tmp_path / "bitbench"
    package.mkdir()
    (package / "__init__.py").write_text("")
    # Not tracked: site-packages inside somebody else's repository looks like this.
    assert environment.git_state(tmp_path) == ("", False)
    git("add", ".")
    git("commit", "-qm", "one")
    assert environment.git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (package / "__init__.py").write_text("x = 1")
    assert environment.git_state(tmp_path) == (git("rev-parse", "HEAD"), True)


def test_digest_changes_with_any_source(tmp_path: Path) -> None:
    for package in ("bitbench", "impl"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("1")
    before = environment.source_digest(tmp_path)
    assert before == environment.source_digest(tmp_path)
    (tmp_path / "impl" / "a.py").write_text("2")
    changed = environment.source_digest(tmp_path)
    (tmp_path / "impl" / "a.py").rename(tmp_path / "impl" / "b.py")
    renamed = environment.source_digest(tmp_path)
    assert len({before, changed, renamed}) == 3
    # What only reads results changes none.
    (tmp_path / "bitbench" / "report").mkdir()
    (tmp_path / "bitbench" / "report" / "html.py").write_text("3")
    assert environment.source_digest(tmp_path) == renamed
