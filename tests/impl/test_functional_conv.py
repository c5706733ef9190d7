"""The reference convolutions against loops over positions, and the dispatching ones against them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from impl import functional, native
from impl.geometry import ConvGeometry, from_matrix
from impl.packing import PackedWeight
from impl.quantizers import quantize_activations

PLAIN = ConvGeometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
LIMITS = {8: 127, 16: 32512}


@st.composite
def cases(draw):
    """x, weight, geometry and bias of a small convolution."""
    dims = draw(st.integers(1, 3))

    def sizes(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    kernel, stride, dilation = sizes(1, 3), sizes(1, 3), sizes(1, 2)
    padding = tuple(zip(sizes(0, 2), sizes(0, 2), strict=True))
    groups = draw(st.integers(1, 3))
    geometry = ConvGeometry(
        kernel, stride, padding, dilation, groups, draw(st.sampled_from([-1.0, 0.0, 1.0]))
    )
    spatial = []
    for axis in range(dims):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        spatial.append(max(1, reach - sum(padding[axis])) + draw(st.integers(0, 3)))
    channels, rows = draw(st.integers(1, 5)), groups * draw(st.integers(1, 4))
    format = draw(st.sampled_from(["binary", "two_bit", "base3"]))
    components = 1 if format == "binary" else draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    weight = random_weight(format, components, rows, geometry.taps * channels, generator, draw(st.booleans()))
    x = torch.randn(draw(st.integers(0, 2)), groups * channels, *spatial, generator=generator)
    x = x * draw(st.sampled_from([1e-7, 0.3, 20.0]))
    bias = torch.randn(rows, generator=generator) if draw(st.booleans()) else None
    return x, weight, geometry, bias


def random_weight(format, components, rows, cols, generator, per_row=True):
    low = 0 if format == "binary" else -1
    codes = torch.randint(low, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    codes = codes * 2 - 1 if format == "binary" else codes
    scales = torch.rand(components, rows if per_row else 1, 1, generator=generator) + 0.1
    return PackedWeight.from_codes(codes, scales, format)


def quantized_by_hand(sample, bits, geometry):
    """Integers of one sample, what its border holds, and its scale, in numpy's float32."""
    if bits == 1:
        scale = np.float32(np.abs(sample.astype(np.float64)).mean())
        return np.where(sample >= 0, 1.0, -1.0), geometry.padding_value, scale
    if bits == 2:
        magnitudes = np.abs(sample)
        kept = magnitudes > np.float32(0.75 * magnitudes.astype(np.float64).mean())
        scale = np.float32(magnitudes[kept].astype(np.float64).mean() if kept.any() else 0.0)
        return np.sign(sample) * kept, geometry.padding_value, scale
    border = abs(geometry.padding_value) if geometry.pads else 0.0
    amax = np.float32(max(np.abs(sample).max(), 1e-5, border))
    limit = np.float32(LIMITS[bits])
    q = np.clip(np.rint(sample * (limit / amax)), -limit, limit).astype(np.float64)
    edge = np.clip(np.rint(np.float32(geometry.padding_value) * (limit / amax)), -limit, limit)
    return q, float(edge), np.float32(amax / limit)


def by_hand(x, weight, geometry, bias, bits):
    """The convolution position by position: nothing of torch's convolutions, paddings or views."""
    codes = from_matrix(weight.unpack(), geometry).numpy().astype(np.float64)
    scales = weight.scales.expand(-1, weight.rows, -1)[..., 0].numpy()
    outer, inner = weight.rows // geometry.groups, x.shape[1] // geometry.groups
    size = geometry.output_size(tuple(x.shape[2:]))
    y = np.zeros((x.shape[0], weight.rows, *size), np.float32)
    for n, sample in enumerate(x.numpy()):
        q, edge, activation_scale = quantized_by_hand(sample, bits, geometry)
        for row, place in itertools.product(range(weight.rows), itertools.product(*map(range, size))):
            first = row // outer * inner
            total = np.float32(0)
            for component, scale in zip(codes[:, row], scales[:, row], strict=True):
                dot = 0.0
                for tap in itertools.product(*map(range, geometry.kernel)):
                    at = [
                        p * s + t * d - before
                        for p, s, t, d, (before, _) in zip(
                            place, geometry.stride, tap, geometry.dilation, geometry.padding, strict=True
                        )
                    ]
                    inside = all(0 <= i < length for i, length in zip(at, sample.shape[1:], strict=True))
                    values = q[(slice(first, first + inner), *at)] if inside else np.full(inner, edge)
                    dot += float(values @ component[(slice(None), *tap)])
                total = np.float32(total + np.float32(scale * np.float32(dot)))
            value = np.float32(total * activation_scale)
            y[(n, row, *place)] = value if bias is None else np.float32(value + np.float32(bias[row]))
    return torch.from_numpy(y)


