"""Threads, instruction sets, convolutions and residual blocks in reports."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.analysis.aggregate import Point, headline_points, linear_points, totals
from bitbench.analysis.limits import _products, binding_limit, peaks
from bitbench.analysis.summary import CaseSummary, Summary, summarise
from bitbench.report.context import context_of
from bitbench.report.convolution import blocks, convolution
from bitbench.report.html import render as html
from bitbench.report.markdown import render as markdown
from bitbench.report.memory import memory
from bitbench.report.speed import speed
from bitbench.report.tables import Table
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, CodeIdentity, Record, RunInfo, Status
from bitbench.suite.expand import expand
from bitbench.suite.schema import Suite

LAYERS: dict[str, Any] = {
    "linear": {"kind": "linear"},
    "ternary": {"kind": "ternary"},
    "ternary-avx2": {"kind": "ternary", "isa": "avx2"},
}
WORKLOADS: list[dict[str, Any]] = [
    {
        "kind": "linear",
        "shapes": [[64, 64], [128, 64]],
        "tokens": [1, 512],
        "cache": ["hot", "cold"],
        "memory": False,
        "include": [{"threads": 1}, {"threads": 1, "neighbours": "all", "tokens": [1], "cache": ["hot"]}],
    },
    {
        "kind": "conv2d",
        "shapes": "resnet-18",
        "batch": [1, 8],
        "memory": False,
        "include": [
            {"threads": 1, "batch": [1], "memory_format": ["channels_last"]},
            {"neighbours": 2, "batch": [1], "memory_format": ["channels_last"]},
        ],
    },
    {"kind": "block", "shapes": "resnet-18", "batch": [1, 8], "memory": False},
]
ISAS = {"avx512": {"int8": 4e11, "bit": 3e12}, "avx2": {"int8": 2e11}}
LIMITS = {"read_bytes_per_s": 5e10, "fp32_per_s": 1e11, "int8_per_s": 4e11, "isas": ISAS, "threads": 2}
SECONDS = {"linear": 4e-4, "ternary": 1e-4, "ternary-avx2": 2e-4}


def seconds(case: Case) -> float:
    """Of a call: twice as many with one thread, five times as many beside neighbours."""
    alone = SECONDS[case.layer] * (2 if "threads" in case.params else 1)
    return alone * (5 if "neighbours" in case.params else 1)


@pytest.fixture(scope="module")
def summary() -> Summary:
    suite = Suite.model_validate(
        {"schema": 1, "name": "kernels", "baseline": "linear", "launches": 3, "layers": LAYERS}
        | {"workloads": WORKLOADS}
    )
    plan = expand(suite)
    info = RunInfo(
        run="r",
        created="2026-01-02T03:04:05Z",
        suite_path="",
        suite=suite.resolved(),
        threads=2,
        environment={"peaks": LIMITS, "peaks_at": {"1": {**LIMITS, "read_bytes_per_s": 3e10, "threads": 1}}},
        code=CodeIdentity(bitbench="0", impl="0"),
    )
    records = [
        Record(
            case=case.id,
            launch=launch,
            status=Status.OK,
            calls=10,
            samples_ns=[round(1e10 * seconds(case)) + launch] * 4,
            metrics={"roofline.share": 0.5},
        )
        for case in plan.cases
        for launch in range(3)
    ]
    return summarise(RunData(Path("r"), info, plan.cases, records, []))


def only(summary: Summary, workload: str, layer: str, **params: Any) -> CaseSummary:
    found = summary.one(workload, layer, **params)
    assert found is not None
    return found


def headings(table: Table) -> list[str]:
    return [column.title for column in table.columns]


def test_points_with_threads_of_their_own_stand_apart(summary: Summary) -> None:
    runs_own = [Point(1, "hot"), Point(1, "cold"), Point(512, "hot"), Point(512, "cold")]
    assert headline_points(summary) == runs_own
    assert linear_points(summary) == [
        *runs_own,
        *(point._replace(threads=1) for point in runs_own),
        Point(1, "hot", 1, "all"),
    ]
    assert Point(1, "hot", 1).title == "M=1 hot, 1 thread"
    assert Point(1, "hot", 1, "all").title == "M=1 hot, 1 thread, all cores busy"
    assert Point(1, "hot", None, 1).title == "M=1 hot, 1 busy neighbour"
    # Two shapes added up: of the run's threads alone, and of one thread alone.
    for point, wanted in (
        (Point(1, "hot"), 2e-4),
        (Point(1, "hot", 1), 4e-4),
        (Point(1, "hot", 1, "all"), 2e-3),
    ):
        assert totals(summary, point)["ternary"].latency.estimate().value == pytest.approx(wanted, rel=1e-3)


def test_speed_has_a_table_for_each_shape_and_number_of_threads(summary: Summary) -> None:
    section = speed(summary, ())
    assert section is not None
    assert [table.id for table in section.tables] == [
        *("speed-64x64", "speed-128x64", "speed-64x64-t1", "speed-128x64-t1"),
        *("speed-64x64-t1-nall", "speed-128x64-t1-nall"),
    ]
    assert section.tables[4].title == "64x64 (out x in), 1 thread, all cores busy"
    assert headings(section.tables[2])[1] == "M=1 hot, 1 thread"
    told = " ".join(section.prose)
    assert "reading memory 50.0 GB/s" in told
    assert "with 1 thread: reading memory 30.0 GB/s" in told
    assert "by avx2 alone: int8 200" in told
    assert "as other programs would" in told
    assert "by avx512 alone" not in told, "no layer is held to it"


def test_the_limit_that_binds_is_that_of_the_threads_and_instructions(summary: Summary) -> None:
    assert peaks(summary) == peaks(summary, 2)
    one = peaks(summary, 1)
    assert one is not None
    assert one.read_bytes_per_s == 3e10
    assert peaks(summary, 4) is None
    shape = {"shape": [64, 64], "cache": "cold"}
    assert binding_limit(summary, only(summary, "linear", "ternary", tokens=1, **shape)) == "memory"
    assert binding_limit(summary, only(summary, "linear", "ternary", tokens=512, **shape)) == "compute"
    assert binding_limit(summary, only(summary, "conv2d", "ternary-avx2", batch=8, kernel=3)) == "compute"


def test_convolutions_have_a_table_for_each_setting(summary: Summary) -> None:
    section = convolution(summary)
    assert section is not None
    assert [table.title for table in section.tables] == [
        "1 image, contiguous",
        "8 images, contiguous",
        "1 image, channels last, 1 thread",
        "1 image, channels last, 2 busy neighbours",
    ]
    table = section.tables[0]
    assert headings(table)[:3] == ["Layer", "64x64, 3x3 on 56", "128x64, 3x3 on 56, stride 2"]
    assert len(table.columns) == 11
    assert [row[0].text for row in table.rows] == list(LAYERS)
    assert table.rows[1][1].text == "100.0 µs"
    assert any("50 % of compute limit" in note for note in table.rows[1][1].notes)


def test_blocks_have_tables_of_their_own(summary: Summary) -> None:
    section = blocks(summary)
    assert section is not None
    assert (section.id, section.title) == ("blocks", "Speed of residual blocks")
    assert [(table.id, table.title) for table in section.tables] == [
        ("block-1-contiguous", "1 image, contiguous"),
        ("block-8-contiguous", "8 images, contiguous"),
    ]
    table = section.tables[0]
    assert headings(table)[:3] == ["Layer", "64x64 on 56", "128x64 on 56, stride 2"]
    assert len(table.columns) == 8
    cell = table.rows[1][1]
    assert cell.text == "100.0 µs"
    assert any(" faster" in note for note in cell.notes)
    assert "batch norms are folded" in section.prose[0]


def test_the_limit_of_a_block_is_that_of_its_convolutions_together(summary: Summary) -> None:
    case = only(summary, "block", "ternary", batch=8, stride=2, size=56)
    assert binding_limit(summary, case) == "compute"
    found = _products("block", case.case.params)
    assert found == [(128, 576, 28 * 28 * 8), (128, 1152, 28 * 28 * 8), (128, 64, 28 * 28 * 8)]
    assert _products("decode", {}) == []


def test_reports_hold_them(summary: Summary) -> None:
    context = context_of(summary)
    for text in (markdown(context), html(context)):
        assert "Speed of convolutions" in text
        assert "Speed of residual blocks" in text
        assert "128x64 on 56, stride 2" in text
        assert "M=1 hot, 1 thread" in text


def test_bytes_of_convolutions_are_in_the_ledger(run_maker: ModuleType, tmp_path: Path) -> None:
    stored = load_run(run_maker.write_run(tmp_path))
    params = {"shape": [2048, 2048], "kernel": 3, "measure": "memory"}
    weighed = [
        case.model_copy(update={"id": f"conv-{case.id}", "workload": "conv2d", "params": params})
        for case in stored.cases
        if case.params == {"shape": [2048, 2048], "measure": "memory"}
    ]
    stored.records.extend(
        record.model_copy(update={"case": f"conv-{record.case}"})
        for record in stored.records
        if f"conv-{record.case}" in {case.id for case in weighed}
    )
    linear = memory(summarise(stored), ())
    stored.cases.extend(weighed)
    both = memory(summarise(stored), ())
    assert linear is not None
    assert both is not None
    shown = [row for row in both.tables[0].rows if row[1].text == "2048x2048, 3x3"]
    assert [row[0].text for row in shown] == list(dict.fromkeys(case.layer for case in weighed))
    at = [column.title for column in both.tables[0].columns].index("Whole layer")
    assert all(re.fullmatch(r"[\d.]+ [KM]iB", row[at].text) for row in shown)
    # Nine times the weights of a 2048 x 2048 layer: before 8192 x 2048, and nothing else has moved.
    assert both.tables[0].rows[0] == shown[0]
    assert [row for row in both.tables[0].rows if row not in shown] == linear.tables[0].rows


def test_bytes_of_blocks_are_in_the_ledger(run_maker: ModuleType, tmp_path: Path) -> None:
    stored = load_run(run_maker.write_run(tmp_path))
    wanted = {"shape": [2048, 2048], "measure": "memory"}
    old = [case for case in stored.cases if case.params == wanted]
    for stride in (1, 2):
        for case in old:
            params = {**wanted, "stride": stride}
            update = {"id": f"{stride}-{case.id}", "workload": "block", "params": params}
            stored.cases.append(case.model_copy(update=update))
        ids = {case.id for case in old}
        stored.records.extend(
            record.model_copy(update={"case": f"{stride}-{record.case}"})
            for record in list(stored.records)
            if record.case in ids
        )
    section = memory(summarise(stored), ())
    assert section is not None
    shapes = list(dict.fromkeys(row[1].text for row in section.tables[0].rows))
    # By size: the one with a shortcut of its own has more weights.
    assert shapes[:2] == ["2048x2048 block, stride 2", "2048x2048 block"]


def test_runs_without_convolutions_have_no_such_section(stored_run: Path) -> None:
    assert convolution(summarise(load_run(stored_run))) is None
    assert blocks(summarise(load_run(stored_run))) is None
