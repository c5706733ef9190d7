"""The memory ledger: where each byte of a layer goes, and what a format could give at best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitbench.analysis.statistics import Estimate
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import plain, shape_text
from bitbench.report.overview import format_bound
from bitbench.report.tables import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    absent,
    figure_cell,
    name_cell,
    without_empty,
)
from bitbench.suite.convolutions import BlockShape

TERNARY_ENTROPY_BOUND = 32 / math.log2(3)
"""No coding of equally likely trits can take more than 20.19 times less than fp32."""

_BYTES = [
    ("Codes", "memory.codes_bytes", "packed codes, or the float weight"),
    ("Scales", "memory.scales_bytes", "scales of the codes"),
    ("Bias", "memory.bias_bytes", "bias"),
    ("Buffers", "memory.buffers_bytes", "all other tensors, the packing header included"),
    ("Slack", "memory.slack_bytes", "live storage beyond what the tensors show"),
    ("Whole layer", "memory.layer_bytes", "live storage of the whole layer, slack included"),
    ("File", "memory.file_bytes", "the layer saved as a safetensors file"),
    ("Peak", "memory.peak_bytes", "rise of the process's high-water mark over a call"),
]
SHAPE = (
    "out_features x in_features; of a convolution the channels, and the sides of its kernel; of a residual "
    "block the channels"
)
_RATIOS = [
    ("Weight ratio", "memory.weight_ratio", "fp32 weight bytes / (codes + scales)"),
    ("to bf16", "memory.weight_ratio_bf16", "bf16 weight bytes / (codes + scales)"),
    ("Layer ratio", "memory.layer_ratio", "bytes of the fp32 layer of torch / whole-layer bytes"),
    ("File ratio", "memory.file_ratio", "file of the fp32 layer of torch / this layer's file"),
]


def memory(summary: Summary, figures: Sequence[Figure]) -> Section | None:
    """Section ``memory``; None where no bytes were counted."""
    cases = [
        case
        for workload in ("linear", "conv2d", "block")
        for case in summary.select(workload)
        if case.case.params.get("measure") == "memory"
    ]
    if not cases:
        return None
    columns = [Column("Layer", numeric=False), Column("Shape", SHAPE, numeric=False)]
    columns += [Column(title, text) for title, _, text in _BYTES]
    columns += [Column("Bits per weight", "8 x (codes + scales) / number of weights")]
    columns += [Column("Format allows", "32 / bits per weight of the format, before scales")]
    columns += [Column(title, text) for title, _, text in _RATIOS]
    shapes = list(dict.fromkeys(map(_shape, cases)))
    order = {layer: i for i, layer in enumerate(summary.layers)}
    cases.sort(key=lambda case: (-_size(case), shapes.index(_shape(case)), order[case.case.layer]))
    table = Table(
        "ledger",
        "Memory ledger",
        columns,
        [_row(case) for case in cases],
        "Bytes are counted from live storage and from the saved file; they are exact and carry no "
        f"interval. Whatever the coding, ternary weights cannot beat {plain(TERNARY_ENTROPY_BOUND, 4)}x "
        "against fp32 (entropy of a trit); five trits a byte give 20x before scales.",
        filterable=True,
    )
    prose = [above for case in cases if (above := _above_bound(case))]
    return Section("memory", "Memory", prose, [without_empty(table)], list(figures))


def _shape(case: CaseSummary) -> str:
    """``4096x4096``; of a convolution ``128x64, 3x3``; of a block ``128x64 block, stride 2``."""
    text, params = shape_text(case.case.params["shape"]), case.case.params
    if case.case.workload == "block":
        return f"{text} block" + (f", stride {params['stride']}" if params["stride"] != 1 else "")
    return text if "kernel" not in params else f"{text}, {params['kernel']}x{params['kernel']}"


def _size(case: CaseSummary) -> int:
    """Its weights."""
    params = case.case.params
    if case.case.workload == "block":
        block = BlockShape(shape=params["shape"], stride=params["stride"], size=1)
        return sum(conv.out_channels * conv.columns for conv in block.convolutions)
    rows, columns = params["shape"]
    return int(rows) * int(columns) * int(params.get("kernel", 1)) ** 2


def _row(case: CaseSummary) -> list[Cell]:
    first = [name_cell(case.case.layer), Cell(_shape(case), sort=float(_size(case)))]
    if not case.ok:
        return [*first, *(absent(case.status) for _ in range(len(_BYTES) + len(_RATIOS) + 2))]

    def cell(metric: str, unit: str) -> Cell:
        return figure_cell(case.value(metric), unit, case=case.case.id)

    bound = format_bound(case)
    return [
        *first,
        *(cell(metric, "B") for _, metric, _ in _BYTES),
        cell("memory.bits_per_weight", ""),
        absent() if bound is None else figure_cell(Estimate(bound, exact=True), "x", case=case.case.id),
        *(cell(metric, "x") for _, metric, _ in _RATIOS),
    ]


def _above_bound(case: CaseSummary) -> str:
    """A ratio beyond what the format can give means that bytes were not counted."""
    bound, ratio = format_bound(case), case.value("memory.weight_ratio")
    if bound is None or ratio is None or ratio.value <= bound * (1 + 1e-9):
        return ""
    return (
        f"Warning: {case.case.label} shows {plain(ratio.value, 4)}x, more than the {plain(bound, 4)}x its "
        "format allows: bytes are missing from its ledger."
    )
