"""The section on whole models: steps and prompts side by side, and what claims read of them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.analysis.claims import ClaimStatus, evaluate
from bitbench.analysis.summary import Summary, summarise
from bitbench.report.accuracy import accuracy
from bitbench.report.decoding import decode
from bitbench.report.tables import ABSENT, Cell, Section, Table
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, Record, Status

STEP_S = {"linear": 0.02, "ternary": 0.005}
READ_S = {"linear": 0.4, "ternary": 0.1}
CLAIMS = [
    {
        "id": "rate", "says": "decodes", "metric": "decode.tokens_per_second", "of": {"layer": "linear"},
        "where": {"layer": "ternary", "workload": "decode"}, "at_least": 2,
    },
    {
        "id": "prompt", "says": "reads", "metric": "decode.prefill_tokens_per_second",
        "where": {"layer": "ternary", "workload": "decode"}, "at_least": 1000,
    },
]  # fmt: skip


def made(run_maker: ModuleType, folder: Path, failed: str = "") -> RunData:
    """Five launches of two layers, decoding with either head and reading a prompt of 128 tokens; all
    cases whose label holds ``failed`` ran out of memory."""
    stored = load_run(run_maker.write_run(folder))
    points: list[dict[str, Any]] = [
        {"model": "m", "tokens": 8},  # a float head goes without saying
        {"model": "m", "head": "same", "tokens": 8},
        {"model": "m", "head": "same", "measure": "prefill", "prompt": 128},
    ]
    cases = [
        Case(
            id=f"{index}-{layer}", point=f"p{index}", workload="decode", entry=index, phase="timed",
            replicate="launches", launches=5, layer=layer, params=params, numerics=layer,
        )
        for index, params in enumerate(points)
        for layer in STEP_S
    ]  # fmt: skip
    records = []
    for case in cases:
        for launch in range(5):
            if failed and failed in case.label:
                records.append(
                    Record(case=case.id, launch=launch, status=Status.OOM, reason="MemoryError: too much")
                )
                continue
            seconds = (READ_S if "prompt" in case.params else STEP_S)[case.layer]
            blocks = [round(seconds * (1 + 0.001 * launch) * 1e9)] * 4
            records.append(Record(case=case.id, launch=launch, status=Status.OK, calls=1, samples_ns=blocks))
    suite = {**stored.info.suite, "claims": CLAIMS}
    return RunData(folder, stored.info.model_copy(update={"suite": suite}), cases, records)


@pytest.fixture
def summary(run_maker: ModuleType, tmp_path: Path) -> Summary:
    return summarise(made(run_maker, tmp_path))


def section(summary: Summary) -> Section:
    found = decode(summary, ())
    assert found is not None
    return found


def column(table: Table, title: str) -> list[Cell]:
    at = [column.title for column in table.columns].index(title)
    return [row[at] for row in table.rows]


def texts(table: Table, title: str) -> list[str]:
    return [cell.text for cell in column(table, title)]


def test_prompts_have_a_table_beside_the_steps(summary: Summary) -> None:
    steps, prompts = section(summary).tables
    assert (steps.id, prompts.id) == ("decode", "prefill")
    assert texts(steps, "Layer") == ["linear", "ternary"] * 2
    assert texts(steps, "Head is") == ["float", "float", "same", "same"]
    assert [cell.sort for cell in column(steps, "Tokens/s")] == pytest.approx([50, 200] * 2, rel=0.01)
    assert texts(prompts, "Layer") == ["linear", "ternary"]
    assert texts(prompts, "Prompt") == ["128", "128"]
    assert [cell.sort for cell in column(prompts, "Prompt tokens/s")] == pytest.approx([320, 1280], rel=0.01)
    assert column(prompts, "Speed-up")[1].sort == pytest.approx(4, rel=0.01)
    assert texts(prompts, "Speed-up")[0] == "1x"


def test_one_read_prompt_is_one_call(summary: Summary) -> None:
    case = summary.select("decode", "ternary")[-1]
    assert "decode.tokens_per_second" not in case.series
    rate, latency = case.value("decode.prefill_tokens_per_second"), case.value("time.latency")
    assert rate is not None
    assert latency is not None
    assert rate.value == pytest.approx(128 / latency.value)


def test_a_failed_prompt_says_why_in_its_own_table(run_maker: ModuleType, tmp_path: Path) -> None:
    steps, prompts = section(summarise(made(run_maker, tmp_path, "prefill"))).tables
    assert len(steps.rows) == 4
    assert [cell.notes for cell in column(prompts, "Prompt tokens/s")] == [("oom",), ("oom",)]
    assert texts(prompts, "Prompt tokens/s") == [ABSENT, ABSENT]


def test_without_prompts_there_is_no_empty_table(run_maker: ModuleType, tmp_path: Path) -> None:
    old = load_run(run_maker.write_run(tmp_path))
    found = section(summarise(old))
    assert [table.id for table in found.tables] == ["decode"]
    assert "Head is" not in [column.title for column in found.tables[0].columns]  # runs before it had a say
    quality = accuracy(summarise(old), ())
    assert quality is not None
    assert "Head is" not in [column.title for column in quality.tables[0].columns]


def test_no_model_no_section(run_maker: ModuleType, tmp_path: Path) -> None:
    run = load_run(run_maker.write_run(tmp_path))
    run.cases[:] = [case for case in run.cases if case.workload != "decode"]
    assert decode(summarise(run), ()) is None


@pytest.mark.parametrize(
    ("failed", "evidence"),
    [
        ("", {"rate": 2, "prompt": 1}),
        ("prefill", {"rate": 2, "prompt": 1}),
        ("tokens=8", {"rate": 2, "prompt": 1}),
    ],
)
def test_claims_on_steps_and_on_prompts_do_not_mix(
    run_maker: ModuleType, tmp_path: Path, failed: str, evidence: dict[str, int]
) -> None:
    results = {r.claim.id: r for r in evaluate(summarise(made(run_maker, tmp_path, failed)))}
    assert {name: len(r.evidence) for name, r in results.items()} == evidence
    lost = {"prefill": "prompt", "tokens=8": "rate"}.get(failed)
    for name, result in results.items():
        expected = ClaimStatus.NOT_EVALUATED if name == lost else ClaimStatus.PASS
        assert result.status is expected, (name, result)
