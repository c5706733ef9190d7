"""bitorch_engine's packing of single tensors: bits, nibbles and words, on stock torch."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.compat.bitorch_engine.functions import cuda
from impl.compat.bitorch_engine.utils import binary_words


@pytest.mark.parametrize(
    ("function", "positional"),
    [
        (cuda.fp32toint4, ["input"]),
        (cuda.tensor_to_packed_uint8, ["input"]),
        (cuda.unpack_uint8_tensor, ["input", "scale"]),
        (cuda.q4_pack_tensor, ["input", "is_transpose"]),
        (cuda.q4_unpack_tensor, ["input", "is_transpose"]),
        (cuda.q4_unpack_and_scaling_tensor, ["input", "scale", "is_transpose"]),
        (binary_words.bit_set, ["var", "pos", "val"]),
        (binary_words.get_binary_row, ["nd_row", "binary_row", "nd_size", "bits_per_binary_word"]),
        (binary_words.get_binary_col, ["nd_col", "binary_col", "dim_n", "dim_k", "bits_per_binary_word"]),
    ],
)
def test_signatures_of_the_original(function, positional):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == positional


# ---- float32 to 4 bits --------------------------------------------------------------------------


def nibbles(words, count):
    """Codes in order, from the documented places."""
    codes = []
    for word in words.tolist():
        for half in (word & 0xFFFFFFFF, word >> 32 & 0xFFFFFFFF):
            codes += [half >> place & 15 for place in range(28, -1, -4)]
    assert set(codes[count:]) <= {0}
    return torch.tensor(codes[:count])


def test_fp32toint4_by_hand():
    """The original leaves out one code of eight, and reads every fourth value for the first of them."""
    packed = cuda.fp32toint4(torch.arange(16.0))
    assert packed.dtype == torch.int64
    assert [f"{word & (1 << 64) - 1:016x}" for word in packed.tolist()] == ["89abcdef01234567"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=70))
def test_fp32toint4_is_within_half_a_step(values):
    x = torch.tensor(values, dtype=torch.float32)
    packed = cuda.fp32toint4(x)
    assert packed.shape == (-(-len(values) // 16),)
    if not values:
        return
    low, high = x.double().min(), x.double().max()
    step = (high - low) / 15
    decoded = low + step * nibbles(packed, len(values))
    assert bool(((decoded - x).abs() <= step * (0.5 + 1e-6)).all())


def test_fp32toint4_spans_and_strides():
    extremes = torch.tensor([torch.finfo(torch.float32).min, 0.0, torch.finfo(torch.float32).max])
    assert nibbles(cuda.fp32toint4(extremes), 3).tolist() == [0, 8, 15]
    assert cuda.fp32toint4(torch.full((3, 7), 2.5)).tolist() == [0, 0]
    x = torch.randn(5, 6)
    assert torch.equal(cuda.fp32toint4(x.t()), cuda.fp32toint4(x.t().contiguous()))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite numbers only"):
            cuda.fp32toint4(torch.tensor([1.0, bad]))
    with pytest.raises(TypeError, match=r"takes a float32 tensor, got torch\.float16 \[3\]"):
        cuda.fp32toint4(torch.ones(3, dtype=torch.float16))


# ---- bits ---------------------------------------------------------------------------------------


def test_bits_by_hand():
    signs = torch.tensor([[1.0, -1, 1, 1, -1, -1, -1, 1, -0.0]])
    assert cuda.tensor_to_packed_uint8(signs).tolist() == [[141, 1]]
    assert cuda.unpack_uint8_tensor(
        torch.tensor([[0, 16, 35]], dtype=torch.uint8), torch.tensor([[0.5]])
    ).mul(2).tolist() == [[*[-1] * 8, -1, -1, -1, -1, 1, -1, -1, -1, 1, 1, -1, -1, -1, 1, -1, -1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("shape", [(4, 24), (2, 3, 16), (7,), (0, 9), (3, 1)])
def test_bits_come_back(dtype, shape):
    """D10: the original ends the process for a dtype that it does not know."""
    x = torch.randint(-3, 3, shape).to(dtype)
    packed = cuda.tensor_to_packed_uint8(x)
    assert packed.shape == (*shape[:-1], -(-shape[-1] // 8))
    scale = torch.rand(*shape[:-1], 1).to(dtype if dtype.is_floating_point else torch.float32)
    unpacked = cuda.unpack_uint8_tensor(packed, scale)
    assert unpacked.dtype == torch.float32
    assert unpacked.shape[-1] == 8 * packed.shape[-1]
    expected = torch.where(x >= 0, 1.0, -1.0) * scale.float()
    assert torch.equal(unpacked[..., : shape[-1]], expected)


def test_bits_of_strided_tensors():
    """The original reads the memory of a strided tensor as if it were dense."""
    x = torch.randn(16, 5)
    assert torch.equal(cuda.tensor_to_packed_uint8(x.t()), cuda.tensor_to_packed_uint8(x.t().contiguous()))


def test_bits_are_refused_where_they_cannot_be():
    for call, error, message in (
        (lambda: cuda.tensor_to_packed_uint8(torch.ones(2, 8, dtype=torch.int32)), TypeError, "int32"),
        (lambda: cuda.tensor_to_packed_uint8(torch.tensor(1.0)), ValueError, "last dimension"),
        (lambda: cuda.tensor_to_packed_uint8(torch.full((1, 8), torch.nan)), ValueError, "8 NaN"),
        (lambda: cuda.unpack_uint8_tensor(torch.ones(2, 8), torch.ones(2, 1)), TypeError, "uint8"),
        (
            lambda: cuda.unpack_uint8_tensor(torch.ones(2, 8, dtype=torch.uint8), torch.ones(2)),
            ValueError,
            r"must have shape \[2, 1\], got \[2\]",
        ),
        (
            lambda: cuda.unpack_uint8_tensor(torch.ones(2, 8, dtype=torch.uint8), torch.ones(2, 1).int()),
            TypeError,
            "scale must be a floating-point",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


# ---- nibbles ------------------------------------------------------------------------------------


def test_nibbles_by_hand():
    numbers = torch.tensor([[1, -1, 7, -8]], dtype=torch.int32)
    packed = cuda.q4_pack_tensor(numbers)
    assert packed.dtype == torch.int8
    assert packed.view(torch.uint8).tolist() == [[0x1F, 0x78]]
    assert cuda.q4_unpack_tensor(packed).tolist() == numbers.tolist()
    assert cuda.q4_unpack_tensor(packed, signed=False).tolist() == [[1, 15, 7, 8]]
    assert cuda.q4_unpack_and_scaling_tensor(packed, 0.5).tolist() == [[0.5, -0.5, 3.5, -4.0]]


@settings(max_examples=40, deadline=None)
@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    rows=st.integers(0, 5),
    pairs=st.integers(0, 5),
    signed=st.booleans(),
    strided=st.booleans(),
)
def test_nibbles_come_back(lead, rows, pairs, signed, strided):
    low = -8 if signed else 0
    x = torch.randint(low, low + 16, (*lead, rows, 2 * pairs), dtype=torch.int32)
    given_ = x.mT.contiguous().mT if strided else x
    packed = cuda.q4_pack_tensor(given_)
    assert packed.shape == (*lead, rows, pairs)
    assert torch.equal(cuda.q4_unpack_tensor(packed, signed=signed), x)
    assert torch.equal(cuda.q4_unpack_tensor(packed, True, signed=signed), x.mT)
    transposed = cuda.q4_pack_tensor(given_, True)
    assert torch.equal(transposed, packed.mT)
    assert transposed.is_contiguous()
    scaled = cuda.q4_unpack_and_scaling_tensor(packed, torch.tensor(0.045))
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled, cuda.q4_unpack_tensor(packed) * torch.tensor(0.045))


def test_nibbles_are_refused_where_they_cannot_be():
    """The original drops the last number of an odd row and shifts all that follow."""
    for numbers, error, message in (
        (torch.ones(2, 3, dtype=torch.int32), ValueError, "must be even, got 3"),
        (torch.ones(4, dtype=torch.int32), ValueError, "at least two dimensions"),
        (torch.ones(2, 4, dtype=torch.int64), TypeError, r"int32 tensor, got torch\.int64"),
        (torch.tensor([[0, 16]], dtype=torch.int32), ValueError, r"got 0 \.\. 16"),
        (torch.tensor([[-1, 8]], dtype=torch.int32), ValueError, r"got -1 \.\. 8"),
        (torch.tensor([[-9, 0]], dtype=torch.int32), ValueError, r"got -9 \.\. 0"),
    ):
        with pytest.raises(error, match=message):
            cuda.q4_pack_tensor(numbers)
    with pytest.raises(TypeError, match=r"from int8, got torch\.uint8"):
        cuda.q4_unpack_tensor(torch.ones(2, 2, dtype=torch.uint8))


# ---- words --------------------------------------------------------------------------------------

SIGNED = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def word(values):
    total = 0
    for place, value in enumerate(values):
        total = binary_words.bit_set(total, place, int(value >= 0))
    return total


@pytest.mark.parametrize("bits", SIGNED)
def test_words_of_rows(bits):
    values = torch.randn(3 * bits)
    expected = [word(values[i : i + bits]) for i in range(0, 2 * bits, bits)]
    into_array = binary_words.get_binary_row(values.numpy(), np.zeros(2, UNSIGNED[bits]), 2 * bits, bits)
    assert into_array.tolist() == expected
    assert binary_words.get_binary_row(values.tolist(), [0, 0, 5], 2 * bits, bits) == [*expected, 5]
    tensor = torch.zeros(2, dtype=SIGNED[bits])
    assert binary_words.get_binary_row(values, tensor, float(2 * bits), bits) is tensor
    assert [value % (1 << bits) for value in tensor.tolist()] == expected


@pytest.mark.parametrize("bits", SIGNED)
def test_words_of_columns(bits):
    matrix = torch.randn(2 * bits, 3)
    expected = [word(matrix[y * bits : (y + 1) * bits, x]) for y in range(2) for x in range(3)]
    array = binary_words.get_binary_col(matrix.flatten(), np.zeros(6, UNSIGNED[bits]), 2 * bits, 3, bits)
    assert array.tolist() == expected


def test_words_are_those_of_the_packed_layout():
    x = torch.randn(5, 24)
    words = binary_words.get_binary_row(x.flatten(), torch.empty(15, dtype=torch.uint8), 120, 8)
    assert torch.equal(words.view(5, 3), cuda.tensor_to_packed_uint8(x))


def test_words_are_refused_where_they_do_not_fit():
    values = torch.ones(16)
    for arguments, message in (
        ((values, [0, 0], 12, 8), "nd_size must be a multiple of 8"),
        ((values, [0, 0, 0], 24, 8), "within the 16 values given, got 24"),
        ((values, [0], 16, 8), "2 words do not fit into the 1 items"),
        ((values, [0], 12, 12), "8, 16, 32, 64 bits, got 12"),
    ):
        with pytest.raises(ValueError, match=message):
            binary_words.get_binary_row(*arguments)
    with pytest.raises(ValueError, match="dim_n must be a multiple of 8 within the 16"):
        binary_words.get_binary_col(values, [0] * 3, 8, 3, 8)
