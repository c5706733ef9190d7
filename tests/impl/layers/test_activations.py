"""The estimators as modules, and ReActNet's trainable sign and PReLU."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.layers.activations import (
    ApproxSign,
    DoReFa,
    MagnitudeAwareSign,
    RPReLU,
    RSign,
    SteHeaviside,
    SteSign,
    SteTern,
    SwishSign,
    hard_tanh,
    leaky_tanh,
)
from impl.quantizers import sign
from impl.quantizers.dorefa import dorefa


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (SteSign(), sign.ste_sign),
        (SteSign(0.5), lambda x: sign.ste_sign(x, 0.5)),
        (ApproxSign(), sign.approx_sign),
        (SwishSign(), sign.swish_sign),
        (SwishSign(2.0), lambda x: sign.swish_sign(x, 2.0)),
        (SteHeaviside(None), lambda x: sign.ste_heaviside(x, None)),
        (MagnitudeAwareSign(channel_dim=1), lambda x: sign.magnitude_aware_sign(x, channel_dim=1)),
        (SteTern(0.3, clip_value=0.8), lambda x: sign.ste_tern(x, 0.3, clip_value=0.8)),
        (SteTern(ternary_weight_networks=True), lambda x: sign.ste_tern(x, 0.05, True)),
        (DoReFa(3), lambda x: dorefa(x, 3)),
        (DoReFa(2, "weights"), lambda x: dorefa(x, 2, "weights")),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else "function",
)
def test_modules_are_their_functions(module, function):
    torch.manual_seed(0)
    x = torch.randn(5, 7)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    upstream = torch.randn(5, 7)
    y, expected = copy.deepcopy(module)(one), function(two)
    assert torch.equal(y, expected)
    y.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(one.grad, two.grad)
    assert not module.state_dict()


def test_defaults_are_those_of_larq():
    def defaults(callable_):
        parameters = inspect.signature(callable_).parameters.items()
        return {name: p.default for name, p in parameters if p.default is not p.empty}

    for module, function, expected in (
        (SteSign, sign.ste_sign, {"clip_value": 1.0}),
        (SwishSign, sign.swish_sign, {"beta": 5.0}),
        (SteHeaviside, sign.ste_heaviside, {"clip_value": 1.0}),
        (MagnitudeAwareSign, sign.magnitude_aware_sign, {"clip_value": 1.0, "channel_dim": 0}),
        (
            SteTern,
            sign.ste_tern,
            {"threshold_value": 0.05, "ternary_weight_networks": False, "clip_value": 1.0},
        ),
        (DoReFa, dorefa, {"k_bit": 2, "mode": "activations"}),
    ):
        assert defaults(module) == defaults(function) == expected


def test_modules_show_and_check_their_arguments():
    assert "clip_value=0.5" in repr(SteSign(0.5))
    assert "k_bit=4, mode=weights" in repr(DoReFa(4, "weights"))
    assert "dim=-1" in repr(RSign(3, dim=-1))
    for make in (lambda: SteSign(-1.0), lambda: SwishSign(0.0), lambda: SteTern(clip_value=0.0)):
        with pytest.raises(ValueError, match="must be a positive number"):
            make()
    with pytest.raises(ValueError, match="threshold_value must be"):
        SteTern(-0.1)
    with pytest.raises(ValueError, match="k_bit"):
        DoReFa(0)
    with pytest.raises(ValueError, match="DoReFa mode"):
        DoReFa(2, "bias")
    with pytest.raises(ValueError, match="channels must be at least 1"):
        RSign(0)


def test_hard_and_leaky_tanh():
    x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 2.0], requires_grad=True)
    assert hard_tanh(x).tolist() == [-1, -1, 0.5, 1, 1]
    (slope,) = torch.autograd.grad(hard_tanh(x).sum(), x)
    assert slope.tolist() == [0, 1, 1, 1, 0]
    torch.testing.assert_close(leaky_tanh(x), torch.tensor([-1.4, -1, 0.5, 1, 1.2]))
    (slope,) = torch.autograd.grad(leaky_tanh(x).sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0.2, 1, 1, 1, 0.2]))
    torch.testing.assert_close(leaky_tanh(x, 0.5)[0], torch.tensor(-2.0))


CHANNELS = [pytest.param(1, (2, 3, 4, 5), id="nchw"), pytest.param(-1, (2, 5, 3), id="last")]


@pytest.mark.parametrize(("dim", "shape"), CHANNELS)
def test_rsign_has_a_threshold_per_channel(dim, shape):
    torch.manual_seed(0)
    layer = RSign(3, dim)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-0.5, 0.0, 0.5]))
    x = torch.randn(shape)
    for channel, threshold in enumerate((0.5, 0.0, -0.5)):
        part = x.select(dim, channel)
        assert torch.equal(layer(x).select(dim, channel), torch.where(part >= threshold, 1.0, -1.0))


@pytest.mark.parametrize(("dim", "shape"), CHANNELS)
def test_gradients_of_rsign_are_those_of_its_parabola(dim, shape):
    torch.manual_seed(0)
    layer = RSign(3, dim)
    nn.init.normal_(layer.bias)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(shape)
    layer(x).backward(upstream)
    found = x.grad, layer.bias.grad
    view = [1] * len(shape)
    view[dim] = 3
    u = (x + layer.bias.view(view)).clamp(-1, 1)
    expected = torch.autograd.grad((2 * u - u * u.abs()), (x, layer.bias), upstream)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_rsign_is_plus_one_at_its_threshold():
    """D14, as in ReActNet, whose torch.sign puts zeros into binary convolutions."""
    layer = RSign(2)
    y = layer(torch.zeros(1, 2, 3, 3))
    assert torch.equal(y, torch.ones(1, 2, 3, 3))
    y.sum().backward()
    assert layer.bias.grad.tolist() == [18, 18]


@pytest.mark.parametrize(("dim", "shape"), CHANNELS)
def test_rprelu_is_a_shifted_prelu(dim, shape):
    torch.manual_seed(0)
    layer = RPReLU(3, dim=dim)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(shape)
    # PReLU of torch takes its channels in dimension 1.
    turned = x.movedim(dim, 1)
    column = (3, *[1] * (len(shape) - 2))
    expected = F.prelu(turned + layer.input_bias.view(column), layer.weight) + layer.output_bias.view(column)
    expected = expected.movedim(1, dim)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    operands = (x, *layer.parameters())
    for one, two in zip(
        torch.autograd.grad(y, operands, upstream),
        torch.autograd.grad(expected, operands, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_rprelu_starts_as_a_prelu():
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(RPReLU(3)(x), nn.PReLU(3)(x))
    torch.testing.assert_close(RPReLU(3, init=0.1)(x), F.leaky_relu(x, 0.1))


@pytest.mark.parametrize("cls", [RSign, RPReLU])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_their_dtype(cls, dtype):
    x = torch.randn(2, 3, 4, dtype=dtype)
    assert cls(3)(x).dtype == dtype  # float32 parameters, as under autocast
    assert cls(3).to(dtype)(x).dtype == dtype
    assert cls(3, dtype=dtype, device="meta").state_dict().popitem()[1].dtype == dtype


@pytest.mark.parametrize("cls", [RSign, RPReLU])
def test_state_and_compilation(cls):
    torch.manual_seed(0)
    layer, twin = cls(3), cls(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    twin.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(2, 3, 5)
    assert torch.equal(twin(x), layer(x))
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("cls", [RSign, RPReLU])
def test_wrong_inputs_are_named(cls):
    with pytest.raises(ValueError, match=r"3 channels in dimension 1, got shape \(2, 4\)"):
        cls(3)(torch.randn(2, 4))
    with pytest.raises(ValueError, match="dim=1 is not a dimension"):
        cls(3)(torch.randn(3))
    with pytest.raises(TypeError, match="floating point"):
        cls(3)(torch.ones(2, 3, dtype=torch.int64))
