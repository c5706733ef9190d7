"""Random packed weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from impl.packing import PackedWeight, layout

Drawn = tuple[Tensor, PackedWeight]


def ternary(
    format: str,
    components: int,
    rows: int,
    cols: int,
    group_size: int | None = None,
    *,
    per_row: bool = True,
    half: bool = False,
    seed: int = 0,
) -> Drawn:
    """int8 codes, and the weight they pack into, on the CPU and by torch alone."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    groups = 1 if group_size is None else -(-cols // group_size)
    scales = torch.rand(components, rows if per_row else 1, groups, generator=generator) + 0.01
    scales = scales.half() if half else scales
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CODECS", {})
        return codes, PackedWeight.from_codes(codes, scales, format, group_size)


WEIGHTS = st.builds(
    ternary,
    st.sampled_from(["two_bit", "base3"]),
    st.integers(1, 3),
    st.integers(1, 50),
    st.integers(1, 150),
    st.sampled_from([None, 8, 24, 64]),
    per_row=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 1 << 20),
)
