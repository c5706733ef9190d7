"""Native convolutions against the reference: every instruction set, layout, border and tail."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl import functional, native, tiles
from impl.geometry import ConvGeometry, from_matrix
from impl.native import convolution
from impl.packing import PackedWeight

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")

CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def geometry_of(kernel, stride=1, padding=0, dilation=1, groups=1, padding_value=0.0):
    """A geometry; numbers count for every dimension, padding pairs are before and after."""

    def spread(value):
        return tuple(value) if isinstance(value, tuple | list) else (value,) * len(kernel)

    pairs = tuple(pair if isinstance(pair, tuple) else (pair, pair) for pair in spread(padding))
    return ConvGeometry(tuple(kernel), spread(stride), pairs, spread(dilation), groups, padding_value)


def random_weight(format, components, rows, cols, scale_rows=True, seed=0, half=False):
    generator = torch.Generator().manual_seed(seed)
    if format == "binary":
        codes = torch.randint(0, 2, (components, rows, cols), dtype=torch.int8, generator=generator) * 2 - 1
    else:
        codes = torch.randint(-1, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    scales = torch.rand(components, rows if scale_rows else 1, 1, generator=generator) - 0.3
    return PackedWeight.from_codes(codes, scales.half() if half else scales, format)


def random_input(shape, dtype=torch.float32, layout="contiguous", seed=0):
    """Normal values in several strides: contiguous, channels_last, or views of something larger."""
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2).to(dtype)
    dims = len(shape) - 2
    if layout == "channels_last":
        if dims in CHANNELS_LAST:
            return x.contiguous(memory_format=CHANNELS_LAST[dims])
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "cut":
        larger = torch.full([size + 2 for size in shape], float("nan"), dtype=dtype)
        view = larger[tuple(slice(1, -1) for _ in shape)]
        view.copy_(x)
        return view
    if layout == "turned":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    return x


def reference(x, weight, geometry, bias, bits):
    python = functional.binary_conv_python if weight.format == "binary" else functional.ternary_conv_python
    return python(x, weight, geometry, bias, bits)


def assert_equal(x, weight, geometry, bias, bits):
    y = native.conv(x, weight, geometry, bias, bits)
    expected = reference(x, weight, geometry, bias, bits)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))
    return y


@pytest.fixture(params=native.supported_isas() if native.available() else ["none"])
def isa(request):
    native.select_isa(request.param)
    yield request.param
    native.select_isa(None)


@st.composite
def problems(draw):
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    most = {1: 40, 2: 12, 3: 5}[dims]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel = [draw(st.integers(1, {1: 7, 2: 4, 3: 3}[dims])) for _ in range(dims)]
    dilation = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    padding, size = [], []
    for axis in range(dims):
        pair = (draw(st.integers(0, 4)), draw(st.integers(0, 4)))
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        padding.append(pair)
        size.append(draw(st.integers(max(1, reach - sum(pair)), max(most, reach))))
    geometry = geometry_of(kernel, stride, padding, dilation, groups, draw(st.sampled_from([-1.0, 0.0, 1.0])))
    channels = draw(st.sampled_from([1, 2, 3, 5, 7, 8, 13, 16, 31, 64, 65, 72]))
    format = draw(st.sampled_from(["binary", "binary", "two_bit", "base3"]))
    weight = random_weight(
        format,
        draw(st.integers(1, 3)),
        groups * draw(st.sampled_from([1, 2, 5, 16, 20, 33, 41])),
        channels * geometry.taps,
        draw(st.booleans()),
        draw(st.integers(0, 1 << 20)),
        draw(st.booleans()),
    )
    x = random_input(
        (draw(st.sampled_from([0, 1, 2, 3])), channels * groups, *size),
        draw(st.sampled_from(list(native.DTYPES))),
        draw(st.sampled_from(["contiguous", "channels_last", "cut", "turned"])),
        draw(st.integers(0, 1 << 20)),
    )
    bias = torch.randn(weight.rows).to(draw(st.sampled_from(list(native.DTYPES))))
    bits = draw(st.sampled_from([1, 2, 8, 16]))
    return x, weight, geometry, draw(st.sampled_from([None, bias])), bits


@settings(max_examples=120, deadline=None)
@given(problem=problems(), isa=st.integers(0, 3))
def test_integer_activations_equal_the_reference_to_the_bit(problem, isa):
    isas = native.supported_isas()
    name = isas[isa % len(isas)]
    native.select_isa(name)
    try:
        assert_equal(*problem)
        assert native.last_kernel().endswith(name)
    finally:
        native.select_isa(None)


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_an_oracle_of_plain_loops(isa, bits):
    """The reference itself, tap by tap in Python numbers: padding of zeros counts for nothing."""
    geometry = geometry_of([2, 3], (1, 2), [(1, 0), (1, 2)], (2, 1))
    weight = random_weight("binary", 1, 2, 6 * 3)
    x = random_input((1, 3, 4, 3))
    codes = from_matrix(weight.unpack()[0], geometry).tolist()
    if bits == 1:
        q, scale = torch.where(x >= 0, 1, -1), x.double().abs().mean().float()
    elif bits == 2:
        kept = x.abs() > (0.75 * x.double().abs().mean()).float()
        q, scale = x.sign() * kept, x[kept].double().abs().mean().float()
    else:
        levels = torch.tensor({8: 127.0, 16: 32512.0}[bits])
        q, scale = (x * (levels / x.abs().max())).round(), x.abs().max() / levels
    y = native.conv(x, weight, geometry, None, bits)
    assert y.shape == (1, 2, 3, 2)
    for n in range(2):
        for top in range(3):
            for left in range(2):
                dot = 0
                for c in range(3):
                    for i in range(2):
                        for j in range(3):
                            h, w = top - 1 + 2 * i, 2 * left - 1 + j
                            if 0 <= h < 4 and 0 <= w < 3:
                                dot += int(q[0, c, h, w]) * codes[n][c][i][j]
                assert y[0, n, top, left] == weight.scales[0, n, 0] * float(dot) * scale


@pytest.mark.parametrize(("padding_value", "channels"), [(0.0, 64), (0.0, 20), (1.0, 20), (-1.0, 64)])
def test_many_tiles_and_chunks_of_rows(isa, padding_value, channels):
    """Rows of results beyond one chunk, tokens beyond one tile, tiles across samples."""
    geometry = geometry_of([3, 2], 1, 1, padding_value=padding_value)
    for format, bits in [
        ("binary", 1),
        ("binary", 8),
        ("two_bit", 16),
        ("base3", 8),
        ("base3", 1),
        ("two_bit", 2),
    ]:
        weight = random_weight(format, 1, 187, 6 * channels)
        for layout in ("contiguous", "channels_last"):
            x = random_input((3, channels, 7, 9), layout=layout)
            assert_equal(x, weight, geometry, torch.randn(187), bits)
            assert native.last_kernel().endswith(f"/gemm/{isa}")


@pytest.mark.parametrize("format", ["binary", "two_bit", "base3"])
def test_depthwise_and_narrow_groups(isa, format):
    """Groups of one channel and one row; groups that end within a block of rows."""
    for groups, channels, rows in [(23, 1, 1), (23, 1, 2), (3, 9, 15), (2, 64, 47)]:
        geometry = geometry_of([3, 3], 1, 1, groups=groups)
        weight = random_weight(format, 2, groups * rows, 9 * channels)
        x = random_input((2, groups * channels, 6, 5))
        for bits in (1, 2, 8, 16):
            assert_equal(x, weight, geometry, None, bits)
            assert_equal(x.contiguous(memory_format=torch.channels_last), weight, geometry, None, bits)


@pytest.mark.parametrize(("format", "bits"), [("binary", 1), ("two_bit", 2), ("base3", 8), ("binary", 16)])
def test_depthwise_convolutions_read_the_image_itself(isa, format, bits):
    """Channels beyond one chunk, every border and layout, one to three dimensions."""
    kind = {1: "sign", 2: "ternary", 8: "int8", 16: "int16"}[bits]
    for channels, kernel, stride, padding, dilation, size in [
        (2, [3, 3], 1, 1, 1, (5, 4)),
        (33, [2, 3], (2, 1), [(3, 0), (1, 2)], (1, 2), (6, 7)),
        (161, [3, 3], 2, 1, 1, (7, 9)),
        (64, [5], 1, 2, 1, (140,)),
        (7, [2, 1, 3], (1, 2, 1), 1, 1, (3, 4, 5)),
    ]:
        for padding_value, components, layout in [
            (0.0, 1, "contiguous"),
            (1.0, 2, "channels_last"),
            (-1.0, 1, "cut"),
        ]:
            geometry = geometry_of(kernel, stride, padding, dilation, channels, padding_value)
            weight = random_weight(format, components, channels, math.prod(kernel))
            x = random_input((2, channels, *size), layout=layout)
            assert_equal(x, weight, geometry, torch.randn(channels), bits)
            assert (
                native.last_kernel()
                == f"{native.operator_of(format, 'conv')}/{format}/{kind}/depthwise/{isa}"
            )


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_the_longest_depthwise_sums_are_exact(isa, bits):
    """More taps than 16 bits can sum, of the largest activations; -128 is the smallest of a low byte."""
    taps = 70_000
    geometry = geometry_of([taps], groups=2)
    for format in ("binary", "base3"):
        weight = PackedWeight.from_codes(
            torch.ones(1, 2, taps, dtype=torch.int8), torch.ones(1, 2, 1), format
        )
        for value in (1.5, -1.5, 32384 / 32512):  # the last one is 127 * 256 - 128 in 16 bits
            x = torch.full((1, 2, taps + 2), value)
            x[:, :, -1] = 1.5 if abs(value) == 1.5 else 1.0
            assert_equal(x, weight, geometry, None, bits)


def test_windows_that_see_only_the_border(isa):
    for padding_value in (-1.0, 0.0, 1.0):
        geometry = geometry_of([2, 2], 1, 5, padding_value=padding_value)
        for format, bits in itertools.product(("binary", "base3"), (1, 2, 8, 16)):
            weight = random_weight(format, 1, 5, 4 * 10)
            y = assert_equal(random_input((2, 10, 2, 3)), weight, geometry, None, bits)
            if padding_value == 0:
                assert (y[..., 0, 0] == 0).all()


def test_padding_values_take_part_in_the_scale_of_a_sample():
    """Activations below 1 with a border of ones: the border must not be clipped to the largest one."""
    geometry = geometry_of([1], 1, 1, padding_value=1.0)
    weight = PackedWeight.from_codes(torch.ones(1, 1, 1, dtype=torch.int8), torch.ones(1, 1, 1), "binary")
    y = assert_equal(torch.full((1, 1, 1), 0.25), weight, geometry, None, 8)
    torch.testing.assert_close(y, torch.tensor([[[1.0, 0.25, 1.0]]]), atol=4e-3, rtol=0)


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_sample_is_nan_and_no_other(isa, bits, bad):
    geometry = geometry_of([3, 3], 1, 1)
    weight = random_weight("binary", 1, 17, 9 * 12)
    for layout in ("contiguous", "channels_last"):
        x = random_input((3, 12, 5, 4), layout=layout)
        clean = native.conv(x, weight, geometry, None, bits)
        x[1, 7, 4, 3] = bad
        y = assert_equal(x, weight, geometry, torch.randn(17), bits)
        assert y[1].isnan().all()
        again = native.conv(x, weight, geometry, None, bits)
        assert torch.equal(again[[0, 2]], clean[[0, 2]])


def test_negative_zero_counts_as_plus_one(isa):
    weight = PackedWeight.from_codes(torch.ones(1, 1, 2, dtype=torch.int8), torch.ones(1, 1, 1), "binary")
    x = torch.tensor([[[-0.0, 1.0], [-1.0, 0.0]]])
    y = native.conv(x, weight, geometry_of([1]), None, 1)
    assert y.tolist() == [[[0.0, 1.0]]]
    assert_equal(x, weight, geometry_of([1]), None, 1)


def test_results_do_not_depend_on_threads_batch_or_instruction_set():
    geometry = geometry_of([3, 3], 1, 1)
    before = torch.get_num_threads()
    for format, bits, rows in [
        ("binary", 1, 70),
        ("binary", 8, 300),
        ("base3", 16, 70),
        ("two_bit", 2, 70),
        ("base3", 1, 70),
    ]:
        weight = random_weight(format, 1, rows, 9 * 40)
        x = random_input((4, 40, 14, 15))
        expected = native.conv(x, weight, geometry, None, bits)
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                assert torch.equal(native.conv(x, weight, geometry, None, bits), expected)
                alone = [native.conv(sample, weight, geometry, None, bits) for sample in x.split(1)]
                assert torch.equal(torch.cat(alone), expected)
        finally:
            torch.set_num_threads(before)
        for name in native.supported_isas():
            native.select_isa(name)
            try:
                assert torch.equal(native.conv(x, weight, geometry, None, bits), expected)
            finally:
                native.select_isa(None)


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_the_longest_sums_are_exact(isa, bits):
    channels = 4096
    geometry = geometry_of([64])
    for format in ("binary", "two_bit", "base3"):
        codes = torch.ones(1, 3, 64 * channels, dtype=torch.int8)
        weight = PackedWeight.from_codes(codes, torch.ones(1, 3, 1), format)
        y = native.conv(torch.full((1, channels, 65), 1.5), weight, geometry, None, bits)
        level = {1: 1, 2: 1, 8: 127, 16: 32512}[bits]
        scale = torch.tensor(1.5) if level == 1 else torch.tensor(1.5) / level
        assert torch.equal(y, torch.full((1, 3, 2), float(64 * channels * level)) * scale)


def test_memory_handed_out_uninitialised_is_written_or_not_read(isa):
    """torch fills new memory with NaN (bytes with 255): workspace and result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan()
        kinds = [("binary", 1), ("binary", 16), ("two_bit", 8), ("base3", 16), ("base3", 2), ("two_bit", 1)]
        for format, bits in kinds:
            for groups, channels, rows in [(1, 33, 21), (3, 8, 21), (21, 1, 1)]:
                geometry = geometry_of([2, 3], 1, 1, groups=groups)
                weight = random_weight(format, 1, rows * groups, 6 * channels)
                assert_equal(random_input((2, groups * channels, 5, 5)), weight, geometry, None, bits)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_memory_format_follows_the_input(bits):
    for kernel, shape in [([3], (2, 6, 9)), ([3, 3], (2, 6, 5, 7)), ([1, 2, 3], (2, 6, 3, 4, 5))]:
        weight = random_weight("binary", 1, 10, 6 * math.prod(kernel))
        geometry = geometry_of(kernel)
        x = random_input(shape)
        y = native.conv(x, weight, geometry, None, bits)
        assert y.is_contiguous()
        if x.dim() > 3:
            last = CHANNELS_LAST[x.dim() - 2]
            y_last = native.conv(x.contiguous(memory_format=last), weight, geometry, None, bits)
            assert y_last.is_contiguous(memory_format=last)
            assert not y_last.is_contiguous()
            torch.testing.assert_close(y_last, y, rtol=0, atol=0 if bits else 1e-4)
            single = x[:, :1].contiguous(memory_format=last)
            assert native.memory_format_of(single) == torch.contiguous_format


