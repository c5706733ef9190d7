"""Layers that hand each other signs: what the network without that computes, to the last bit."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threshold_networks import NORMS, assert_fused, layer_of, norm_of, sign_of
from torch import nn

import impl
from impl import native, signs
from impl.layers.activations import SteSign
from impl.thresholds import find_thresholds, fuse_thresholds


@st.composite
def networks(draw):
    """Three layers with what stands between them, and an input."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    dims = draw(st.sampled_from([0, 0, 1, 2, 2, 2, 3]))
    ties = draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, 2, 3])) if dims else 1
    widths = [groups * draw(st.sampled_from([1, 2, 5, 8, 16, 21, 33, 64, 65])) for _ in range(3)]
    widths.append(draw(st.sampled_from([1, 4, 10])) * groups)
    depthwise = dims > 0 and draw(st.integers(0, 4)) == 0
    if depthwise:
        widths = [widths[1]] * 4
    modules = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        kind = draw(st.sampled_from(["binary", "binary", "ternary", "k_ternary"]))
        bits = 1 if i else draw(st.sampled_from([None, 1, 2, 8, 16]))
        options = {}
        if kind != "binary":
            options["format"] = draw(st.sampled_from(["base3", "two_bit"]))
        if dims:
            options |= {
                "groups": inputs if depthwise else groups,
                "kernel": tuple(draw(st.sampled_from([1, 2, 3])) for _ in range(dims)),
                "padding": draw(st.integers(1, 2)),
                "padding_value": draw(st.sampled_from([-1, 0, 1])),
                "stride": draw(st.sampled_from([1, 1, 2])),
            }
        modules.append(
            layer_of(dims, kind, inputs, outputs, bits, generator, draw(st.booleans()), ties, **options)
        )
        if i == 2:
            break
        if draw(st.integers(0, 4)):
            modules.append(norm_of(dims, outputs, generator, ties))
        if draw(st.integers(0, 4)) == 0:
            modules.append(draw(st.sampled_from([nn.Hardtanh, nn.Identity]))())
        name = draw(st.sampled_from(["ste", "approx", "swish", "rsign"]))
        modules.append(sign_of(name, outputs, generator))
    x = torch.randn(draw(st.integers(0, 4)), widths[0], *(5, 6, 4)[:dims], generator=generator)
    x = x * draw(st.sampled_from([1.0, 20.0, 1e30]))
    if len(x) > 1 and draw(st.booleans()):
        x[1].view(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    if dims == 2 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    net = nn.Sequential(*modules).eval()
    if draw(st.booleans()):
        net = net.to(dtype)
    return net, x.to(dtype), dtype


@settings(max_examples=60, deadline=None)
@given(problem=networks(), isa=st.integers(0, 3), threads=st.sampled_from([1, 2, 5]))
def test_equals_the_network_to_the_bit(problem, isa, threads):
    before = torch.get_num_threads()
    if native.available():
        isas = native.supported_isas()
        native.select_isa(isas[isa % len(isas)])
    torch.set_num_threads(threads)
    try:
        assert_fused(*problem)
    finally:
        torch.set_num_threads(before)
        if native.available():
            native.select_isa(None)


def test_results_that_overflow_are_no_numbers():
    """From a finite input, too: the sign of an infinity is NaN, and NaN must reach the end."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        layer_of(2, "binary", 3, 9, 8, generator),
        norm_of(2, 9, generator),
        SteSign(),
        layer_of(2, "binary", 9, 4, 1, generator),
    ).eval()
    net[1].weight.data[3] = 1e30
    x = torch.randn(3, 3, 5, 5, generator=generator)
    x[1] *= 1e15
    x[2] *= 1e36
    assert_fused(net, x, layers=2)
    y = net(x)
    assert not bool(y[0].isnan().any())
    assert bool(y[1:].isnan().all())


@pytest.mark.parametrize("gamma", [1.0, -1.0])
@pytest.mark.parametrize("dims", [0, 2])
def test_ties_go_to_plus(dims, gamma):
    """Results that batch norm makes exactly 0 of, from either side: +1 as the sign has it."""
    codes = torch.ones(1, 2, 8, *(1,) * dims, dtype=torch.int8)
    cls = impl.BinaryConv2d if dims else impl.BinaryLinear
    first = cls.from_codes(codes, torch.ones(1, 2, 1), activation_bits=1)
    norm = NORMS[dims](2, eps=0.0).eval()
    norm.running_mean.fill_(2.0)
    norm.weight.data.fill_(gamma)
    last = cls.from_codes(codes[:, :1, :2], torch.ones(1, 1, 1), activation_bits=1)
    x = torch.ones(3, 8, *(1,) * dims)  # sums of 0, 2 and 4
    for row, minus in enumerate((4, 3, 2)):
        x[row, :minus] = -1.0
    net = nn.Sequential(first, norm, SteSign(), last)
    expected = torch.tensor([-2.0, 2.0, 2.0]) if gamma > 0 else torch.tensor([2.0, 2.0, -2.0])
    assert torch.equal(net(x).flatten(), expected)
    assert torch.equal(assert_fused(net, x, layers=2)(x).flatten(), expected)


def neighbours(values):
    up = torch.nextafter(values, torch.tensor(math.inf))
    return [values, up, torch.nextafter(values, torch.tensor(-math.inf))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ste", "rsign"])
def test_intervals_end_where_the_sign_turns(dtype, name):
    """At their very ends, next to them and anywhere else, in 200 channels."""
    generator = torch.Generator().manual_seed(3)
    layer = layer_of(2, "binary", 4, 200, 8, generator)
    modules = [norm_of(2, 200, generator), sign_of(name, 200, generator)]
    found = find_thresholds(layer, modules, dtype)
    assert all(part.dtype == torch.float32 and part.shape == (200,) for part in found)
    for end in (*found, torch.randn(200, generator=generator) * 5, torch.zeros(200)):
        for y in neighbours(end):
            with torch.no_grad():
                expected = modules[1](modules[0](y.to(dtype).view(1, 200, 1, 1))).flatten().float()
            plus, number = (y >= found.lower) & (y <= found.upper), (y >= found.least) & (y <= found.most)
            assert torch.equal(number, ~expected.isnan())
            assert torch.equal(plus[number], expected[number] > 0)
    assert bool(found.lower[0] == -found.upper[0])  # gamma 0: everything or nothing


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("format", ["binary", "base3", "two_bit"])
def test_threads_share_no_byte(format, groups):
    """Enough work for several threads, groups and blocks that end within a byte; every number of threads
    gives the same bits, none of them that of another row."""
    generator = torch.Generator().manual_seed(1)
    kind = "binary" if format == "binary" else "ternary"
    rows = 61 * groups
    first = layer_of(2, kind, 32 * groups, rows, 1, generator, format=format, groups=groups, padding=1)
    net = nn.Sequential(
        first,
        norm_of(2, rows, generator),
        SteSign(),
        layer_of(2, "binary", rows, rows, 1, generator, padding=1, groups=groups),
    ).eval()
    x = torch.randn(4, 32 * groups, 14, 14, generator=generator)
    expected = net(x)
    fused = fuse_thresholds(copy.deepcopy(net))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for _ in range(3):
                assert torch.equal(fused(x), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("format", ["binary", "base3"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_linear_threads_share_no_byte(format, tokens):
    generator = torch.Generator().manual_seed(1)
    kind = "binary" if format == "binary" else "ternary"
    net = nn.Sequential(
        layer_of(0, kind, 2100, 1503, 1, generator, format=format),
        norm_of(0, 1503, generator),
        SteSign(),
        layer_of(0, kind, 1503, 37, 1, generator, format=format),
    ).eval()
    x = torch.randn(tokens, 2100, generator=generator)
    expected = net(x)
    fused = fuse_thresholds(copy.deepcopy(net))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            assert torch.equal(fused(x), expected)
    finally:
        torch.set_num_threads(before)


def test_signs_there_and_back():
    """Bits least significant first, channels last, unused bits 0, NaN where a value was none."""
    thresholds = signs.Thresholds(
        torch.zeros(9), torch.full((9,), math.inf), torch.full((9,), -5.0), torch.full((9,), 5.0)
    )
    y = torch.tensor([[1.0, -1, 1, 1, -1, -1, -1, 1, 1], [1.0, -1, 1, 1, -1, -1, -1, 1, 6]])
    made = thresholds.signs_of(y, image=False)
    assert made.bits.tolist() == [[0b10001101, 1], [0b10001101, 1]]
    assert made.scale[0] == 1
    assert bool(made.scale[1].isnan())
    back = made.to_float(torch.float32, image=False)
    assert torch.equal(back[0], y[0])
    assert bool(back[1].isnan().all())
    image = thresholds.signs_of(y.view(2, 9, 1, 1).expand(2, 9, 2, 3), image=True)
    assert image.bits.shape == (2, 2, 3, 2)
    assert torch.equal(image.to_float(torch.float32, image=True)[0], y[0].view(9, 1, 1).expand(9, 2, 3))


def test_what_torch_defaults_to_makes_no_difference():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        layer_of(0, "binary", 21, 33, 8, generator, True, False),
        norm_of(0, 33, generator, False),
        SteSign(),
        layer_of(0, "binary", 33, 10, 1, generator, True, False),
    ).eval()
    x = torch.randn(5, 21, generator=generator)
    expected = net(x)
    torch.set_default_dtype(torch.float64)
    try:
        fused = fuse_thresholds(copy.deepcopy(net))
        with torch.device("meta"):
            y = fused(x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": torch.zeros(2, 3, dtype=torch.uint8)}, ValueError, "21|33 channels take"),
        ({"bits": torch.zeros(2, 5, dtype=torch.int8)}, TypeError, "uint8 bits"),
        ({"scale": torch.ones(3)}, ValueError, "have a scale"),
        ({"scale": torch.ones(2, dtype=torch.float16)}, TypeError, "float32 scale"),
    ],
)
def test_signs_that_are_none_are_refused(change, error, message):
    made = signs.Signs(torch.zeros(2, 5, dtype=torch.uint8), torch.ones(2), 33)
    made.check(image=False)
    with pytest.raises(error, match=message):
        made._replace(**change).check(image=False)
