"""Speed of single convolutions, and of residual blocks: one table a batch, memory format, number of threads
and busy neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bitbench.analysis.aggregate import conditions
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.speed import CELL, beside, condition_tag, limits, speed_cell
from bitbench.report.tables import Column, Section, Table, name_cell, without_empty
from bitbench.suite.expand import counted

_SETTING = ("batch", "memory_format", "threads", "neighbours")
_SHAPE = ("shape", "kernel", "stride", "size")


def convolution(summary: Summary) -> Section | None:
    """Section ``convolution``; None where no convolution was timed."""
    return _section(
        summary,
        "conv2d",
        Section("convolution", "Speed of convolutions"),
        "Each column is one convolution: output x input channels, side of the kernel, side of the image, and "
        "the stride where it is not 1. Cells are those of single layers; "
        f"the ratios are to `{summary.baseline}`, here `nn.Conv2d`, with images in the same memory format.",
    )


def blocks(summary: Summary) -> Section | None:
    """Section ``blocks``; None where no residual block was timed."""
    return _section(
        summary,
        "block",
        Section("blocks", "Speed of residual blocks"),
        "Each column is one basic block of a residual network: output x input channels, side of the image, "
        "and the stride where it is not 1. Two convolutions of 3 x 3, a shortcut (1 x 1 where the block "
        "changes the shape of its input), activations and the sum; batch norms are folded into weights or "
        f"scales, those of `{summary.baseline}`, here `nn.Conv2d`, too. Cells are those of single layers.",
    )


def _section(summary: Summary, workload: str, section: Section, says: str) -> Section | None:
    """``section`` with the tables of a workload; None where none of it was timed."""
    cases = [case for case in summary.select(workload) if case.case.phase == "timed"]
    if not cases:
        return None
    tables = []
    for setting in _distinct(cases, _SETTING):
        here = [case for case in cases if _of(case, _SETTING) == setting]
        shapes = _distinct(here, _SHAPE)
        by_place = {(case.case.layer, _of(case, _SHAPE)): case for case in here}
        rows = [
            [name_cell(layer), *(speed_cell(summary, by_place.get((layer, shape))) for shape in shapes)]
            for layer in summary.layers
            if any((layer, shape) in by_place for shape in shapes)
        ]
        columns = [Column("Layer", numeric=False), *(Column(_title(shape), CELL) for shape in shapes)]
        batch, memory_format, threads, neighbours = setting
        name = f"{workload}-{batch}-{memory_format}{condition_tag(threads, neighbours)}"
        title = ", ".join(
            [
                counted(batch, "image"),
                str(memory_format).replace("_", " "),
                *conditions(threads, neighbours),
            ]
        )
        tables.append(without_empty(Table(name, title, columns, rows, filterable=True)))
    prose = [
        says,
        *(limits(summary, threads) for threads in dict.fromkeys(s[2] for s in _distinct(cases, _SETTING))),
        beside(s[3] for s in _distinct(cases, _SETTING)),
    ]
    return replace(section, prose=[text for text in prose if text], tables=tables)


def _of(case: CaseSummary, names: tuple[str, ...]) -> tuple[Any, ...]:
    values = (case.case.params.get(name) for name in names)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def _distinct(cases: list[CaseSummary], names: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """The values of ``names`` that occur, in plan order."""
    return list(dict.fromkeys(_of(case, names) for case in cases))


def _title(shape: tuple[Any, ...]) -> str:
    """``128x64, 3x3 on 56, stride 2``; of a block, which names no kernel, ``128x64 on 56, stride 2``."""
    (rows, columns), kernel, stride, size = shape
    step = f", stride {stride}" if stride != 1 else ""
    sides = "" if kernel is None else f", {kernel}x{kernel}"
    return f"{rows}x{columns}{sides} on {size}{step}"