def python_of(weight):
    return functional.binary_conv_python if weight.format == "binary" else functional.ternary_conv_python


def operator_of(weight):
    return functional.binary_conv if weight.format == "binary" else functional.ternary_conv


@settings(max_examples=35, deadline=None)
@given(cases(), st.sampled_from([1, 2, 8, 16]))
def test_integer_activations_are_exact(case, bits):
    """Defects D4 (rectangular and dilated convolutions of the wrong shape or value) and D5 (wrong layout,
    wrong channel count, no K - 2p)."""
    x, weight, geometry, bias = case
    y = python_of(weight)(x, weight, geometry, bias, bits)
    assert torch.equal(y, by_hand(x, weight, geometry, bias, bits))


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([None, 1, 2, 8, 16]), st.sampled_from(["contiguous", "last", "cut"]))
def test_every_backend_gives_the_bits_of_the_reference(case, bits, layout):
    x, weight, geometry, bias = case
    if layout == "last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "cut":
        x = torch.cat([x, x], dim=2)[:, :, : x.shape[2]]
    y = operator_of(weight)(x, weight, geometry, bias, bits)
    expected = python_of(weight)(x.contiguous(), weight, geometry, bias, bits)
    if bits is None:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(y, expected)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_float_activations_are_the_convolution_with_the_decoded_weight(case):
    x, weight, geometry, bias = case
    decoded = weight.unpack().double() * weight.scales.double()
    kernel = from_matrix(decoded.sum(0), geometry)
    padded = F.pad(x.double(), geometry.torch_padding(), value=geometry.padding_value)
    plain = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[geometry.dims]
    expected = plain(padded, kernel, None if bias is None else bias.double(), geometry.stride, 0,
                     geometry.dilation, geometry.groups)  # fmt: skip
    y = python_of(weight)(x, weight, geometry, bias)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def ones(rows=1, channels=1, taps=9, format="binary"):
    codes = torch.ones(1, rows, taps * channels, dtype=torch.int8)
    return PackedWeight.from_codes(codes, torch.ones(1, rows, 1), format)


@pytest.mark.parametrize(("value", "corner", "edge"), [(-1.0, -1.0, 3.0), (0.0, 4.0, 6.0), (1.0, 9.0, 9.0)])
def test_border_of_signs(value, corner, edge):
    """Oracle: all +1, kernel 3 x 3. A corner sees four positions of the image and five of the border, an
    edge six and three: 4 + 5 v and 6 + 3 v."""
    geometry = ConvGeometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, value)
    y = functional.binary_conv_python(torch.ones(1, 1, 3, 3), ones(), geometry, None, 1)
    assert y[0, 0].tolist() == [[corner, edge, corner], [edge, 9.0, edge], [corner, edge, corner]]


def test_the_border_of_integers_is_quantised_with_its_sample():
    geometry = ConvGeometry((3,), (1,), ((1, 1),), (1,), 1, 1.0)
    x = torch.tensor([[[0.25, 0.25]], [[4.0, 4.0]]])
    y = functional.binary_conv_python(x, ones(taps=3), geometry, None, 8)
    # 0.25 beside a border of 1 is 32 of 127; a border of 1 beside 4 is 32 of 127 quarters.
    assert torch.equal(y[0, 0], torch.full((2,), (127 + 32 + 32) * (1 / 127)))
    assert torch.equal(y[1, 0], torch.full((2,), 127 + 127 + 32) * torch.tensor(4.0).div(127))
    unpadded = ConvGeometry((2,), (1,), ((0, 0),), (1,), 1, 1.0)
    y = functional.binary_conv_python(x[:1], ones(taps=2), unpadded, None, 8)
    assert y.item() == pytest.approx(0.5, rel=1e-6)  # no border: it does not widen the range


