"""Decoding some rows of packed weights gives what decoding all of them gives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitbench.layers.reference import decode_rows
from impl.packing import PackedWeight, pack


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rows_of_a_packed_weight(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["binary", "two_bit", "base3"]))
    components = data.draw(st.integers(1, 3))
    rows, cols = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 150))
    group_size = data.draw(st.sampled_from([None, 8, 72]))
    scale_rows = data.draw(st.sampled_from([1, rows]))
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))

    codes = torch.randint(-1, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    if format == "binary":
        codes = torch.where(codes == 0, 1, codes).to(torch.int8)
    groups = -(-cols // group_size) if group_size else 1
    scales = torch.rand(components, scale_rows, groups, generator=generator) + 0.5
    packed = PackedWeight(format, components, rows, cols, group_size, pack(codes, format, group_size), scales)

    group_of = torch.arange(cols) // (group_size or cols)
    full = (codes.double() * scales.double().expand(-1, rows, -1)[:, :, group_of]).sum(0)
    assert torch.equal(decode_rows(packed, slice(start, stop)), full[start:stop])
