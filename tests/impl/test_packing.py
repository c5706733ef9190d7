import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.packing import (
    FORMAT_BITS,
    FORMATS,
    Header,
    PackedWeight,
    codes_bytes,
    compression_ratio,
    estimate_memory_savings,
    hf_weight_scale,
    pack,
    pack_header,
    pack_hf_two_bit,
    pack_sign_rows,
    pack_ternary_base3,
    read_header,
    unpack,
    unpack_hf_two_bit,
    unpack_sign_rows,
    unpack_ternary_base3,
)

shapes = st.tuples(st.integers(1, 3), st.integers(1, 50), st.integers(1, 300))
group_sizes = st.sampled_from([None, 8, 24, 64, 72, 128, 200, 512])


def random_codes(format: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if format == "binary":
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(torch.int8)
    return torch.randint(-1, 2, shape, generator=generator).to(torch.int8)


def slow_pack(codes: list, format: str, group_size: int | None) -> list[int]:
    """The text of impl.h as loops, byte after byte."""
    components, rows, cols = len(codes), len(codes[0]), len(codes[0][0])
    out = []
    if format == "binary":
        for c, n in itertools.product(range(components), range(rows)):
            for begin in range(0, cols, 8):
                signs = codes[c][n][begin : begin + 8]
                out.append(sum((sign == 1) << bit for bit, sign in enumerate(signs)))
        return out
    rows_per_byte, radix = (4, 4) if format == "two_bit" else (5, 3)
    row_groups = [range(g, g + rows_per_byte) for g in range(0, rows, rows_per_byte)]
    for first in range(0, len(row_groups), 4):
        block = row_groups[first : first + 4]
        for c in range(components):
            for segment in range(0, cols, group_size or cols):
                segment_end = min(segment + (group_size or cols), cols)
                for step in range(segment, segment_end, 64):
                    for group in block:
                        for k in range(step, min(step + 64, segment_end)):
                            digits = [codes[c][n][k] + 1 if n < rows else 1 for n in group]
                            out.append(sum(d * radix**j for j, d in enumerate(digits)))
    return out


class TestLayout:
    @pytest.mark.parametrize("format", FORMATS)
    @settings(max_examples=60, deadline=None)
    @given(shape=shapes, group_size=group_sizes, seed=st.integers(0, 1000))
    def test_bytes_are_those_of_the_header_file(self, format, shape, group_size, seed):
        codes = random_codes(format, shape, seed)
        packed = pack(codes, format, group_size)
        assert packed.tolist() == slow_pack(codes.tolist(), format, group_size)
        assert packed.numel() == codes_bytes(format, *shape)
        assert torch.equal(unpack(packed, format, *shape, group_size), codes)

    @pytest.mark.parametrize("format", ["two_bit", "base3"])
    @pytest.mark.parametrize("rows", [1, 15, 16, 17, 20, 21, 41])
    @pytest.mark.parametrize(("cols", "group_size"), [(64, 64), (130, None), (130, 128), (200, 72), (7, 512)])
    def test_edges_of_blocks_and_steps(self, format, rows, cols, group_size):
        codes = random_codes(format, (2, rows, cols))
        packed = pack(codes, format, group_size)
        assert packed.tolist() == slow_pack(codes.tolist(), format, group_size)
        assert torch.equal(unpack(packed, format, 2, rows, cols, group_size), codes)

    def test_hand_computed_bytes(self):
        signs = torch.tensor([[[1, -1, 1, 1, -1, -1, -1, 1]]], dtype=torch.int8)
        assert pack(signs, "binary").tolist() == [141]
        column = torch.tensor([-1, 0, 1, 1, -1], dtype=torch.int8).view(1, 5, 1)
        assert pack(column, "base3").tolist() == [75]
        column = torch.tensor([-1, 0, 1, 1], dtype=torch.int8).view(1, 4, 1)
        assert pack(column, "two_bit").tolist() == [0 + (1 << 2) + (2 << 4) + (2 << 6)]

    def test_missing_rows_are_zero_weights(self):
        one_row = torch.tensor([[[-1]]], dtype=torch.int8)
        assert pack(one_row, "base3").tolist() == [0 + 3 + 9 + 27 + 81]
        assert pack(one_row, "two_bit").tolist() == [0b01010100]

    def test_unused_bits_of_the_last_byte_are_zero(self):
        assert pack(torch.ones(1, 2, 9, dtype=torch.int8), "binary").tolist() == [255, 1, 255, 1]

    def test_sizes(self):
        assert codes_bytes("binary", 2, 3, 9) == 12
        assert codes_bytes("two_bit", 1, 4096, 4096) == 4096 * 4096 // 4
        assert codes_bytes("base3", 3, 4096, 10) == 3 * 820 * 10

    def test_bits_of_a_code_are_those_of_full_bytes(self):
        assert FORMAT_BITS == {"binary": 1.0, "two_bit": 2.0, "base3": 1.6}
        for format, bits in FORMAT_BITS.items():
            assert 8 * codes_bytes(format, 3, 40, 16) == pytest.approx(3 * 40 * 16 * bits)

    def test_strided_codes(self):
        codes = random_codes("base3", (1, 40, 30)).mT
        assert torch.equal(unpack(pack(codes, "base3"), "base3", 1, 30, 40), codes)
        strided = pack(codes, "base3").repeat_interleave(2)[::2]
        assert torch.equal(unpack(strided, "base3", 1, 30, 40), codes)

    @pytest.mark.parametrize("format", FORMATS)
    def test_shapes_on_the_meta_device(self, format):
        codes = torch.empty(2, 7, 70, dtype=torch.int8, device="meta")
        packed = pack(codes, format, 64)
        assert packed.shape == (codes_bytes(format, 2, 7, 70),)
        assert unpack(packed, format, 2, 7, 70, 64).shape == (2, 7, 70)


class TestSignRows:
    @settings(max_examples=60, deadline=None)
    @given(lead=st.lists(st.integers(0, 3), max_size=3), cols=st.integers(0, 40), seed=st.integers(0, 99))
    def test_rows_of_signs_are_those_of_the_format(self, lead, cols, seed):
        signs = random_codes("binary", (*lead, cols), seed)
        bits = pack_sign_rows(signs)
        assert bits.shape == (*lead, -(-cols // 8))
        if signs.numel():
            assert torch.equal(bits.flatten(), pack(signs.reshape(1, -1, cols), "binary"))
        assert torch.equal(unpack_sign_rows(bits, cols), signs)

    def test_strided_rows(self):
        signs = random_codes("binary", (12, 5)).mT
        bits = pack_sign_rows(signs)
        assert torch.equal(bits, pack_sign_rows(signs.contiguous()))
        assert torch.equal(unpack_sign_rows(bits.repeat_interleave(2, 1)[:, ::2], 12), signs)

    def test_what_is_refused(self):
        with pytest.raises(TypeError, match=r"signs must be an int8 tensor, got torch\.float32"):
            pack_sign_rows(torch.ones(2, 3))
        with pytest.raises(ValueError, match="got 0"):
            pack_sign_rows(torch.zeros(2, 3, dtype=torch.int8))
        with pytest.raises(TypeError, match="bits must be a uint8 tensor, got list"):
            unpack_sign_rows([1], 8)
        for bytes_ in (1, 3):
            with pytest.raises(ValueError, match=rf"9 signs take 2 bytes, got shape \(2, {bytes_}\)"):
                unpack_sign_rows(torch.zeros(2, bytes_, dtype=torch.uint8), 9)


class TestRefusals:
    @pytest.mark.parametrize(
        ("codes", "format", "message"),
        [
            (torch.zeros(1, 2, 2, dtype=torch.int8), "binary", "got 0"),
            (torch.full((1, 2, 2), 2, dtype=torch.int8), "base3", "got 2"),
            (torch.full((1, 2, 2), -2, dtype=torch.int8), "two_bit", "got -2"),
            (torch.zeros(2, 2, dtype=torch.int8), "base3", "shape"),
            (torch.zeros(1, 0, 2, dtype=torch.int8), "base3", "rows"),
            (torch.zeros(17, 1, 2, dtype=torch.int8), "base3", "at most 16"),
            (torch.zeros(1, 1, 2, dtype=torch.int8), "base-3", "did you mean 'base3'"),
        ],
    )
    def test_codes(self, codes, format, message):
        with pytest.raises(ValueError, match=message):
            pack(codes, format)

    def test_code_type(self):
        with pytest.raises(TypeError, match="int8"):
            pack(torch.zeros(1, 2, 2), "base3")
        with pytest.raises(TypeError, match="uint8"):
            unpack(torch.zeros(2, dtype=torch.int8), "base3", 1, 2, 2)

    @pytest.mark.parametrize("group_size", [0, -8, 12, 4])
    def test_group_size(self, group_size):
        with pytest.raises(ValueError, match="multiple of 8"):
            pack(torch.zeros(1, 2, 2, dtype=torch.int8), "base3", group_size)

    def test_wrong_number_of_bytes(self):
        packed = pack(random_codes("base3", (1, 10, 10)), "base3")
        with pytest.raises(ValueError, match="take 20 bytes"):
            unpack(packed[:-1], "base3", 1, 10, 10)
        with pytest.raises(ValueError, match="take 30 bytes"):
            unpack(packed, "base3", 1, 11, 10)

    @pytest.mark.parametrize(
        ("format", "byte"), [("base3", 243), ("base3", 255), ("two_bit", 3), ("two_bit", 192)]
    )
    def test_damaged_bytes(self, format, byte):
        packed = pack(random_codes(format, (1, 20, 10)), format)
        packed[3] = byte
        with pytest.raises(ValueError, match="never produces"):
            unpack(packed, format, 1, 20, 10)


class TestHeader:
    @given(
        format=st.sampled_from(list(FORMATS)),
        components=st.integers(1, 16),
        rows=st.integers(1, 2**40),
        cols=st.integers(1, 2**40),
        group_size=group_sizes,
        per_row=st.booleans(),
    )
    def test_round_trip(self, format, components, rows, cols, group_size, per_row):
        scale_rows = rows if per_row else 1
        tensor = pack_header(format, components, rows, cols, group_size, scale_rows)
        assert tensor.tolist() == [
            1, FORMATS[format], 1, components, rows, cols, group_size or 0, scale_rows
        ]  # fmt: skip
        header = read_header(tensor)
        assert header == Header(format, components, rows, cols, group_size, scale_rows)
        assert torch.equal(header.to_tensor(), tensor)

    @pytest.mark.parametrize(
        ("position", "value", "message"),
        [
            (0, 2, "header version 2"),
            (0, 0, "header version 0"),
            (1, 4, "format number 4"),
            (1, 0, "format number 0"),
            (2, 2, "layout 2"),
            (3, 0, "k must be at least 1"),
            (3, 17, "at most 16"),
            (4, 0, "rows must be at least 1"),
            (5, -1, "cols must be at least 1"),
            (6, 12, "multiple of 8"),
            (7, 3, "scale rows"),
        ],
    )
    def test_foreign_headers_are_refused(self, position, value, message):
        header = pack_header("base3", 2, 10, 64, 8, 10)
        header[position] = value
        with pytest.raises(ValueError, match=message):
            read_header(header)

    def test_a_newer_version_is_named_before_its_unknown_format(self):
        header = pack_header("base3", 2, 10, 64)
        header[0], header[1] = 2, 9
        with pytest.raises(ValueError, match="header version 2"):
            read_header(header)

    @given(st.lists(st.integers(-(2**62), 2**62), min_size=8, max_size=8))
    def test_random_numbers_never_pass_for_a_foreign_version(self, numbers):
        numbers[0] = numbers[0] if numbers[0] != 1 else 7
        with pytest.raises(ValueError, match="header version"):
            read_header(torch.tensor(numbers))

    @pytest.mark.parametrize(
        "header", [torch.ones(7, dtype=torch.int64), torch.ones(8, dtype=torch.int32), [1] * 8]
    )
    def test_not_a_header(self, header):
        with pytest.raises(ValueError, match="int64 tensor of shape"):
            read_header(header)


class TestPackedWeight:
    def test_from_codes(self):
        codes = random_codes("base3", (2, 10, 100))
        weight = PackedWeight.from_codes(codes, torch.rand(2, 10, 2), "base3", 64)
        assert torch.equal(weight.unpack(), codes)
        assert weight.header == Header("base3", 2, 10, 100, 64, 10)

    @pytest.mark.parametrize(
        ("scales", "message"),
        [
            (torch.rand(2, 10, 1), "scales of"),
            (torch.rand(1, 10, 2), "scales of"),
            (torch.rand(2, 5, 2), "scale rows"),
            (torch.rand(2, 10), "scales must have shape"),
        ],
    )
    def test_wrong_scales(self, scales, message):
        with pytest.raises(ValueError, match=message):
            PackedWeight.from_codes(random_codes("base3", (2, 10, 100)), scales, "base3", 64)

    def test_wrong_dtypes_and_bytes(self):
        codes, scales = torch.zeros(20, dtype=torch.uint8), torch.rand(1, 10, 1)
        with pytest.raises(TypeError, match="float32 or float16"):
            PackedWeight("base3", 1, 10, 10, None, codes, scales.double())
        with pytest.raises(TypeError, match="uint8"):
            PackedWeight("base3", 1, 10, 10, None, codes.int(), scales)
        with pytest.raises(ValueError, match="20 bytes"):
            PackedWeight("base3", 1, 10, 10, None, codes[1:], scales)


class TestForeignLayouts:
    @given(shape=st.lists(st.integers(1, 12), min_size=1, max_size=3), seed=st.integers(0, 100))
    def test_base3_round_trip(self, shape, seed):
        weight = random_codes("base3", tuple(shape), seed).float()
        packed, original = pack_ternary_base3(weight)
        assert packed.dtype == torch.uint8
        assert packed.numel() == -(-weight.numel() // 5)
        assert torch.equal(unpack_ternary_base3(packed, original), weight)

    def test_base3_hand_computed(self):
        """seed 004: padding digits are zero and decode to -1: they go by the shape."""
        packed, shape = pack_ternary_base3(torch.tensor([-1.0, 0, 1, 1, -1, 1]))
        assert packed.tolist() == [75, 2]
        assert unpack_ternary_base3(packed, shape, torch.int8).tolist() == [-1, 0, 1, 1, -1, 1]

    def test_base3_refuses(self):
        with pytest.raises(ValueError, match=r"got 0\.5"):
            pack_ternary_base3(torch.tensor([0.5, 1.0]))
        with pytest.raises(ValueError, match="242"):
            unpack_ternary_base3(torch.tensor([250], dtype=torch.uint8), (5,))
        with pytest.raises(ValueError, match=r"uint8 \[2\]"):
            unpack_ternary_base3(torch.tensor([1], dtype=torch.uint8), (6,))

    def test_hf_hand_computed(self):
        codes = torch.tensor([-1, 0, 1, 0, 1, 1, -1, 0], dtype=torch.int8).view(8, 1)
        before = codes.clone()
        packed = pack_hf_two_bit(codes)
        # Byte row 0 holds rows 0, 2, 4, 6; byte row 1 holds rows 1, 3, 5, 7.
        assert packed.flatten().tolist() == [0 | 2 << 2 | 2 << 4 | 0 << 6, 1 | 1 << 2 | 2 << 4 | 1 << 6]
        assert torch.equal(codes, before)
        assert (pack_hf_two_bit(torch.zeros(8, 3)) == 0x55).all()

    @given(rows=st.integers(1, 20), cols=st.integers(1, 9), seed=st.integers(0, 100))
    def test_hf_round_trip(self, rows, cols, seed):
        codes = random_codes("two_bit", (rows, cols), seed)
        assert torch.equal(unpack_hf_two_bit(pack_hf_two_bit(codes), rows), codes)

    def test_hf_refuses(self):
        packed = torch.full((2, 3), 0xFF, dtype=torch.uint8)
        with pytest.raises(ValueError, match="digit 3"):
            unpack_hf_two_bit(packed, 8)
        with pytest.raises(ValueError, match=r"uint8 \[3, cols\]"):
            unpack_hf_two_bit(packed, 9)
        with pytest.raises(ValueError, match="matrix"):
            pack_hf_two_bit(torch.zeros(4))

    def test_hf_scale_conventions(self):
        scale = torch.tensor([0.25])
        assert hf_weight_scale(scale, "autobitlinear").item() == 0.25
        assert hf_weight_scale(scale, "bitlinear").item() == 4.0
        assert hf_weight_scale(hf_weight_scale(scale, "bitlinear"), "bitlinear").item() == 0.25
        with pytest.raises(ValueError, match="did you mean 'bitlinear'"):
            hf_weight_scale(scale, "bitlinea")

    @pytest.mark.parametrize(("size", "ratio"), [(512, 18.59), (1024, 19.27), (2048, 19.63), (4096, 19.81)])
    def test_memory_estimate_of_square_layers(self, size, ratio):
        estimate = estimate_memory_savings(size, size)
        assert estimate["compression_ratio"] == pytest.approx(ratio, abs=0.005)
        assert estimate["saved_bytes"] == estimate["original_bytes"] - estimate["packed_bytes"]

    def test_memory_estimate_arguments(self):
        assert estimate_memory_savings(10, 10, 3, bias=False)["original_bytes"] == 1200
        with pytest.raises(ValueError, match="in_features must be at least 1, got 0"):
            estimate_memory_savings(0, 10)

    def test_compression_ratio(self):
        weight = torch.zeros(100, 50)
        packed, _ = pack_ternary_base3(weight)
        assert compression_ratio(weight, packed) == 20
        with pytest.raises(ValueError, match="empty"):
            compression_ratio(weight, packed[:0])
