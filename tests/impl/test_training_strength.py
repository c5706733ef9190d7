"""Layers with quantisation blended in: values, gradients, and life as a module meanwhile."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear
from impl.layers.binary_conv import BinaryConv2d
from impl.quantizers import fake_quantize_activations, quantize_activations
from impl.training import at_strength, set_strength, strength_of

LAYERS = [
    pytest.param(BitLinear, {"activation_bits": 8}, id="ternary"),
    pytest.param(BinaryLinear, {"activation_bits": 1}, id="binary-a1"),
    pytest.param(MultiTernaryLinear, {"k": 2, "ste": "clip"}, id="k2"),
]


def build(cls=BitLinear, options=None, **more):
    torch.manual_seed(3)
    return cls(24, 10, **({"activation_bits": 8} if options is None else options), **more)


def inputs(*lead):
    return torch.randn(*lead, 24, generator=torch.Generator().manual_seed(4))


def blended(layer, x, weights, activations):
    """What a layer at these strengths computes, in double precision."""
    w, q = layer.weight.detach().double(), layer_dequantized(layer).double()
    w = w + weights * (q - w)
    if layer.activation_bits is not None:
        x = x + activations * (fake_quantize_activations(x, layer.activation_bits) - x)
    return F.linear(x.double(), w, layer.bias.detach().double()).float()


def layer_dequantized(layer):
    with at_strength(layer, weights=1):
        return layer.dequantize()


@pytest.mark.parametrize(("cls", "options"), LAYERS)
@pytest.mark.parametrize("weights", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("activations", [0.0, 0.6, 1.0])
def test_forward_is_the_blend_in_training_and_in_evaluation(cls, options, weights, activations):
    layer = build(cls, options)
    x = inputs(5)
    expected = blended(layer, x, weights, activations)
    set_strength(layer, weights=weights, activations=activations)
    assert isinstance(layer, cls)
    assert strength_of(layer) == (weights, activations)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_the_ends_are_the_float_and_the_quantised_layer_exactly(cls, options):
    layer, plain = build(cls, options), build(cls, options)
    x = inputs(5)
    set_strength(layer, weights=0, activations=0)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    set_strength(layer, weights=1, activations=1)
    assert torch.equal(layer(x), plain(x))
    assert type(layer) is cls
    assert layer.__dict__.keys() == plain.__dict__.keys()
    assert layer._buffers.keys() == plain._buffers.keys()


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("ste", ["identity", "clip", "approx_sign"])
def test_gradients_are_those_of_the_blend(strength, ste):
    layer = build(BinaryLinear, {"ste": ste, "activation_bits": 1})
    with torch.no_grad():
        layer.weight.mul_(6)  # some weights leave the window of the estimators
    slope = {
        "identity": torch.ones_like(layer.weight),
        "clip": (layer.weight.abs() <= 1).float(),
        "approx_sign": 2 * (1 - layer.weight.abs()).clamp_min(0),
    }[ste].detach()
    x = inputs(6).requires_grad_()
    upstream = torch.randn(6, 10)
    set_strength(layer, weights=strength, activations=strength)
    used = layer.dequantize()
    layer(x).backward(upstream)
    values = x.detach()
    window = (values.abs() <= 2 * values.abs().mean(-1, keepdim=True)).float()
    passed = 1 - strength + strength * window
    torch.testing.assert_close(x.grad, passed * (upstream @ used), rtol=1e-4, atol=1e-5)
    quantized = values + strength * (fake_quantize_activations(values, 1) - values)
    torch.testing.assert_close(
        layer.weight.grad,
        (1 - strength + strength * slope) * (upstream.T @ quantized),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    layer = build().to(dtype)
    expected = blended(copy.deepcopy(layer).float(), inputs(4).to(dtype).float(), 0.5, 0.5)
    set_strength(layer, weights=0.5, activations=0.5)
    y = layer(inputs(4).to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs(4)).dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [None, 1, 2, 8])
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
def test_convolutions_are_blended_as_well(strength, bits):
    torch.manual_seed(3)
    layer = BinaryConv2d(4, 6, (3, 2), padding=1, activation_bits=bits, ste="identity")
    x = torch.randn(2, 4, 7, 5, requires_grad=True)
    latent, quantized = layer.weight.detach(), layer.dequantize()
    set_strength(layer, weights=strength, activations=strength)
    used = layer.dequantize()
    torch.testing.assert_close(used, latent + strength * (quantized - latent))
    samples, border = x.detach(), F.pad(x.detach(), (1, 1, 1, 1))
    if bits == 8:
        scale = samples.abs().amax((1, 2, 3), keepdim=True) / 127
        border = border + strength * ((border / scale).round() * scale - border)
    elif bits == 1:
        signs = torch.where(samples >= 0, 1.0, -1.0) * samples.abs().mean((1, 2, 3), keepdim=True)
        border = border + strength * (F.pad(signs, (1, 1, 1, 1)) - border)
    elif bits == 2:
        q, scale = quantize_activations(samples, 2, (1, 2, 3))
        border = border + strength * (F.pad(q * scale, (1, 1, 1, 1)) - border)
    y = layer(x)
    expected = F.conv2d(border, used, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(expected)
    y.backward(upstream)
    border.requires_grad_()
    (into,) = torch.autograd.grad(F.conv2d(border, used), border, upstream)
    window = torch.ones_like(samples)
    if bits == 1:
        window = (samples.abs() <= 2 * samples.abs().mean((1, 2, 3), keepdim=True)).float()
    elif bits == 2:
        window = (samples.abs() <= 1.5 * quantize_activations(samples, 2, (1, 2, 3))[1]).float()
    into = into * F.pad(1 - strength + strength * window, (1, 1, 1, 1))
    torch.testing.assert_close(x.grad, into[:, :, 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    set_strength(layer, weights=1, activations=1)
    assert type(layer) is BinaryConv2d


def test_dequantize_is_what_forward_uses():
    layer = build(options={}, bias=False)
    q, w = layer.dequantize(), layer.weight.detach()
    set_strength(layer, weights=0.25)
    torch.testing.assert_close(layer.dequantize(), w + 0.25 * (q - w))
    torch.testing.assert_close(layer.dequantize(slice(-3, None)), (w + 0.25 * (q - w))[-3:])
    torch.testing.assert_close(layer(torch.eye(24)), layer.dequantize().T)


def test_the_state_does_not_change_and_packed_states_load():
    layer, packed = build(), build().pack()
    set_strength(layer, weights=0.5)
    assert set(layer.state_dict()) == {"weight", "bias"}
    build().load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(packed.state_dict(), strict=True)
    x = inputs(2)
    with torch.no_grad():
        assert torch.equal(layer(x), packed(x))
        assert torch.equal(layer.dequantize(), packed.dequantize())


def test_copies_keep_their_strength_and_have_their_own(copied):
    layer = build()
    set_strength(layer, weights=0.25, activations=0.75)
    twin = copied(layer)
    x = inputs(3)
    assert torch.equal(twin(x), layer(x))
    set_strength(twin, weights=1, activations=1)
    assert type(twin) is BitLinear
    assert strength_of(layer) == (0.25, 0.75)
    assert not torch.equal(twin(x), layer(x))


def test_moves_keep_the_strength():
    layer = build()
    set_strength(layer, weights=1 / 3, activations=0.5)
    layer.half().float()
    assert layer.weight_strength.item() == pytest.approx(1 / 3, rel=1e-7)
    state = layer.state_dict()
    empty = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty(inputs(2)), layer(inputs(2)))


def test_compiled_layers_follow_the_strength_without_compiling_again():
    layer = build()
    set_strength(layer, weights=0.5, activations=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = inputs(3)
    torch.testing.assert_close(compiled(x), layer(x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.25, 0.75):
            set_strength(layer, weights=value, activations=value)
            torch.testing.assert_close(compiled(x), layer(x))


def test_strengths_set_in_inference_mode_can_be_trained_with():
    layer = build()
    with torch.inference_mode():
        set_strength(layer, weights=0.5)
    layer(inputs(2)).sum().backward()
    assert layer.weight.grad is not None


def test_packing_a_blended_layer_is_refused():
    layer = build()
    set_strength(layer, activations=0.5)
    with pytest.raises(RuntimeError, match="packing quantises fully"):
        layer.pack()
    assert not layer.is_packed
    set_strength(layer, activations=1)
    assert layer.pack().is_packed


def test_at_strength_is_for_the_block_only():
    model = nn.Sequential(build(), nn.ReLU())
    set_strength(model, weights=0.5)
    x = inputs(3)
    with at_strength(model, weights=0, activations=0):
        assert torch.equal(model[0](x), F.linear(x, model[0].weight, model[0].bias))
    assert strength_of(model[0]) == (0.5, 1)
    with pytest.raises(KeyError), at_strength(model, weights=1):
        raise KeyError
    assert strength_of(model[0]) == (0.5, 1)


def test_repr_shows_the_strength():
    layer = build()
    set_strength(layer, weights=0.5)
    assert "strength=0.5/1" in repr(layer)
    set_strength(layer, weights=1)
    assert "strength" not in repr(layer)


def test_subclasses_come_back_to_themselves():
    class Own(BitLinear):
        pass

    layer = build(Own)
    set_strength(layer, weights=0.5)
    assert isinstance(layer, Own)
    set_strength(layer, weights=1)
    assert type(layer) is Own
