"""Cases that walk through every tail: where a kernel would read or write one element too many."""

from __future__ import annotations

import itertools
from dataclasses import replace

from conv_cases import CONV_CASES, ConvCase
from kernel_cases import BATCH_SHAPES, CASES, Case
from kernel_library import BF16, F16, F32

#: Every (format, activation) that the operators take.
LINEAR_KINDS = sorted({(case.format, case.activation) for case in CASES})
CONV_KINDS = sorted({(case.format, case.activation) for case in CONV_CASES})


def tails(counts: tuple[int, ...] = (1, 3, 7)) -> list[Case]:
    """Every length of the last step, word and octet, and every height of the last block of rows.

    counts: of tokens.
    """
    types = itertools.cycle([(F32, F32, -1), (BF16, F16, F16), (F16, BF16, F32), (F32, BF16, BF16)])
    shapes = [(9, cols, 0) for cols in range(1, 131)]
    shapes += [(21, cols, 40) for cols in range(41, 125, 3)]
    shapes += [(rows, 67, 0) for rows in range(1, 83)]
    cases = []
    for (fmt, activation), (rows, cols, group_size) in itertools.product(LINEAR_KINDS, shapes):
        x_dtype, y_dtype, bias_dtype = next(types)
        for tokens in counts:
            cases.append(
                Case(fmt, 1, rows, cols, group_size, activation, tokens, x_dtype, y_dtype, 0, 1, bias_dtype)
            )
    return cases


def batches() -> list[Case]:
    """Every count of tokens around which the panels change their ways."""
    counts = [*range(5, 36), 47, 48, 49, 63, 64, 65, 97]
    return [
        Case(fmt, *shape, activation, tokens, y_dtype=F16)
        for fmt, activation in LINEAR_KINDS
        for shape in BATCH_SHAPES
        for tokens in counts
    ]


def conv_tails() -> list[ConvCase]:
    """Every number of channels that ends within a byte or word, and windows of odd widths; depthwise too."""
    cases = []
    for fmt, activation in CONV_KINDS:
        for channels in (*range(1, 36), 63, 64, 65, 71, 127, 128, 129):
            full = ConvCase(
                fmt, 1, 19, channels, 1, activation, 1, (1, 3, 5), (1, 2, 3),
                before=(0, 1, 0), after=(0, 0, 1), x_layout=channels % 3, y_layout=channels % 2,
            )  # fmt: skip
            depthwise = replace(
                full, components=2, rows=channels, groups=channels, size=(1, 7, 6), kernel=(1, 3, 3),
                stride=(1, 1 + channels % 2, 1), before=(0, 1, 1), after=(0, 1, 1), y_dtype=F16,
            )  # fmt: skip
            cases += [full, depthwise]
    return cases