def test_zero_counts_as_plus_one():
    """Defect D14: 0 and -0.0 are +1, in the convolution as in its gradient."""
    x = torch.tensor([[[0.0, -0.0, -2.0]]], requires_grad=True)
    geometry = ConvGeometry((1,), (1,), ((0, 0),), (1,))
    y = functional.binary_conv(x, ones(taps=1), geometry, None, 1)
    assert torch.equal(y.sign().flatten(), torch.tensor([1.0, 1.0, -1.0]))
    y.sum().backward()
    assert x.grad.flatten().tolist() == [1.0, 1.0, 0.0]  # 2 is beyond twice the mean 2/3


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_value_spoils_its_sample_only(bits, bad):
    torch.manual_seed(0)
    weight = random_weight("binary", 1, 5, 27, torch.Generator().manual_seed(0))
    x = torch.randn(3, 3, 6, 5)
    clean = functional.binary_conv(x, weight, PLAIN, None, bits)
    x[1, 2, 3, 4] = bad
    y = functional.binary_conv(x, weight, PLAIN, None, bits)
    assert torch.isnan(y[1]).all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_half_precision_is_rounded_once_at_the_end(dtype, bits):
    torch.manual_seed(1)
    weight = random_weight("binary", 1, 5, 27, torch.Generator().manual_seed(0))
    x, bias = torch.randn(2, 3, 6, 5).to(dtype), torch.randn(5)
    y = functional.binary_conv_python(x, weight, PLAIN, bias, bits)
    assert y.dtype == dtype
    assert torch.equal(y, functional.binary_conv_python(x.float(), weight, PLAIN, bias, bits).to(dtype))


@pytest.mark.parametrize("components", [1, 4])
def test_the_largest_sums_are_exact(components):
    """3 x 3 taps of 4096 channels at full scale: beyond what float32 counts, within int32."""
    codes = torch.ones(components, 2, 9 * 4096, dtype=torch.int8)
    weight = PackedWeight.from_codes(codes, torch.full((components, 1, 1), 0.5), "base3")
    x = torch.ones(1, 4096, 3, 3)
    for bits, limit in LIMITS.items():
        y = functional.ternary_conv(x, weight, PLAIN, None, bits)
        assert torch.equal(y, functional.ternary_conv_python(x, weight, PLAIN, None, bits))
        scale = quantize_activations(torch.ones(1, 1), bits)[1]
        term = torch.tensor(9.0 * 4096 * limit, dtype=torch.float64).float() * 0.5
        assert y[0, 0, 1, 1] == sum([term] * components) * scale


def test_operands_that_do_not_belong_together_are_refused():
    generator = torch.Generator().manual_seed(0)
    binary = random_weight("binary", 1, 4, 18, generator)
    ternary = random_weight("base3", 2, 4, 18, generator)
    x = torch.randn(2, 2, 5, 5)
    wrong = [
        ((x, ternary, PLAIN), ValueError, "call ternary_conv"),
        ((x, binary, PLAIN, None, 4), ValueError, "activation_bits must be one of 1, 2, 8, 16, got 4"),
        ((x, binary, PLAIN, None, True), ValueError, "activation_bits must be one of 1, 2, 8, 16, got True"),
        ((x.double(), binary, PLAIN), TypeError, "float64"),
        (([[1.0]], binary, PLAIN), TypeError, "must be a torch.Tensor, got list"),
        ((x[0], binary, PLAIN), ValueError, r"2 spatial dimensions, got shape \(2, 5, 5\)"),
        ((x[:, :1], binary, PLAIN), ValueError, "in_channels = 2 in its second dimension, got 1"),
        ((x[:, :, :0], binary, PLAIN), ValueError, "no positions"),
        ((x, binary, PLAIN, torch.zeros(3)), ValueError, r"bias must have shape \[4\]"),
        ((x, binary, PLAIN, torch.zeros(4, dtype=torch.int64)), TypeError, "bias must be floating"),
        ((x[..., :1], binary, ConvGeometry((3, 3), (1, 1), ((0, 0),) * 2, (1, 1))), ValueError, "1 long in"),
        ((x, binary, ConvGeometry((5, 1), (1, 1), ((0, 0),) * 2, (1, 1))), ValueError, "18 columns is none"),
        ((x, binary, ConvGeometry((3, 3), (1, 1), ((0, 0),) * 2, (1, 1), 3)), ValueError, "into 3 groups"),
        (
            (x, PackedWeight.from_codes(binary.unpack(), torch.ones(1, 4, 3), "binary", 8), PLAIN),
            ValueError,
            "group_size=8",
        ),
    ]
    for function in (functional.binary_conv_python, functional.binary_conv):
        for arguments, error, message in wrong:
            with pytest.raises(error, match=message):
                function(*arguments)
    for function in (functional.ternary_conv_python, functional.ternary_conv):
        with pytest.raises(ValueError, match="call binary_conv"):
            function(x, binary, PLAIN)
        with pytest.raises(ValueError, match="one of 1, 2, 8, 16, got 4"):
            function(x, ternary, PLAIN, None, 4)


def test_the_reference_serves_where_the_backend_says_so():
    weight = random_weight("binary", 1, 4, 18, torch.Generator().manual_seed(0))
    with native.backend("torch"):
        functional.binary_conv(torch.randn(1, 2, 5, 5), weight, PLAIN, None, 1)
    assert native.last_kernel() == "binary_conv/binary/sign/reference/torch"
