"""Life of the linear layers as modules, beyond what ``test_roads_of_every_layer.py`` asks of all."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import forward_ad

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, functional, native

LAYERS = [
    pytest.param(BinaryLinear, {"activation_bits": 8}, id="binary"),
    pytest.param(BitLinear, {"activation_bits": 8}, id="ternary"),
    pytest.param(MultiTernaryLinear, {"k": 2, "group_size": 8}, id="k-ternary"),
]
FORMS = [pytest.param(True, id="packed"), pytest.param(False, id="latent")]


def build(cls, options, packed):
    torch.manual_seed(5)
    layer = cls(40, 26, **options)
    return layer.pack() if packed else layer


def same_function(one, other):
    x = torch.randn(3, 40)
    with torch.no_grad():
        return torch.equal(one(x), other(x))


@pytest.mark.parametrize(("cls", "options"), LAYERS)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.bfloat16)]
)
def test_casts_leave_the_packed_weight_alone(cls, options, scale_dtype, cast):
    layer = build(cls, {**options, "scale_dtype": scale_dtype}, packed=True)
    before = {name: getattr(layer, name).clone() for name in ("codes", "scales", "packing")}
    cast(layer)
    for name, tensor in before.items():
        assert getattr(layer, name).dtype == tensor.dtype
        assert torch.equal(getattr(layer, name), tensor)
    assert layer.bias.dtype != torch.float32
    assert layer.scale_dtype == scale_dtype


def test_a_cast_while_packed_decides_the_dtype_of_unpack():
    layer = BitLinear(40, 26, bias=False).pack().bfloat16()
    with torch.no_grad():
        assert layer(torch.randn(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.unpack().weight.dtype == torch.bfloat16
    assert layer.pack().float().unpack().weight.dtype == torch.float32


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_meta_device(cls, options):
    with torch.device("meta"):
        layer = cls(40, 26, **options)
    assert layer.weight.is_meta
    assert layer(torch.empty(2, 40, device="meta")).shape == (2, 26)
    real = build(cls, options, packed=True)
    layer.pack()
    for name in ("codes", "scales", "packing"):
        assert getattr(layer, name).is_meta
        assert getattr(layer, name).shape == getattr(real, name).shape
        assert getattr(layer, name).dtype == getattr(real, name).dtype
    assert layer(torch.empty(2, 40, device="meta")).shape == (2, 26)
    filled = copy.deepcopy(layer).to_empty(device="cpu")
    filled.load_state_dict(real.state_dict())
    assert same_function(filled, real)
    layer.load_state_dict(real.state_dict(), assign=True)
    assert same_function(layer, real)
    assert layer.unpack().weight.shape == (26, 40)
    assert real.to("meta").codes.is_meta


@pytest.mark.parametrize(("cls", "options"), LAYERS)
def test_a_packed_meta_layer_given_memory_has_its_header(cls, options):
    layer = cls(40, 26, device="meta", **options).pack().to_empty(device="cpu")
    assert torch.equal(layer.packing, build(cls, options, packed=True).packing)


def test_meta_pack_of_a_scale_per_tensor():
    layer = BitLinear(40, 26, rule="absmean", device="meta").pack()
    assert layer.scales.shape == BitLinear(40, 26, rule="absmean").pack().scales.shape == (1, 1, 1)


def test_loading_a_state_without_values_is_refused():
    state = BitLinear(40, 26, device="meta").pack().state_dict()
    with pytest.raises(RuntimeError, match="meta"):
        BitLinear(40, 26).load_state_dict(state)


@pytest.mark.parametrize("packed", FORMS)
def test_a_compiled_layer_takes_other_batch_sizes(packed):
    torch._dynamo.reset()
    layer = build(BitLinear, {"activation_bits": 8}, packed)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for rows in (3, 1, 12):
            x = torch.randn(rows, 40)
            torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


def test_compiled_under_autocast():
    torch._dynamo.reset()
    layer = build(BitLinear, {"activation_bits": 8}, packed=True)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    with torch.no_grad():
        assert step(torch.randn(2, 40)).dtype == torch.bfloat16


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    model = nn.Sequential(BitLinear(40, 26, activation_bits=8).pack(), nn.ReLU(), BinaryLinear(26, 9).pack())
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(4, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_exports():
    layer = build(MultiTernaryLinear, {"k": 2}, packed=True).eval()
    x = torch.randn(3, 40)
    program = torch.export.export(layer, (x,))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.bitimpl.ternary_linear.default in targets
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), layer(x))


def test_transforms_see_the_operator_not_the_memory():
    layer = build(BitLinear, {"activation_bits": 8}, packed=True)
    x = torch.randn(3, 40)
    with torch.no_grad():
        expected = layer(x)
        state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        doubled = {**state, "scales": state["scales"] * 2, "bias": state["bias"] * 2}
        y = torch.func.functional_call(layer, doubled, (x,))
        torch.testing.assert_close(y, expected * 2, rtol=1e-5, atol=1e-5)
        assert torch.equal(layer(x), expected)
        batched = torch.func.vmap(layer)(torch.stack([x, -x]))
        assert torch.equal(batched, torch.stack([layer(x), layer(-x)]))


def test_lazily_negated_inputs_are_read_with_their_sign():
    layer = build(BitLinear, {"activation_bits": 8}, packed=True)
    x = torch._neg_view(torch.randn(3, 40))
    assert x.is_neg()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.resolve_neg()))


def test_derivatives_that_a_packed_layer_lacks_are_refused_not_zero():
    packed = build(BitLinear, {}, packed=True)
    x, v = torch.randn(3, 40), torch.randn(3, 40)
    for trainable in (True, False):
        packed.requires_grad_(trainable)
        with pytest.raises(RuntimeError, match="backward"):
            torch.func.jvp(packed, (x,), (v,))
        with pytest.raises(RuntimeError, match="backward"):
            torch.func.grad(lambda x: packed(x).sum())(x)
        with forward_ad.dual_level():
            with pytest.raises(RuntimeError, match="backward"):
                packed(forward_ad.make_dual(x, v))
            with torch.no_grad():
                assert packed(x).shape == (3, 26)
    latent = packed.unpack()
    with torch.no_grad():
        _, tangent = torch.func.jvp(latent, (x,), (v,))
        torch.testing.assert_close(tangent, v @ latent.dequantize().T)


def test_inference_mode():
    layer = build(BitLinear, {"activation_bits": 8}, packed=True)
    x = torch.randn(3, 40)
    with torch.inference_mode():
        inside = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), inside)
    layer(x).sum().backward()


def test_threads_share_a_layer():
    from concurrent.futures import ThreadPoolExecutor

    layer = build(BitLinear, {"activation_bits": 8}, packed=True)
    inputs = [torch.randn(rows, 40) for rows in range(1, 9)] * 4

    def call(x):
        with torch.no_grad():
            return layer(x)

    expected = [functional.ternary_linear_python(x, layer.packed_weight, layer.bias, 8) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for y, reference in zip(pool.map(call, inputs), expected, strict=True):
            assert torch.equal(y, reference)


def test_backend_is_seen_in_last_kernel():
    layer = build(BitLinear, {"activation_bits": 8}, packed=True)
    with native.backend("torch"), torch.no_grad():
        layer(torch.randn(1, 40))
    assert layer.last_kernel == "ternary_linear/base3/int8/reference/torch"


def test_data_parallel_training_with_gradient_clipping(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = nn.Sequential(
            BinaryLinear(16, 32, activation_bits=1),
            BitLinear(32, 8),
            MultiTernaryLinear(8, 4),
            BitLinear(4, 2).pack(),
        )
        replica = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(replica.parameters(), lr=1e-2)
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(2):
            replica(torch.randn(6, 16)).square().sum().backward()
            norm = nn.utils.clip_grad_norm_(replica.parameters(), 0.1)
            assert torch.isfinite(norm)
            optimizer.step()
            optimizer.zero_grad()
        assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    finally:
        dist.destroy_process_group()