@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_empty_batches_and_expanded_inputs(bits):
    geometry = geometry_of([3, 3], 1, 1)
    weight = random_weight("binary", 1, 10, 9 * 6)
    assert native.conv(torch.empty(0, 6, 5, 7), weight, geometry, None, bits).shape == (0, 10, 5, 7)
    x = random_input((1, 6, 1, 7)).expand(3, 6, 5, 7)
    y, expected = native.conv(x, weight, geometry, None, bits), reference(x, weight, geometry, None, bits)
    torch.testing.assert_close(y, expected, rtol=0, atol=0 if bits else 1e-4)


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_float_activations_are_close_to_the_reference(problem):
    x, weight, geometry, bias, _ = problem
    y, expected = native.conv(x, weight, geometry, bias, None), reference(x, weight, geometry, bias, None)
    assert y.dtype == x.dtype
    scale = 1.0 + expected.abs().max().item() if expected.numel() else 1.0
    error = (y.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    assert error <= {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}[x.dtype] * scale
    assert native.last_kernel().split("/")[2:4] == ["float", "decode+conv"]


def test_float_activations_decode_tile_by_tile(monkeypatch):
    """Tiles of whole groups, tiles within a group, and both with rows left over."""
    for elements, groups, rows in [(200, 1, 30), (200, 7, 2), (30, 3, 11), (1, 2, 3)]:
        monkeypatch.setattr(tiles, "TILE_ELEMENTS", elements)
        weight = random_weight("base3", 2, groups * rows, 4 * 5)
        ranges = list(convolution._group_tiles(weight, groups))
        assert len(ranges) >= 2
        assert [begin for _, _, begin, _ in ranges[1:]] == [end for _, _, _, end in ranges[:-1]]
        geometry = geometry_of([2, 2], 1, 1, groups=groups, padding_value=-1.0)
        x, bias = random_input((2, 5 * groups, 4, 4)), torch.randn(groups * rows)
        y = native.conv(x, weight, geometry, bias, None)
        torch.testing.assert_close(y, reference(x, weight, geometry, bias, None), rtol=1e-5, atol=1e-4)


def test_the_kernel_is_named(isa):
    weight = random_weight("binary", 1, 8, 9 * 4)
    geometry = geometry_of([3, 3])
    for size, bits, name in [(3, 1, "sign/gemv"), (9, 8, "int8/gemm"), (9, None, "float/decode+conv")]:
        native.conv(torch.randn(1, 4, size, size), weight, geometry, None, bits)
        assert native.last_kernel() == f"binary_conv/binary/{name}/{isa}"
    native.conv(torch.randn(1, 4, 3, 3), random_weight("base3", 1, 8, 9 * 4), geometry, None, 16)
    assert native.last_kernel() == f"ternary_conv/base3/int16/gemv/{isa}"
