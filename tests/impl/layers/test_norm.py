"""RMS normalisation in front of quantised layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import impl
from impl import BinaryLinear, BitLinear, MultiTernaryLinear
from impl.layers.norm import NormedLinear, RMSNorm, add_input_norms
from impl.quantizers import fake_quantize_activations


def reference_norm(x, eps=1e-6):
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_its_formula(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(40)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 3, 40).to(dtype)
    y = norm(x)
    assert y.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    expected = reference_norm(x) * norm.weight.to(dtype).double()
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("features", [1, 64, 1024])
def test_the_root_mean_square_becomes_one_whatever_the_width(features):
    """kyegomez: norm with the factor dim^-0.5 for dim^0.5, which shrinks by dim."""
    x = 7 * torch.randn(4, features, generator=torch.Generator().manual_seed(1))
    rms = RMSNorm(features, eps=0.0, affine=False)(x).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones(4))


def test_squares_of_large_half_precision_inputs_do_not_overflow():
    x = torch.full((1, 64), 2000.0, dtype=torch.float16)
    assert torch.equal(RMSNorm(64)(x), torch.ones(1, 64, dtype=torch.float16))


def test_rms_norm_refusals():
    with pytest.raises(ValueError, match="eps must be"):
        RMSNorm(4, eps=-1.0)
    with pytest.raises(ValueError, match="features must be at least 1"):
        RMSNorm(0)
    with pytest.raises(ValueError, match="in_features = 4, got 5"):
        RMSNorm(4)(torch.randn(2, 5))


def test_normed_ternary_layers_compute_what_they_say():
    """kyegomez: bias ignored; kyegomez: binary weights though called 1.58-bit (#34)."""
    torch.manual_seed(0)
    layer = NormedLinear(BitLinear(48, 20, activation_bits=8))
    nn.init.normal_(layer.norm.weight)
    nn.init.normal_(layer.linear.bias)
    codes = layer.linear.W_ternary
    assert codes.unique().tolist() == [-1, 0, 1]
    scale = layer.linear.weight.abs().mean()
    x = torch.randn(5, 48)
    q = fake_quantize_activations(layer.norm(x), 8)
    torch.testing.assert_close(layer(x), F.linear(q, codes * scale, layer.linear.bias))
    assert not torch.allclose(layer(x), F.linear(q, codes * scale))


@pytest.mark.parametrize("cls", [BitLinear, BinaryLinear, MultiTernaryLinear])
def test_it_packs_unpacks_and_loads_with_the_layer_inside(cls):
    torch.manual_seed(0)
    options = {"refit": False} if cls is MultiTernaryLinear else {}
    layer = NormedLinear(cls(24, 10, activation_bits=8, **options))
    x = torch.randn(3, 24)
    with torch.no_grad():
        before = layer(x)
        impl.pack(layer)
        torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
    assert set(layer.state_dict()) == {
        "norm.weight",
        "linear.bias",
        "linear.codes",
        "linear.scales",
        "linear.packing",
    }
    twin = NormedLinear(cls(24, 10, activation_bits=8, **options))
    twin.load_state_dict(layer.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(twin(x), layer(x))
        assert torch.equal(copy.deepcopy(twin)(x), layer(x))
    assert not impl.unpack(layer).linear.is_packed


def test_gradients_reach_the_norm_the_weight_and_the_input():
    torch.manual_seed(0)
    layer = NormedLinear(BitLinear(16, 8, activation_bits=8))
    x = torch.randn(4, 16, requires_grad=True)
    upstream = torch.randn(4, 8)
    layer(x).backward(upstream)
    weight = layer.linear.dequantize()
    expected = torch.autograd.grad(
        F.linear(F.rms_norm(x, (16,), layer.norm.weight, 1e-6), weight), (x, layer.norm.weight), upstream
    )
    torch.testing.assert_close(x.grad, expected[0])
    torch.testing.assert_close(layer.norm.weight.grad, expected[1])
    normed = layer.norm(x).detach()
    torch.testing.assert_close(
        layer.linear.weight.grad, upstream.T @ fake_quantize_activations(normed, 8), rtol=1e-4, atol=1e-5
    )


def test_the_norm_is_on_the_device_and_in_the_dtype_of_the_layer():
    layer = NormedLinear(BitLinear(16, 8, device="meta", dtype=torch.bfloat16), eps=1e-5)
    assert layer.norm.weight.is_meta
    assert layer.norm.weight.dtype == torch.bfloat16
    assert layer.norm.eps == 1e-5
    packed = NormedLinear(BitLinear(16, 8, dtype=torch.float16).pack().eval())
    assert packed.norm.weight.dtype == torch.float16
    assert not packed.training
    assert (packed.in_features, packed.out_features) == (16, 8)


def test_eps_is_that_of_bitnet_unless_given():
    norms = [RMSNorm(4), NormedLinear(BitLinear(4, 4)).norm, add_input_norms(BitLinear(4, 4)).norm]
    assert [norm.eps for norm in norms] == [1e-6] * 3


def test_any_norm_can_stand_in_front():
    layer = NormedLinear(BitLinear(16, 8), nn.LayerNorm(16))
    x = torch.randn(2, 16)
    assert torch.equal(layer(x), layer.linear(layer.norm(x)))
    with pytest.raises(TypeError, match="linear must be a quantised layer, got Linear"):
        NormedLinear(nn.Linear(16, 8))
    with pytest.raises(ValueError, match=r"eps=0\.001 is for the RMSNorm"):
        NormedLinear(BitLinear(16, 8), nn.LayerNorm(16), eps=1e-3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(12, 6), nn.Embedding(3, 4))


def test_every_quantised_layer_of_a_model_gets_one_norm():
    model = impl.prepare(Block())
    weights = [model.first.weight, model.rest[1].weight]
    assert add_input_norms(model, eps=1e-5) is model
    assert isinstance(model.first, NormedLinear)
    assert model.again is model.first
    assert isinstance(model.rest[1], NormedLinear)
    assert model.rest[1].norm.eps == 1e-5
    assert isinstance(model.rest[2], nn.Embedding)
    assert model.first.linear.weight is weights[0]
    assert model.rest[1].linear.weight is weights[1]
    before = list(model.modules())
    add_input_norms(model)
    assert all(one is two for one, two in zip(before, model.modules(), strict=True))


def test_a_layer_that_is_the_model_itself_comes_back_wrapped():
    """D12: the root is not skipped."""
    layer = BitLinear(8, 4)
    wrapped = add_input_norms(layer)
    assert isinstance(wrapped, NormedLinear)
    assert wrapped.linear is layer
    assert add_input_norms(wrapped) is wrapped
    with pytest.raises(ValueError, match="no quantised linear layer"):
        add_input_norms(nn.Linear(8, 4))


def test_it_compiles_into_one_graph():
    torch.manual_seed(0)
    layer = NormedLinear(BitLinear(16, 8, activation_bits=8))
    x = torch.randn(3, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
