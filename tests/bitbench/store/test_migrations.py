"""Runs of every older schema version, as they were written, are read with nothing lost."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from bitbench import report
from bitbench.analysis.summary import summarise
from bitbench.errors import UserError
from bitbench.store import writer
from bitbench.store.reader import MIGRATIONS, load_run
from bitbench.store.schema import SCHEMA_VERSION, Case, Record, Status, TelemetrySample
from bitbench.store.writer import RunWriter
from bitbench.suite.expand import expand
from bitbench.suite.schema import Suite

FIXTURES = Path(__file__).parent / "fixtures"
OLD = [FIXTURES / f"v{version}" for version in range(1, SCHEMA_VERSION)]
RUNS = [run for version in OLD for run in sorted(version.iterdir())]
MODELS: dict[str, Any] = {
    writer.CASES_FILE: Case,
    writer.SAMPLES_FILE: Record,
    writer.TELEMETRY_FILE: TelemetrySample,
}


def test_every_older_version_has_a_migration_and_a_run_to_prove_it() -> None:
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))
    assert all(any(version.iterdir()) for version in OLD)
    for run in RUNS:
        head = json.loads((run / writer.RUN_FILE).read_text())
        assert f"v{head['schema_version']}" == run.parent.name


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_nothing_that_was_written_is_lost(run: Path) -> None:
    stored = load_run(run)
    assert stored.info.schema_version == SCHEMA_VERSION
    assert stored.info.purpose == "run"
    assert stored.missing() == set()
    assert len(stored.records) == sum(case.launches for case in stored.cases)
    assert {record.side for record in stored.records} == {""}
    for name, model in MODELS.items():
        found = lines(run / name)
        assert found
        for line in found:
            read = model.model_validate(line).model_dump(mode="json")
            assert {key: read[key] for key in line} == line
    head = json.loads((run / writer.RUN_FILE).read_text())
    now = stored.info.model_dump(mode="json")
    assert {key: now[key] for key in head if key not in ("schema_version", "code")} == {
        key: value for key, value in head.items() if key not in ("schema_version", "code")
    }
    assert {key: now["code"][key] for key in head["code"]} == head["code"]


def test_figures_of_an_old_run_are_what_they_were() -> None:
    """By hand from the file: the median block of each launch, and the mean of the logarithms."""
    run = FIXTURES / "v1" / "llm"
    summary = summarise(load_run(run))
    found = summary.one("linear", "ternary", tokens=1, cache="cold")
    base = summary.one("linear", "linear", tokens=1, cache="cold")
    assert found is not None
    assert base is not None
    logs: dict[str, list[float]] = {found.case.id: [], base.case.id: []}
    for line in lines(run / writer.SAMPLES_FILE):
        if line["case"] in logs:
            blocks = sorted(line["samples_ns"])
            middle = (blocks[(len(blocks) - 1) // 2] + blocks[len(blocks) // 2]) / 2
            logs[line["case"]].append(math.log(middle / line["calls"] / 1e9))
    ratios = [b - a for a, b in zip(logs[found.case.id], logs[base.case.id], strict=True)]
    speedup = found.value("time.speedup")
    assert speedup is not None
    assert len(ratios) == 5
    assert speedup.value == pytest.approx(math.exp(sum(ratios) / 5))
    memory = summary.one("linear", "ternary", measure="memory")
    assert memory is not None
    ratio = memory.value("memory.weight_ratio")
    assert ratio is not None
    assert 19.5 < ratio.value <= 20


def test_an_old_run_can_be_reported(tmp_path: Path) -> None:
    folder = report.write(FIXTURES / "v1" / "llm", tmp_path)
    page = (folder / "index.html").read_text()
    assert "ternary" in page
    assert "smollm2-135m" in page


def test_cases_keep_their_ids() -> None:
    """An id is a hash of what fixes the number: a new field of the suite must not change it."""
    stored = load_run(FIXTURES / "v1" / "llm")
    now = {case.id for case in expand(Suite.model_validate(stored.info.suite)).cases}
    single = [case for case in stored.cases if case.workload == "linear"]
    assert len(single) == 12
    assert {case.id for case in single} <= now


def test_an_old_run_takes_new_records(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / "v1" / "llm", run)
    case = load_run(run).cases[0]
    with RunWriter.reopen(run) as again:
        again.records(
            [Record(case=case.id, launch=0, status=Status.OOM, reason="new", dispatch={"isa": "x"})]
        )
    after = load_run(run)
    assert after.records[-1].status is Status.OOM
    assert after.records[-1].dispatch == {"isa": "x"}
    assert after.missing() == set()


@pytest.mark.parametrize("name", [writer.CASES_FILE, writer.SAMPLES_FILE])
def test_a_field_that_no_version_knows_is_refused(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(FIXTURES / "v1" / "llm", run)
    found = lines(run / name)
    found[0]["invented"] = 1
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in found))
    with pytest.raises(UserError, match=rf"{name}:1: .*invented"):
        load_run(run)
