"""Life as a module: moves, casts, copies, files, autocast, compilation, export, states."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

from impl.layers.nbit import GroupwiseLinear, MixedGroupwiseLinear, NBitConv2d, NBitLinear
from impl.layers.nbit.states import header

INTEGER = {
    "linear": (lambda **f: NBitLinear(6, 5, **f), (3, 6)),
    "linear-learned": (lambda **f: NBitLinear(7, 5, weight_bits=8, activation_scale="learned", **f), (3, 7)),
    "linear-float": (lambda **f: NBitLinear(7, 5, activation_bits=None, **f), (3, 7)),
    "conv": (lambda **f: NBitConv2d(3, 4, 3, padding=1, **f), (2, 3, 5, 6)),
}
GROUPWISE = {
    "groupwise": (lambda **f: GroupwiseLinear(40, 5, group_size=8, **f), (3, 40)),
    "mixed": (lambda **f: MixedGroupwiseLinear(64, 5, **f), (3, 64)),
}
ALL = {**INTEGER, **GROUPWISE}
PACKED = [(name, packed) for name in INTEGER for packed in (False, True)]
FORMS = PACKED + [(name, False) for name in GROUPWISE]


def build(name, packed=False, **factory):
    torch.manual_seed(5)
    make, shape = ALL[name]
    layer = make(**factory)
    if getattr(layer, "scale_a", None) is not None and not layer.scale_a.is_meta:
        layer(torch.randn(shape).to(layer.weight_dtype))
    return layer.pack() if packed else layer, shape


def same_function(one, other, shape, dtype=torch.float32):
    x = torch.randn(shape).to(dtype)
    with torch.no_grad():
        return torch.equal(one(x), other(x))


@pytest.mark.parametrize(("name", "packed"), FORMS)
def test_copies(name, packed, copied):
    layer, shape = build(name, packed)
    twin = copied(layer)
    assert same_function(layer, twin, shape)
    with torch.no_grad():
        twin.bias.add_(1)
    assert not same_function(layer, twin, shape)


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize(("name", "packed"), FORMS)
def test_states_through_files(name, packed, into):
    layer, shape = build(name, packed)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = ALL[name][0]()
    if into and name in INTEGER:
        twin.pack()
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert same_function(layer, twin, shape)
    if name in INTEGER:
        assert twin.is_packed is packed


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16])
@pytest.mark.parametrize("name", list(ALL))
def test_casts_leave_codes_and_scales_alone(name, cast):
    layer, shape = build(name, name in INTEGER)
    before = {
        key: tensor.clone() for key, tensor in layer.state_dict().items() if key in ("qweight", "scales")
    }
    cast(layer)
    after = layer.state_dict()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor)
        assert after[key].dtype == tensor.dtype
    dtype = layer.bias.dtype
    assert dtype != torch.float32
    y = layer(torch.randn(shape).to(dtype))
    assert y.dtype == dtype
    y.float().sum().backward()
    assert layer.bias.grad.dtype == dtype
    if name in INTEGER:
        assert layer.unpack().weight.dtype == dtype


@pytest.mark.parametrize(("name", "packed"), FORMS)
def test_autocast(name, packed):
    layer, shape = build(name, packed)
    x = torch.randn(shape)
    expected = layer(x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)
    if name in ("linear", "linear-learned", "conv"):
        assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("name", "packed"),
    [("linear", False), ("linear-learned", True), ("conv", True), ("groupwise", False)],
)
def test_compiled_whole(name, packed):
    layer, shape = build(name, packed)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(shape, requires_grad=True)
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_exported(name):
    layer, shape = build(name, True)
    x = torch.randn(shape)
    with torch.no_grad():
        program = torch.export.export(layer.eval(), (x,))
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("name", list(ALL))
def test_meta_device(name):
    with torch.device("meta"):
        layer, shape = build(name)
    assert layer.weight.is_meta
    assert layer(torch.empty(shape, device="meta")).shape == build(name)[0](torch.randn(shape)).shape
    real, _ = build(name, name in INTEGER)
    if name in INTEGER:
        layer.pack()
        assert layer.qweight.shape == real.qweight.shape
    empty = layer.to_empty(device="cpu")
    empty.load_state_dict(real.state_dict())
    assert same_function(empty, real, shape)
    assigned, _ = build(name, device="meta")
    assigned.load_state_dict(real.state_dict(), assign=True)
    assert same_function(assigned, real, shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": torch.tensor([2, 4, 5, 6])}, "version 2, this layer 1: use the release"),
        ({"layout": torch.tensor([1, 8, 5, 6])}, "weight_bits 8, this layer 4"),
        ({"layout": torch.tensor([1, 4, 5, 7])}, "columns 7, this layer 6"),
        ({"layout": torch.zeros(3)}, r"int64 \[4\]"),
        ({"layout": torch.zeros(4, dtype=torch.int64, device="meta")}, "cannot be checked"),
        ({"qweight": torch.zeros(5, 2, dtype=torch.uint8)}, r"\[5, 2\], the layout says uint8 \[5, 3\]"),
        ({"qweight": torch.zeros(5, 3, dtype=torch.int8)}, "int8"),
        ({"qweight": torch.full((5, 3), 0x88, dtype=torch.uint8)}, "codes -8 .. -8; 4 bits give -7 .. 7"),
        ({"scales": torch.ones(1)}, r"this layer has float32 \[5\]"),
        ({"scales": torch.full((5,), math.nan)}, "NaN, infinite or negative"),
        ({"scales": -torch.ones(5)}, "NaN, infinite or negative"),
        ({"weight": torch.ones(5, 6)}, "keep one of them"),
    ],
)
def test_damaged_states(change, message):
    layer = NBitLinear(6, 5).pack()
    before = layer.dequantize()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**layer.state_dict(), **change})
    assert torch.equal(layer.dequantize(), before)


def test_nothing_may_lie_behind_the_last_column():
    layer = NBitLinear(5, 2).pack()
    state = layer.state_dict()
    state["qweight"] = state["qweight"].clone()
    state["qweight"][0, 2] |= 0x10
    with pytest.raises(RuntimeError, match="behind the last column"):
        NBitLinear(5, 2).load_state_dict(state)


def test_loading_is_strict_in_both_forms():
    layer = NBitLinear(6, 5).pack()
    state = layer.state_dict()
    assert torch.equal(state["layout"], header(4, 5, 6))
    del state["scales"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        NBitLinear(6, 5).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"weight has shape \[5, 7\]"):
        layer.load_state_dict(NBitLinear(7, 5).state_dict())
    assert layer.is_packed
