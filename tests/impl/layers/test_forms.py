"""Packed and latent form: what each holds, how they turn into each other, and loading either."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, packing
from impl.quantizers import quantize_binary, quantize_k_ternary, quantize_ternary

LAYERS = [
    pytest.param(BinaryLinear, {}, id="binary"),
    pytest.param(BinaryLinear, {"activation_bits": 8, "scale": "tensor"}, id="binary-a8-tensor"),
    pytest.param(BinaryLinear, {"activation_bits": 1, "group_size": 16}, id="binary-a1-groups"),
    pytest.param(BitLinear, {"rule": "optimal"}, id="ternary-base3"),
    pytest.param(BitLinear, {"format": "two_bit", "activation_bits": 8, "rule": "twn"}, id="ternary-two-bit"),
    pytest.param(BitLinear, {"rule": "optimal", "group_size": 24}, id="ternary-groups"),
    pytest.param(BitLinear, {"rule": "optimal", "scale_dtype": torch.float16}, id="ternary-f16-scales"),
    pytest.param(MultiTernaryLinear, {"k": 3, "refit": False}, id="k3"),
    pytest.param(
        MultiTernaryLinear, {"k": 2, "group_size": 16, "activation_bits": 16, "refit": False}, id="k2-groups"
    ),
]


def build(cls, options, in_features=53, out_features=37, **more):
    torch.manual_seed(7)
    return cls(in_features, out_features, **options, **more)


def input_for(layer, *lead):
    return torch.randn(*lead, layer.in_features, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_packing_keeps_the_function(cls, options):
    layer = build(cls, options).eval()
    x = input_for(layer, 4)
    with torch.no_grad():
        before = layer(x)
        layer.pack()
        after = layer(x)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_one_copy_of_the_weight_in_either_form(cls, options):
    layer = build(cls, options)
    assert set(layer.state_dict()) == {"weight", "bias"}
    layer.pack()
    assert layer.weight is None
    assert set(layer.state_dict()) == {"codes", "scales", "packing", "bias"}
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    weight = layer.packed_weight
    assert layer.codes.numel() == packing.codes_bytes(weight.format, weight.components, 37, 53)
    assert packing.read_header(layer.packing) == weight.header
    layer.unpack()
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer.codes is None


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_unpack_restores_the_decoded_values(cls, options):
    layer = build(cls, options).pack()
    decoded = layer.dequantize()
    layer.unpack()
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.requires_grad
    assert torch.equal(layer.weight, decoded)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (BinaryLinear, {}),
        (BitLinear, {"rule": "optimal"}),
        (BitLinear, {"rule": "absmax"}),
        (BitLinear, {"rule": "twn"}),
    ],
)
def test_packing_again_gives_the_same_codes(cls, options):
    layer = build(cls, options).pack()
    codes, scales = layer.codes.clone(), layer.scales.clone()
    layer.unpack().pack()
    assert torch.equal(layer.codes, codes)
    torch.testing.assert_close(layer.scales, scales, rtol=1e-5, atol=0)


def test_packing_again_with_absmean_keeps_codes_and_shrinks_the_scale_as_documented():
    layer = build(BitLinear, {"rule": "absmean"}).pack()
    codes, scale = layer.codes.clone(), layer.scales.item()
    density = layer.W_ternary.abs().mean().item()
    layer.unpack().pack()
    assert torch.equal(layer.codes, codes)
    assert layer.scales.item() == pytest.approx(scale * density, rel=1e-5)


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_forms_load_each_other(cls, options):
    source = build(cls, options)
    latent_state = copy.deepcopy(source.state_dict())
    packed_state = copy.deepcopy(source.pack().state_dict())
    x = input_for(source, 3)
    with torch.no_grad():
        expected = source(x)
    for target in (build(cls, options), build(cls, options).pack()):
        nn.init.zeros_(target.bias)
        target.load_state_dict(packed_state, strict=True)
        assert target.is_packed
        with torch.no_grad():
            assert torch.equal(target(x), expected)
    for target in (build(cls, options), build(cls, options).pack()):
        target.load_state_dict(latent_state, strict=True)
        assert not target.is_packed
        assert torch.equal(target.weight, latent_state["weight"])
        with torch.no_grad():
            assert torch.equal(target.pack()(x), expected)


def test_loading_into_a_called_layer_is_seen_by_the_next_call():
    one, two = build(BitLinear, {}).pack(), build(BitLinear, {})
    nn.init.normal_(two.weight)
    two.pack()
    x = input_for(one, 2)
    with torch.no_grad():
        assert not torch.equal(one(x), two(x))
        one.load_state_dict(two.state_dict())
        assert torch.equal(one(x), two(x))
        one.codes = build(BitLinear, {}).pack().codes
        assert not torch.equal(one(x), two(x))
        one.scales.data = two.scales.data * 2
        one.codes.copy_(two.codes)
        one.bias.zero_()
        two.bias.zero_()
        torch.testing.assert_close(one(x), two(x) * 2)


def test_scale_rows_and_dtype_of_the_state_are_adopted():
    source = BinaryLinear(16, 8, scale="tensor", scale_dtype=torch.float16).pack()
    target = BinaryLinear(16, 8).pack()
    target.load_state_dict(source.state_dict())
    assert target.scales.dtype == target.scale_dtype == torch.float16
    assert torch.equal(target.scales, source.scales)


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        ({"format": "base3"}, {"format": "two_bit"}, "format 'two_bit', this layer has 'base3'"),
        ({}, {"group_size": 16}, "group_size 16, this layer has None"),
    ],
)
def test_foreign_packed_states_are_refused_and_change_nothing(own, other, message):
    target, source = BitLinear(32, 10, **own), BitLinear(32, 10, **other).pack()
    before = target.weight.clone()
    with pytest.raises(RuntimeError, match=message):
        target.load_state_dict(source.state_dict())
    assert torch.equal(target.weight, before)


def test_states_of_another_shape_or_number_of_components_are_refused():
    state = BitLinear(32, 10).pack().state_dict()
    with pytest.raises(RuntimeError, match=r"in_features 32, this layer has 40"):
        BitLinear(40, 10).load_state_dict(state)
    with pytest.raises(RuntimeError, match="components 1, this layer has 2"):
        MultiTernaryLinear(32, 10, k=2).load_state_dict(state)
    with pytest.raises(RuntimeError, match="format 'base3', this layer has 'binary'"):
        BinaryLinear(32, 10).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"weight has shape \[10, 32\]"):
        BitLinear(40, 10).pack().load_state_dict(BitLinear(32, 10).state_dict())


@pytest.mark.parametrize(
    ("index", "value", "message"), [(0, 2, "version 2"), (2, 7, "layout 7"), (1, 9, "format number 9")]
)
def test_newer_and_unknown_headers_are_refused(index, value, message):
    state = BitLinear(32, 10).pack().state_dict()
    state["packing"] = state["packing"].clone()
    state["packing"][index] = value
    with pytest.raises(RuntimeError, match=message):
        BitLinear(32, 10).load_state_dict(state)


@pytest.mark.parametrize("missing", ["codes", "scales", "packing", "bias"])
def test_missing_keys_are_named(missing):
    state = BitLinear(32, 10).pack().state_dict()
    del state[missing]
    with pytest.raises(RuntimeError, match=missing):
        BitLinear(32, 10).pack().load_state_dict(state)


def test_truncated_codes_and_mixed_states_are_refused():
    state = BitLinear(32, 10).pack().state_dict()
    with pytest.raises(RuntimeError, match=r"codes are torch\.uint8"):
        BitLinear(32, 10).load_state_dict({**state, "codes": state["codes"][:-1]})
    with pytest.raises(RuntimeError, match=r"scales are torch\.bfloat16"):
        BitLinear(32, 10).load_state_dict({**state, "scales": state["scales"].bfloat16()})
    with pytest.raises(RuntimeError, match="latent weight and packed codes"):
        BitLinear(32, 10).load_state_dict({**state, "weight": torch.zeros(10, 32)})


def test_dequantize_takes_row_slices():
    for layer in (build(BitLinear, {"rule": "optimal"}), build(MultiTernaryLinear, {"k": 2})):
        for form in (layer, layer.pack()):
            whole = form.dequantize()
            for rows in (slice(0, 5), slice(19, 23), slice(20, None), slice(-3, None), slice(4, 4)):
                assert torch.equal(form.dequantize(rows), whole[rows])
    with pytest.raises(ValueError, match="step 2"):
        layer.dequantize(slice(0, 10, 2))


def test_dequantize_matches_the_quantizers():
    weight = torch.randn(23, 40)
    linear = nn.Linear(40, 23)
    linear.weight.data = weight
    assert torch.equal(
        BinaryLinear.from_linear(linear).dequantize(), quantize_binary(weight, scale="row").dequantize()
    )
    assert torch.equal(
        BitLinear.from_linear(linear).dequantize(), quantize_ternary(weight, rule="optimal").dequantize()
    )
    assert torch.equal(
        MultiTernaryLinear.from_linear(linear, k=3).dequantize(), quantize_k_ternary(weight, 3).dequantize()
    )


def test_pack_and_unpack_twice_are_no_ops_and_return_the_layer():
    layer = build(BitLinear, {})
    assert layer.unpack() is layer
    assert layer.pack() is layer
    codes = layer.codes
    assert layer.pack().codes is codes


def test_nan_weights_and_scales_that_do_not_fit_are_refused_unchanged():
    layer = BitLinear(16, 4)
    layer.weight.data[1, 3] = float("nan")
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        layer.pack()
    assert not layer.is_packed
    with pytest.raises(ValueError, match="NaN"):
        BitLinear.from_linear(_linear_with(float("inf")))
    for magnitude in (1e6, 1e-9):
        small = BinaryLinear(16, 4, scale_dtype=torch.float16)
        nn.init.constant_(small.weight, magnitude)
        with pytest.raises(ValueError, match=r"use torch\.float32"):
            small.pack()


def _linear_with(value):
    linear = nn.Linear(16, 4)
    linear.weight.data[0, 0] = value
    return linear


def test_the_latent_weight_is_named_where_a_packed_layer_is_asked_for_it():
    layer = build(BitLinear, {}).pack()
    with pytest.raises(RuntimeError, match="unpack"):
        layer.reset_parameters()
    with pytest.raises(RuntimeError, match=r"pack\(\) first"):
        build(BitLinear, {}).packed_weight  # noqa: B018


def test_frozen_weights_stay_frozen():
    for trainable in (True, False):
        linear = nn.Linear(16, 8)
        linear.weight.requires_grad_(trainable)
        layer = BitLinear.from_linear(linear)
        assert copy.deepcopy(layer).unpack().weight.requires_grad is trainable
        layer = BitLinear(16, 8)
        layer.weight.requires_grad_(trainable)
        state = layer.state_dict()
        layer.pack().load_state_dict(state)
        assert layer.weight.requires_grad is trainable


def test_from_codes_of_the_wrong_kind_are_refused():
    codes, scales = torch.zeros(3, 8, 8, dtype=torch.int8), torch.ones(3, 8, 1)
    with pytest.raises(ValueError, match="one component, the codes have 3: use MultiTernaryLinear"):
        BitLinear.from_codes(codes, scales)
    with pytest.raises(TypeError, match=r"codes must be a torch\.Tensor, got list"):
        MultiTernaryLinear.from_codes([1], scales)
    with pytest.raises(ValueError, match="the codes are on cpu, their scales on meta"):
        MultiTernaryLinear.from_codes(codes, scales.to("meta"))


def test_from_codes():
    codes = torch.randint(-1, 2, (2, 11, 20), dtype=torch.int8)
    scales = torch.rand(2, 11, 3)
    layer = MultiTernaryLinear.from_codes(
        codes, scales, torch.ones(11), format="two_bit", activation_bits=8, group_size=8
    )
    assert layer.is_packed
    assert torch.equal(layer.W_ternary, codes.float())
    assert torch.equal(layer.gammas, scales)
    assert layer.format == "two_bit"
    single = BitLinear.from_codes(codes[0], torch.ones(1, 1, 1))
    assert single.bias is None
    assert torch.equal(single.dequantize(), codes[0].float())
    binary = BinaryLinear.from_codes(codes[0] * 0 + 1, torch.ones(1, 11, 1).half())
    assert binary.scale_dtype == torch.float16
    with pytest.raises(ValueError, match="binary codes must be"):
        BinaryLinear.from_codes(codes[0] * 0, torch.ones(1, 11, 1))
    with pytest.raises(ValueError, match="scale rows must be 1 or rows = 11, got 7"):
        BitLinear.from_codes(codes[0], torch.ones(1, 7, 1))
    with pytest.raises(ValueError, match="bias must have shape"):
        BitLinear.from_codes(codes[0], torch.ones(1, 11, 1), torch.ones(3))
