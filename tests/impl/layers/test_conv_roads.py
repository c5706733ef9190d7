"""Convolutions under autocast, compilation, export and transforms."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from impl.layers.binary_conv import BinaryConv1d, BinaryConv2d
from impl.layers.k_ternary_conv import MultiTernaryConv3d
from impl.layers.ternary_conv import TernaryConv2d

LAYERS = [
    pytest.param(BinaryConv1d, {"activation_bits": 1, "padding_value": -1}, (9,), id="binary-1d"),
    pytest.param(TernaryConv2d, {"activation_bits": 8, "padding_value": 1}, (7, 6), id="ternary-2d"),
    pytest.param(MultiTernaryConv3d, {}, (5, 4, 6), id="k-ternary-3d"),
]
FORMS = [pytest.param(True, id="packed"), pytest.param(False, id="latent")]


def build(cls, options, packed):
    torch.manual_seed(5)
    layer = cls(4, 6, 3, padding=1, groups=2, **options)
    return layer.pack() if packed else layer


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize(("cls", "options", "size"), LAYERS)
def test_autocast_gives_the_dtype_that_torch_gives(cls, options, size, packed):
    layer = build(cls, options, packed)
    x = torch.randn(2, 4, *size)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        with torch.no_grad():
            assert y.dtype == layer(x).dtype == torch.bfloat16
        y.float().sum().backward()
    assert layer.bias.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(y.float(), layer(x), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("packed", FORMS)
def test_compiled_for_sizes_not_known_and_channels_last(packed):
    torch._dynamo.reset()
    layer = build(TernaryConv2d, {"activation_bits": 8}, packed)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 4, 7, 6), (3, 4, 9, 5), (1, 4, 4, 8)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = compiled(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        y.square().sum().backward()
        found, x.grad = x.grad, None
        expected = layer(x)
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, x.grad, rtol=1e-4, atol=1e-4)
    x = torch.randn(4, 7, 6)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    model = nn.Sequential(
        TernaryConv2d(3, 8, 3, padding=1, activation_bits=8).pack(),
        nn.ReLU(),
        BinaryConv2d(8, 4, 3, activation_bits=1, padding_value=-1).pack(),
    )
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for images in (x, x.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


def test_exports_with_any_batch():
    layer = build(TernaryConv2d, {"activation_bits": 8}, packed=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (torch.randn(3, 4, 7, 6),), dynamic_shapes=({0: batch},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.bitimpl.ternary_conv.default in targets
    x = torch.randn(5, 4, 7, 6)
    with torch.no_grad():
        assert torch.equal(program.module()(x), layer(x))


def test_transforms_see_the_operator_not_the_memory():
    layer = build(TernaryConv2d, {"activation_bits": 8}, packed=True)
    x = torch.randn(2, 4, 7, 6)
    with torch.no_grad():
        expected = layer(x)
        state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        doubled = {**state, "scales": state["scales"] * 2, "bias": state["bias"] * 2}
        y = torch.func.functional_call(layer, doubled, (x,))
        torch.testing.assert_close(y, expected * 2, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer(x), expected)
        batched = torch.func.vmap(layer)(torch.stack([x, -x]))
        assert torch.equal(batched, torch.stack([layer(x), layer(-x)]))
        negated = torch._neg_view(x)
        assert torch.equal(layer(negated), layer(-x))


def test_derivatives_that_a_packed_layer_lacks_are_refused_not_zero():
    layer = build(TernaryConv2d, {}, packed=True)
    x = torch.randn(2, 4, 7, 6)
    with pytest.raises(RuntimeError, match="backward"):
        torch.func.jvp(layer, (x,), (x,))
    with pytest.raises(RuntimeError, match="backward"):
        torch.func.grad(lambda x: layer(x).sum())(x)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="backward"):
        layer(forward_ad.make_dual(x, x))


def test_inference_mode():
    layer = build(TernaryConv2d, {"activation_bits": 8}, packed=True)
    x = torch.randn(2, 4, 7, 6)
    with torch.inference_mode():
        inside = layer(x)
    assert torch.equal(layer(x), inside)
    layer(x).sum().backward()


def test_threads_share_a_layer():
    from concurrent.futures import ThreadPoolExecutor

    layer = build(TernaryConv2d, {"activation_bits": 8}, packed=True)
    inputs = [torch.randn(batch, 4, 7, 6) for batch in range(1, 5)] * 4
    with torch.no_grad():
        expected = [layer(x) for x in inputs]

    def call(x):
        with torch.no_grad():
            return layer(x)

    with ThreadPoolExecutor(4) as pool:
        for y, one in zip(pool.map(call, inputs), expected, strict=True):
            assert torch.equal(y, one)
