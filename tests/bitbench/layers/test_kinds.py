"""Layer kinds: what they build computes what they say, and their reference would notice if not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.memory import named_tensors
from bitbench.workloads.base import Unsupported
from impl.native import available, isa

SPECS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "bf16": {"kind": "linear", "dtype": "bfloat16"},
    "fp16": {"kind": "linear", "dtype": "float16"},
    "int8": {"kind": "torch_int8"},
    "int8-tensor": {"kind": "torch_int8", "scale": "tensor"},
    "binary": {"kind": "binary"},
    "binary-w1a1": {"kind": "binary", "activation_bits": 1},
    "binary-float": {"kind": "binary", "activation_bits": None, "group_size": 24},
    "ternary": {"kind": "ternary"},
    "ternary-a2": {"kind": "ternary", "activation_bits": 2},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit", "activation_bits": 16},
    "ternary-float": {"kind": "ternary", "activation_bits": None, "scale": "tensor"},
    "ternary-training": {"kind": "ternary", "form": "training"},
    "k2": {"kind": "k_ternary", "k": 2},
    "k3-g64": {"kind": "k_ternary", "k": 3, "group_size": 64, "scale_dtype": "float16"},
    "k2-training": {"kind": "k_ternary", "k": 2, "form": "training"},
    "binary-training": {"kind": "binary", "form": "training"},
    "latent-free": {"kind": "latent_free"},
    "latent-free-training": {"kind": "latent_free", "form": "training", "scale": "tensor"},
    "latent-free-bytes-training": {
        "kind": "latent_free",
        "form": "training",
        "storage": "byte",
        "activation_bits": None,
    },
}
LOW_BIT = [n for n, s in SPECS.items() if s["kind"] not in ("linear", "torch_int8")]


def spec_of(fields: dict[str, Any]) -> LayerSpec:
    return registry.get(fields["kind"]).spec.model_validate(fields)


def activations(spec: LayerSpec, tokens: int, in_features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(tokens, in_features, generator=generator)
    return x.to(getattr(torch, registry.get(spec.kind).input_dtype(spec)))


def relative_error(y: torch.Tensor, exact: torch.Tensor) -> float:
    return float((y.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("tokens", "out_features", "in_features"), [(1, 100, 130), (9, 43, 257)])
@pytest.mark.parametrize("bias", [True, False])
def test_random_layers_agree_with_their_reference(
    name: str, tokens: int, out_features: int, in_features: int, bias: bool
) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    module = kind.random(spec, in_features, out_features, bias=bias, seed=3)
    x = activations(spec, tokens, in_features)
    with torch.inference_mode():
        y = module(x)
    rows = slice(11, 37)
    exact = kind.reference(spec, module, x, rows)
    assert exact.dtype == torch.float64
    assert tuple(exact.shape) == (tokens, 26)
    assert relative_error(y[:, rows], exact) <= kind.tolerance(spec, in_features)
    # The same comparison notices one wrong weight: the next row's output in place of this one's.
    assert relative_error(y[:, 12:38], exact) > kind.tolerance(spec, in_features)


@pytest.mark.parametrize("name", LOW_BIT)
def test_a_single_flipped_weight_is_noticed(name: str) -> None:
    spec = spec_of({**SPECS[name], "form": "packed"})
    kind = registry.get(spec.kind)
    module = kind.random(spec, 512, 40, bias=False, seed=3)
    x = activations(spec, 2, 512)
    with torch.inference_mode():
        y = module(x)
    module.codes[17] ^= 1
    exact = kind.reference(spec, module, x, slice(0, 40))
    assert relative_error(y, exact) > kind.tolerance(spec, 512)


@pytest.mark.parametrize("name", SPECS)
def test_random_layers_follow_their_seed(name: str) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    x = activations(spec, 1, 64)
    with torch.inference_mode():
        first, again, other = (kind.random(spec, 64, 48, bias=True, seed=s)(x) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", SPECS)
def test_random_and_converted_layers_are_ready_for_inference(name: str) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    for module in (
        kind.random(spec, 64, 48, bias=True, seed=1),
        kind.convert(spec, nn.Linear(64, 48)),
    ):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())
        assert module(torch.randn(2, 64).to(activations(spec, 1, 64).dtype)).shape == (2, 48)


@pytest.mark.parametrize("name", SPECS)
def test_conversion_keeps_the_layer_it_replaces(name: str) -> None:
    spec = spec_of(SPECS[name])
    torch.manual_seed(0)
    linear = nn.Linear(256, 96)
    before = linear.weight.detach().clone()
    x = torch.randn(32, 256)
    converted = registry.get(spec.kind).convert(spec, linear)
    with torch.inference_mode():
        y, exact = converted(x), linear(x)
    assert torch.equal(linear.weight, before)
    assert y.dtype == x.dtype
    # Even one bit a weight and an activation keeps the direction of the output.
    cosine = torch.cosine_similarity(y.flatten(), exact.flatten(), dim=0)
    assert cosine > {"binary-w1a1": 0.5}.get(name, 0.75)


@pytest.mark.parametrize(
    "name", [n for n in SPECS if n not in ("int8", "int8-tensor", "fp16") and "latent-free" not in n]
)
def test_trainable_layers_learn(name: str) -> None:
    spec = spec_of(SPECS[name])
    torch.manual_seed(0)
    module = registry.get(spec.kind).trainable(spec, 16, 8, bias=True)
    dtype = next(module.parameters()).dtype
    x, target = torch.randn(64, 16, dtype=dtype), torch.randn(64, 8, dtype=dtype)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_int8_says_that_it_cannot_train_and_where_it_runs() -> None:
    spec = spec_of(SPECS["int8"])
    kind = registry.get("torch_int8")
    with pytest.raises(Unsupported, match="inference"):
        kind.trainable(spec, 8, 8, bias=True)
    assert kind.unsupported(spec, "cpu") is None
    assert "CPU only" in str(kind.unsupported(spec, "cuda"))


@pytest.mark.parametrize("engine", [e for e in torch.backends.quantized.supported_engines if e != "none"])
def test_int8_reference_follows_the_engine(engine: str) -> None:
    spec = spec_of(SPECS["int8"])
    kind = registry.get("torch_int8")
    chosen = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        module = kind.random(spec, 1024, 64, bias=True, seed=0)
        x = torch.randn(4, 1024) + 0.5
        error = relative_error(module(x), kind.reference(spec, module, x, slice(0, 64)))
        assert error <= kind.tolerance(spec, 1024)
        assert kind.kernel(module).endswith(engine)
    finally:
        torch.backends.quantized.engine = chosen


def test_packing_formats_share_numerics_and_nothing_else_does() -> None:
    def numerics(**fields: Any) -> dict[str, Any]:
        return registry.get("ternary").numerics(spec_of({"kind": "ternary", **fields}))

    assert numerics(format="base3") == numerics(format="two_bit")
    others = [
        numerics(activation_bits=None),
        numerics(group_size=64),
        numerics(rule="twn"),
        numerics(scale_dtype="float16"),
        numerics(form="training"),
        numerics(ste="clip"),  # the same outputs, but another network once trained
    ]
    assert all(other != numerics() for other in others)


@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_what_served_a_call_can_be_told(name: str) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    for tokens in (1, 9):
        module = kind.random(spec, 64, 40, bias=False, seed=1)
        module(activations(spec, tokens, 64))
        kernel = kind.kernel(module)
        said = kind.dispatch(spec, kernel)
        assert said["backend"] in kind.backends, kernel
        training = name.endswith("training")
        assert said["packed"] == ("no" if training or spec.kind == "linear" else "yes")
        if said["backend"] == "native":
            assert said["isa"] in kind.backends
            assert said["isa"] == isa()


@pytest.mark.skipif(not available(), reason="native kernels are not built")
@pytest.mark.parametrize("name", [n for n in LOW_BIT if "training" not in n])
def test_native_kernels_are_what_the_layer_promises(name: str) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    module = kind.random(spec, 64, 48, bias=True, seed=1)
    with torch.inference_mode():
        for tokens in (1, 3, 16):
            module(activations(spec, tokens, 64))
            assert kind.fallback(spec, kind.kernel(module)) is None, kind.kernel(module)


def test_another_kernel_than_promised_is_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(SPECS["ternary"])
    kind = registry.get("ternary")
    monkeypatch.delenv("BITIMPL_BACKEND", raising=False)
    for kernel in ("ternary_linear/base3/int8/torch", "ternary_linear/two_bit/int8/gemv/avx2", ""):
        assert "not a native ternary_linear/base3" in str(kind.fallback(spec, kernel))
    assert kind.fallback(spec, "ternary_linear/base3/int8/gemv/avx2") is None
    # Asked for by name, the torch reference is what the user wants to see.
    monkeypatch.setenv("BITIMPL_BACKEND", "torch")
    assert kind.fallback(spec, "ternary_linear/base3/int8/torch") is None


@pytest.mark.parametrize("name", SPECS)
def test_copies_compute_the_same_from_memory_of_their_own(name: str) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    module = kind.random(spec, 130, 43, bias=True, seed=3)
    copies = kind.copies(module, 2)
    x = activations(spec, 2, 130)
    assert len(copies) == 2
    for copy in copies:
        assert torch.equal(copy(x), module(x))
    everyone = [module, *copies]
    tensors = [[tensor.data_ptr() for _, tensor in named_tensors(one)] for one in everyone]
    if spec.kind == "torch_int8":  # its weights lie in an object of the engine
        tensors = [[id(one._packed_params._packed_params)] for one in everyone]
    assert len({pointer for pointers in tensors for pointer in pointers}) == sum(map(len, tensors)) > 0


def test_random_layers_hold_the_numbers_that_stored_runs_were_measured_on() -> None:
    """Times and bytes do not depend on them, but what a stored run can be repeated with does."""

    def drawn(fields: dict[str, Any]) -> Any:
        kind = registry.get(fields["kind"])
        return kind.random(kind.spec.model_validate(fields), 7, 3, bias=True, seed=5)

    plain = drawn({"kind": "linear"})
    assert plain.weight.flatten()[:2].tolist() == [0.43240121006965637, -0.48953571915626526]
    assert plain.bias.tolist() == [-0.3123050034046173, -0.6013449430465698, 0.373199462890625]
    binary = drawn({"kind": "binary"})
    assert binary.packed_weight.scales.flatten().tolist() == [
        0.5027879476547241,
        0.23664768040180206,
        0.5319735407829285,
    ]
    assert binary.bias.tolist() == [0.6398540735244751, 0.8402068614959717, -0.766709566116333]
    assert binary.dequantize()[0].sign().tolist() == [-1, 1, -1, -1, 1, -1, 1]
    ternary = drawn({"kind": "ternary", "scale": "tensor"})
    assert ternary.packed_weight.scales.flatten().tolist() == [0.5027879476547241]
    assert ternary.dequantize()[0].sign().tolist() == [1, 0, 0, 1, -1, 0, 0]


@pytest.mark.parametrize("name", ["ternary", "ternary-2bit", "ternary-float", "ternary-training", "binary"])
def test_low_bit_layers_run_on_a_gpu(name: str) -> None:
    spec = spec_of(SPECS[name])
    assert registry.get(spec.kind).unsupported(spec, "cuda") is None


def test_a_layer_held_to_instructions_of_a_processor_is_none_of_a_gpu() -> None:
    held = spec_of({"kind": "ternary", "isa": "avx2"})
    assert "names instructions of a CPU" in str(registry.get("ternary").unsupported(held, "cuda"))
    assert registry.get("ternary").unsupported(held, "cpu") is None


def test_a_kernel_of_a_gpu_is_native_and_no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITIMPL_BACKEND", raising=False)
    kind, spec = registry.get("ternary"), spec_of(SPECS["ternary"])
    kernel = "ternary_linear/base3/int8/gemv/sm_90"
    assert kind.fallback(spec, kernel) is None
    said = kind.dispatch(spec, kernel)
    assert (said["backend"], said["device"], said["isa"]) == ("native", "cuda", "sm_90")
    assert kind.fallback(spec, "ternary_linear/base3/int8/reference/torch")


@pytest.mark.parametrize("name", ["linear", "bf16", "binary", "ternary", "ternary-training"])
def test_a_layer_made_on_the_processor_is_as_drawn(name: str) -> None:
    """And on the processor it is the one it always was."""
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    assert kind.draws_in_place
    here = kind.made(spec, 32, 16, bias=True, seed=3, device="cpu")
    plain = kind.random(spec, 32, 16, bias=True, seed=3)
    for (key, value), again in zip(here.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, again), key


@pytest.mark.parametrize(("name", "told"), [("linear", "meta"), ("int8", "cpu")])
def test_only_kinds_that_can_are_told_to_draw_elsewhere(
    name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    devices: list[str] = []

    def random(*_: Any, **__: Any) -> nn.Module:
        devices.append(torch.get_default_device().type)
        return nn.Identity()

    monkeypatch.setattr(type(kind), "random", random)
    kind.made(spec, 8, 8, bias=False, seed=0, device="meta")
    assert devices == [told]


def test_the_type_of_input_and_output_changes_no_accuracy() -> None:
    """In a model they have the model's."""
    kind = registry.get("ternary")
    plain, short = spec_of({"kind": "ternary"}), spec_of({"kind": "ternary", "dtype": "bfloat16"})
    assert kind.numerics(plain) == kind.numerics(short)
    assert (kind.input_dtype(plain), kind.input_dtype(short)) == ("float32", "bfloat16")
    assert "dtype" not in plain.model_dump(mode="json"), "cases keep the ids of stored runs"
    assert short.model_dump(mode="json")["dtype"] == "bfloat16"
    assert kind.tolerance(short, 64) > 100 * kind.tolerance(plain, 64)
