"""The TQ1_0 and TQ2_0 blocks, against the gguf package and against a reading of the layout by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.interchange.gguf_blocks import BLOCK_BYTES, decode_blocks, encode_blocks, merge_scales

TYPES = list(BLOCK_BYTES)


def draw(rows, blocks, seed, zero_blocks=False):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (rows, blocks * 256), generator=generator).to(torch.int8)
    scales = torch.rand(rows, blocks, generator=generator) * 3 + 0.01
    if zero_blocks:
        codes[:, :256] = 0
    return codes, scales


def slow_decode(block, kind):
    """One block as loops over the text at the head of the module: 256 digits."""
    digits = [0] * 256
    if kind == "TQ2_0":
        for half in range(2):
            for i in range(32):
                for j in range(4):
                    digits[128 * half + 32 * j + i] = block[32 * half + i] >> 2 * j & 3
        return digits
    first, byte = 0, 0
    for width, count in ((32, 5), (16, 5), (4, 4)):
        for i in range(width):
            number = block[byte + i]
            for j in range(count):
                number *= 3
                digits[first + width * j + i] = number // 256
                number %= 256
        first, byte = first + width * count, byte + width
    return digits


@pytest.mark.parametrize("kind", TYPES)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6), st.booleans())
@settings(max_examples=15, deadline=None)
def test_bytes_are_those_of_the_gguf_package(kind, rows, blocks, seed, zero_blocks):
    codes, scales = draw(rows, blocks, seed, zero_blocks)
    scales = scales.half()
    weight = codes * scales.float().repeat_interleave(256, dim=1)
    ours = encode_blocks(codes, scales, kind)
    theirs = quantize(weight.numpy(), GGMLQuantizationType[kind])
    assert np.array_equal(ours.numpy(), theirs)
    assert np.array_equal(dequantize(ours.numpy(), GGMLQuantizationType[kind]), weight.numpy())


@pytest.mark.parametrize("kind", TYPES)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_decoding_returns_what_was_encoded(kind, rows, blocks, seed):
    codes, scales = draw(rows, blocks, seed)
    packed = encode_blocks(codes, scales, kind)
    assert packed.shape == (rows, blocks * BLOCK_BYTES[kind])
    back, stored = decode_blocks(packed, kind)
    assert torch.equal(back, codes)
    assert torch.equal(stored, scales.half())


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_read_by_hand(kind):
    codes, scales = draw(1, 1, 7)
    packed = encode_blocks(codes, scales, kind)[0]
    assert slow_decode(packed[:-2].tolist(), kind) == (codes[0] + 1).tolist()
    assert packed[-2:].view(torch.float16).item() == scales.half().item()


def test_single_bytes_by_hand():
    # TQ2_0: weights 0, 32, 64, 96 share byte 0: digits 2, 1, 0, 2 -> 2 + 4 + 0 + 128.
    codes = torch.zeros(1, 256, dtype=torch.int8)
    codes[0, [0, 32, 64, 96]] = torch.tensor([1, 0, -1, 1], dtype=torch.int8)
    assert encode_blocks(codes, torch.ones(1, 1), "TQ2_0")[0, 0] == 2 + (1 << 2) + (0 << 4) + (2 << 6)
    # TQ1_0: weights 0, 32, ... 128 share byte 0: q = 2*81 + 1*27 + 0*9 + 2*3 + 1 = 196,
    # ceil(196 * 256 / 243) = 207.
    assert encode_blocks(codes, torch.ones(1, 1), "TQ1_0")[0, 0] == 207
    # All zeros: q = 121 -> 128, and in the four-digit bytes 120 -> 127; the scale goes.
    zeros = encode_blocks(torch.zeros(1, 256, dtype=torch.int8), torch.ones(1, 1), "TQ1_0")[0]
    assert zeros[:48].unique().tolist() == [128]
    assert zeros[48:52].unique().tolist() == [127]
    assert zeros[52:].tolist() == [0, 0]


@pytest.mark.parametrize("kind", TYPES)
def test_what_blocks_cannot_hold_is_refused(kind):
    codes, scales = draw(2, 2, 0)
    with pytest.raises(ValueError, match=r"multiple of 256 long, got shape \[2, 500\]"):
        encode_blocks(codes[:, :500], scales, kind)
    with pytest.raises(ValueError, match=r"scales must be \[2, 2\]"):
        encode_blocks(codes, scales[:, :1], kind)
    for step in (1, -1):
        with pytest.raises(ValueError, match=rf"-1 \.\. 1, got {2 * step}"):
            encode_blocks(codes + step, scales, kind)
    for shape in ((0, 256), (2, 0), (1, 2, 256)):
        with pytest.raises(ValueError, match="takes a matrix whose rows"):
            encode_blocks(torch.zeros(shape, dtype=torch.int8), scales, kind)
    for bad in (1e5, 1e-9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="does not fit float16"):
            encode_blocks(codes, torch.full((2, 2), bad), kind)
    for wrong in ((codes.float(), scales), (codes, scales.int())):
        with pytest.raises(TypeError, match="codes are int8 and scales floating point"):
            encode_blocks(*wrong, kind)
    with pytest.raises(ValueError, match=r"unknown GGUF type 'TQ3_0'.*did you mean"):
        encode_blocks(codes, scales, "TQ3_0")


@pytest.mark.parametrize("kind", TYPES)
def test_damaged_blocks_are_refused(kind):
    codes, scales = draw(2, 1, 0)
    packed = encode_blocks(codes, scales, kind)
    with pytest.raises(ValueError, match="blocks of"):
        decode_blocks(packed[:, :-1], kind)
    with pytest.raises(ValueError, match="blocks of"):
        decode_blocks(packed.to(torch.int8), kind)
    for empty in (packed[:0], packed[:, :0], packed[0]):
        with pytest.raises(ValueError, match="blocks of"):
            decode_blocks(empty, kind)
    infinite = packed.clone()
    infinite[1, -2:] = torch.tensor([float("inf")], dtype=torch.float16).view(torch.uint8)
    with pytest.raises(ValueError, match="not finite"):
        decode_blocks(infinite, kind)


def test_digits_out_of_range_are_refused():
    codes, scales = draw(1, 1, 0)
    packed = encode_blocks(codes, scales, "TQ2_0")
    packed[0, 5] = 0b00001100  # the digit 3
    with pytest.raises(ValueError, match="hold 1 values that no ternary weights give"):
        decode_blocks(packed, "TQ2_0")


@pytest.mark.parametrize(("place", "values", "step"), [(0, 243, 1), (31, 243, 1), (47, 243, 1), (48, 81, 3)])
def test_bytes_that_stand_for_no_digits_are_refused(place, values, step):
    """Five digits make 243 numbers, four of them 81: the other bytes are damage."""
    packed = encode_blocks(*draw(1, 1, 0), "TQ1_0")
    used = {-(-256 * number * step // 243) for number in range(values)}
    refused = set()
    for byte in range(256):
        packed[0, place] = byte
        try:
            decode_blocks(packed, "TQ1_0")
        except ValueError:
            refused.add(byte)
    assert refused == set(range(256)) - used


def test_scales_are_merged_as_far_as_they_agree():
    codes, _ = draw(3, 2, 1)
    equal = torch.full((3, 2), 0.5, dtype=torch.float16)
    merged, group_size = merge_scales(codes, equal)
    assert (merged.shape, merged.dtype, merged.item(), group_size) == ((1, 1, 1), torch.float16, 0.5, None)

    by_row = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float16).expand(3, 2).clone()
    merged, group_size = merge_scales(codes, by_row)
    assert (merged.flatten().tolist(), group_size) == ([1.0, 2.0, 3.0], None)

    by_row[1, 1] = 5.0
    merged, group_size = merge_scales(codes, by_row)
    assert (merged.shape, group_size) == ((1, 3, 2), 256)
    assert torch.equal(merged[0], by_row)


def test_blocks_of_zeros_agree_with_any_scale():
    codes, _ = draw(3, 2, 1)
    scales = torch.tensor([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float16)
    codes[1, :256] = 0
    codes[2] = 0
    merged, group_size = merge_scales(codes, scales)
    assert (merged.flatten().tolist(), group_size) == ([1.0, 2.0, 0.0], None)
    merged, group_size = merge_scales(torch.zeros_like(codes), scales)
    assert (merged.shape, merged.item(), group_size) == ((1, 1, 1), 0.0, None)
