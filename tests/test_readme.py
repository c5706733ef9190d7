"""README.md shows no number that a stored run does not hold, and no command that does not exist."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command

import impl
from bitbench.analysis.summary import summarise
from bitbench.cli import create_app
from bitbench.report.console import layer_table
from bitbench.report.performance import blocks, embed
from bitbench.store.reader import load_run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_stored_run() -> None:
    run, *_ = re.findall(r"stored run `(results/[^`]+)`", README)
    shown = io.StringIO()
    Console(file=shown, width=100).print(layer_table(summarise(load_run(ROOT / run))))
    table = "\n".join(line.rstrip() for line in shown.getvalue().rstrip().splitlines())
    assert f"```text\n{table}\n```" in README


def test_the_performance_tables_are_those_of_stored_runs() -> None:
    runs = {block.suite: block.run for block in blocks(README)}
    assert set(runs) == {"kernels", "peers"}
    for run in runs.values():
        assert (ROOT / run).is_dir(), f"{run!r} is not a published run"
        assert embed(README, summarise(load_run(ROOT / run)), run) == README


def test_the_error_rates_are_those_of_the_stored_launches() -> None:
    (page,) = set(re.findall(r"\]\((results/[^)]+/rates\.md)\)", README))
    (told,) = [line for line in (ROOT / page).read_text().splitlines() if "stored launches resampled" in line]
    assert told.rstrip(".") in " ".join(README.split())


def test_the_live_gates_are_those_stored() -> None:
    (page,) = set(re.findall(r"\]\((results/[^)]+/rates\.md)\)", README))
    red: dict[str, list[bool]] = {}
    for file in sorted((ROOT / page).parent.glob("live/gate-*.json")):
        slowdown = file.stem.split("-")[1]
        red.setdefault(slowdown, []).append(json.loads(file.read_text())["outcome"] == "failed")
    told = {slowdown: f"{sum(found)} of {len(found)}" for slowdown, found in red.items()}
    words = " ".join(README.split())
    assert (
        f"{told['0']} turned red as it is, {told['5']} with 5 % more work put in, {told['10']} with 10 %"
        in words
    )


EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(example.splitlines()) <= 12, "an example is read at a glance"
    exec(compile(example, "README.md", "exec"), {})


def test_the_table_of_layers_names_what_there_is() -> None:
    """Every layer of impl but the bases has a row, and nothing else has."""
    table = README[README.index("| layer | weights |") :].split("\n\n")[0]
    named = set()
    for row in table.splitlines()[2:]:
        for name in re.findall(r"`(\w[\w/]*)`", row.split("|")[1]):
            base, *dims = re.split(r"(?<=Conv)(?=1d)|/", name)
            named |= {base + dim for dim in dims} if dims else {base}
            if "Bag" in row:
                named.add(f"{name}Bag")
    named.discard("Bag")
    named.discard("BagBag")
    there = {name for name in impl.layers.__all__ if isinstance(getattr(impl.layers, name), type)}
    bases = {name for name in there if name.startswith("Quantized") or name.endswith("Conv")}
    assert named == there - bases - {"LearnableBias"}


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"`bitbench ([a-z]+)", README))
    known = set(get_command(create_app()).commands)  # type: ignore[attr-defined]
    assert named
    assert named <= known


def test_every_option_named_exists() -> None:
    """Those in a command line, and those in the row of the table of commands that is about a command."""
    known = get_command(create_app()).commands  # type: ignore[attr-defined]
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in known.items()
    }
    checked = set()
    for line in README.splitlines():
        calls = re.findall(r"(?:`|&& |^ {4})bitbench ([a-z]+)([^`|&]*)", line)
        for command, words in calls:
            named = set(re.findall(r"(?<=\s)--[a-z-]+", words))
            if line.startswith("|"):
                named |= set(re.findall(r"`(--[a-z-]+)", line))
            assert named <= options[command], line
            checked |= named
    assert checked >= {"--quick", "--budget", "--rerun", "--base", "--inject", "--why", "--benchmark-json"}
