"""A package of its own brings a layer, a workload and a reporter: all the way from entry points to
a measured run and its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bitbench.cli import main
from bitbench.errors import Exit
from bitbench.layers import registry as layers
from bitbench.store.reader import load_run
from bitbench.store.schema import Status
from bitbench.suite.expand import expand
from bitbench.suite.load import load_suite
from bitbench.workloads import registry as workloads

SUITE = """
schema: 1
name: peer
baseline: linear
launches: 1
threads: 1
layers:
  linear:   {kind: linear}
  low-rank: {kind: low_rank, rank: 8}
workloads:
  - {kind: linear, shapes: [[64, 32]]}
  - {kind: chain, widths: [32], depths: [3]}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "peer.yaml"
    path.write_text(SUITE)
    return path


def test_a_suite_that_names_them_is_measured_and_reported(
    peer: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = tmp_path / "reports"
    code = main(["run", str(suite), "--results", str(tmp_path / "results"), "--reports", str(reports)])
    assert code == Exit.OK, capsys.readouterr()
    (path,) = (tmp_path / "results").iterdir()
    run = load_run(path)
    assert {record.status for record in run.records} == {Status.OK}
    of = {(case.workload, case.layer, case.phase) for case in run.cases}
    assert {("chain", "low-rank", "timed"), ("linear", "low-rank", "once")} <= of
    ledger = next(case for case in run.cases if case.phase == "once" and case.layer == "low-rank")
    record = next(record for record in run.records if record.case == ledger.id)
    assert record.metrics["memory.weight_bytes"] == 4 * 8 * (64 + 32), "what the cost model says"

    assert main(["report", str(path), "--reports", str(reports), "--reporter", "tsv"]) == Exit.OK
    lines = (reports / path.name / "speedups.tsv").read_text().splitlines()
    assert lines[0].startswith("case\tspeedup")
    assert any(line.startswith("chain/width=32/depth=3/low-rank\t") for line in lines)
    assert str(reports / path.name / "speedups.tsv") in capsys.readouterr().out


def test_suites_are_planned_without_torch(peer: Path, suite: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from bitbench.cli import main; "
        f"raise SystemExit(main(['plan', {str(suite)!r}]) or main(['plugins']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "chain/width=32/depth=3" in done.stdout
    assert "example_peer.layer:LowRank" in done.stdout


def test_its_fields_are_checked_like_our_own(peer: Path, suite: Path) -> None:
    assert main(["validate", str(suite)]) == Exit.OK
    suite.write_text(SUITE.replace("rank: 8", "rang: 8"))
    assert main(["validate", str(suite)]) == Exit.USAGE


def test_its_points_are_the_product_of_its_lists(peer: Path, suite: Path) -> None:
    suite.write_text(SUITE.replace("depths: [3]", "depths: [1, 3], exclude: [{depth: 3}]"))
    plan = expand(load_suite(suite))
    depths = [case.params["depth"] for case in plan.cases if case.workload == "chain"]
    assert depths == [1, 1]


def test_conversion_of_full_rank_changes_nothing(peer: Path) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 16)
    kind = layers.get("low_rank")
    converted = kind.convert(kind.spec(kind="low_rank", rank=99), linear)  # type: ignore[call-arg]
    x = torch.randn(5, 24)
    torch.testing.assert_close(converted(x), linear(x), rtol=1e-4, atol=1e-5)
    exact = kind.reference(None, converted, x, slice(2, 9))
    torch.testing.assert_close(converted(x)[:, 2:9].double(), exact, rtol=1e-4, atol=1e-5)


def test_all_are_listed_with_their_package(peer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--json"]) == Exit.OK
    found = json.loads(capsys.readouterr().out)["plugins"]
    ours = {plugin["name"]: plugin for plugin in found if not plugin["builtin"]}
    assert {name: plugin["group"] for name, plugin in ours.items()} == {
        "low_rank": "bitbench.layers",
        "chain": "bitbench.workloads",
        "tsv": "bitbench.reporters",
    }
    assert {(plugin["package"], plugin["version"]) for plugin in ours.values()} == {("example-peer", "0.1.0")}
    assert [plugin["fault"] for plugin in found] == [""] * len(found)
    assert workloads.get("chain").name == "chain"
