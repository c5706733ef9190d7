"""Convolutions for the sanitizer driver: one line a case, read by sanitize_conv.cpp."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

from kernel_library import BASE3, BF16, BINARY, F16, F32, INT8, INT16, SIGN, TERNARY, TWO_BIT

Triple = tuple[int, int, int]

CHANNELS_FIRST, CHANNELS_LAST, GAPS = 0, 1, 2


@dataclass(frozen=True)
class ConvCase:
    """One call. Sizes are depth, height, width; layouts are those of ``Pixels`` in sanitize_conv.cpp."""

    format: int
    components: int
    rows: int
    channels: int
    groups: int
    activation: int
    samples: int
    size: Triple
    kernel: Triple
    stride: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    before: Triple = (0, 0, 0)
    after: Triple = (0, 0, 0)
    padding_value: int = 0
    x_dtype: int = F32
    y_dtype: int = F32
    bias_dtype: int = -1
    x_layout: int = CHANNELS_FIRST
    y_layout: int = CHANNELS_FIRST

    @property
    def line(self) -> str:
        """The case as the sanitizer driver reads it."""
        words = ["conv"]
        for field in fields(self):
            value = getattr(self, field.name)
            words += [str(number) for number in (value if isinstance(value, tuple) else (value,))]
        return " ".join(words)


#: (rows, channels, groups, samples, size, kernel, stride, dilation, before, after): one of everything,
#: taps that end within a byte, groups that end within a block of rows, several tiles and chunks,
#: windows that see nothing but the border, enough work for several threads, an empty batch, depthwise
#: in several chunks, and with more taps than a sum of 16 bits holds.
SHAPES = [
    (1, 1, 1, 1, (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (3, 5, 1, 2, (1, 1, 9), (1, 1, 3), (1, 1, 2), (1, 1, 2), (0, 0, 1), (0, 0, 0)),
    (33, 64, 1, 1, (1, 12, 13), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (180, 16, 1, 1, (1, 17, 19), (1, 3, 2), (1, 2, 1), (1, 1, 2), (0, 0, 2), (0, 1, 0)),
    (14, 14, 7, 3, (1, 5, 6), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (46, 130, 2, 2, (3, 4, 5), (2, 3, 2), (1, 2, 1), (2, 1, 1), (1, 0, 1), (0, 2, 1)),
    (20, 8, 1, 1, (1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (0, 3, 4), (0, 5, 0)),
    (18, 24, 3, 1, (1, 1, 300), (1, 1, 5), (1, 1, 1), (1, 1, 1), (0, 0, 2), (0, 0, 2)),
    (7, 1050, 1, 1, (1, 2, 3), (1, 1, 2), (1, 1, 1), (1, 1, 1), (0, 0, 1), (0, 0, 0)),
    (96, 64, 1, 1, (1, 24, 23), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (5, 3, 1, 0, (1, 4, 4), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (170, 170, 170, 2, (1, 6, 7), (1, 3, 3), (1, 2, 1), (1, 1, 2), (0, 1, 2), (0, 2, 1)),
    (9, 9, 9, 1, (1, 1, 290), (1, 1, 260), (1, 1, 1), (1, 1, 1), (0, 0, 3), (0, 0, 5)),
]  # fmt: skip


def _cases() -> list[ConvCase]:
    """Every format x activation x shape, in two layouts; the rest of the fields rotates."""
    layouts = itertools.cycle(itertools.product((CHANNELS_FIRST, CHANNELS_LAST, GAPS), repeat=2))
    dtypes = itertools.cycle([(F32, F32), (BF16, BF16), (F32, F16), (F16, F32)])
    values = itertools.cycle([0, -1, 0, 1, 0])
    biases = itertools.cycle([-1, F32, F16])
    kinds = itertools.product((BINARY, TWO_BIT, BASE3), (SIGN, TERNARY, INT8, INT16))
    cases = []
    for (fmt, activation), shape in itertools.product(kinds, SHAPES):
        rows, channels, groups, *rest = shape
        for components in (1, 2):
            x_dtype, y_dtype = next(dtypes)
            cases.append(
                ConvCase(
                    fmt, components, rows, channels, groups, activation, *rest, next(values),
                    x_dtype, y_dtype, next(biases), *next(layouts),
                )
            )  # fmt: skip
    return cases


CONV_CASES = _cases()
