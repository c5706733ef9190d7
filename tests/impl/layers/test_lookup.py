"""Rows of packed weights by index, against unpacking everything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl import packing
from impl.layers.lookup import gather_codes, gather_scales


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["binary", "two_bit", "base3"]),
    rows=st.integers(1, 90),
    cols=st.integers(1, 200),
    group_size=st.sampled_from([None, 8, 24, 64, 72, 128]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 2**16),
)
def test_gathered_codes_are_rows_of_the_unpacked_matrix(format, rows, cols, group_size, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (1, rows, cols), generator=generator, dtype=torch.int8)
    if format == "binary":
        codes[codes == 0] = 1
    packed = packing.pack(codes, format, group_size)
    index = torch.randint(rows, (17,), generator=generator, dtype=dtype)
    picked = gather_codes(packed, format, rows, cols, group_size, index)
    assert picked.dtype == torch.int8
    assert torch.equal(picked, codes[0, index.long()])


@pytest.mark.parametrize("format", ["binary", "two_bit", "base3"])
def test_no_index_gives_no_row(format):
    packed = packing.pack(torch.ones(1, 7, 20, dtype=torch.int8), format)
    index = torch.empty(0, dtype=torch.int64)
    assert gather_codes(packed, format, 7, 20, None, index).shape == (0, 20)
    assert gather_scales(torch.ones(1, 7, 3), 7, index).shape == (0, 3)


@pytest.mark.parametrize("shape", [(1, 7, 2), (1, 1, 2)])
@pytest.mark.parametrize("wrong", [-1, 7])
def test_scales_by_index_know_the_number_of_rows(shape, wrong):
    scales = torch.rand(shape)
    assert torch.equal(gather_scales(scales, 7, torch.tensor([6, 0])), scales[0].expand(7, 2)[[6, 0]])
    with pytest.raises(IndexError):
        gather_scales(scales, 7, torch.tensor([wrong]))
