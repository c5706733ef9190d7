"""What holds for every peer: it computes what its reference says, and the reference would notice."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitbench.layers import registry
from bitbench.layers.peers.ggml import SOURCES, Ggml, GgmlSpec
from bitbench.layers.peers.peer import Package, install
from bitbench.measure.memory import file_bytes, ledger
from bitbench.suite.load import load_suite
from bitbench.workloads.base import Unsupported


def normal(tokens: int, in_features: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(tokens, in_features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("tokens", "out_features", "in_features"),
    [(1, 100, 130), (9, 43, 257), (65, 64, 66), (130, 37, 512), (1, 1, 4096), (2, 203, 7)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_agree_with_their_reference(
    peer: Any, tokens: int, out_features: int, in_features: int, bias: bool
) -> None:
    width = peer.features(in_features)
    module = peer.random(width, out_features, bias=bias)
    x = normal(tokens, width)
    assert peer.error(module, x, slice(0, out_features)) <= 1
    if out_features > 30:
        assert peer.error(module, x, slice(11, 30)) <= 1


def test_a_single_changed_weight_is_noticed(peer: Any) -> None:
    module, x = peer.random(512, 40), normal(2, 512)
    with torch.inference_mode():
        y = module(x)
    module.codes[17].view(-1)[5] ^= 0x40
    exact = peer.kind.reference(peer.spec, module, x, slice(0, 40))
    error = float((y.double() - exact).abs().max() / exact.abs().max())
    assert error > 10 * peer.kind.tolerance(peer.spec, 512)


def test_float_activations_are_not_what_is_computed(peer: Any) -> None:
    """The activations are quantised inside the call: the product of the float ones is not the answer."""
    module, x = peer.random(512, 40), normal(2, 512)
    with torch.inference_mode():
        y = module(x)
    floats = x.double() @ peer.kind.decoded(peer.spec, module, slice(0, 40)).T
    error = float((y.double() - floats).abs().max() / floats.abs().max())
    assert 100 * peer.kind.tolerance(peer.spec, 512) < error < 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-3, 3e4])
def test_constant_and_extreme_activations(peer: Any, value: float) -> None:
    module = peer.random(512, 40, bias=True)
    x = torch.full((3, 512), value)
    x[1] *= torch.where(torch.arange(512) % 3 == 0, 1.0, -0.5)
    assert peer.error(module, x, slice(0, 40)) <= 1


def test_random_layers_follow_their_seed(peer: Any) -> None:
    x = normal(1, 256)
    with torch.inference_mode():
        first, again, other = (peer.random(256, 48, bias=True, seed=seed)(x) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_any_leading_dimensions_strides_and_types(peer: Any) -> None:
    module = peer.random(256, 48, bias=True)
    x = normal(6, 256)
    with torch.inference_mode():
        y = module(x)
        assert torch.equal(module(x.view(2, 3, 256)), y.view(2, 3, 48))
        # One token and several may be served by different kernels.
        torch.testing.assert_close(module(x[0]), y[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(module(x.T.contiguous().T), y)
        assert module(x[:0]).shape == (0, 48)
        half = x.bfloat16()
        assert torch.equal(module(half), module(half.float()).bfloat16())


def test_the_output_belongs_to_the_caller(peer: Any) -> None:
    module = peer.random(256, 48)
    with torch.inference_mode():
        first = module(normal(2, 256))
        kept = first.clone()
        module(normal(2, 256, seed=8))
    assert torch.equal(first, kept)


def test_what_it_cannot_take_is_refused(peer: Any) -> None:
    module = peer.random(256, 48)
    with pytest.raises(ValueError, match="last dimension of x is 255, not in_features=256"):
        module(normal(2, 255))
    with pytest.raises(RuntimeError, match="no gradient"):
        module(normal(2, 256).requires_grad_())


def test_threads_change_nothing(peer: Any) -> None:
    threads = torch.get_num_threads()
    outputs = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.inference_mode():
                outputs.append(peer.random(512, 300)(normal(9, 512)))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_conversion_keeps_the_layer_it_replaces(peer: Any, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 96, bias=bias)
    before = linear.weight.detach().clone()
    converted = peer.kind.convert(peer.spec, linear)
    x = normal(32, 256)
    with torch.inference_mode():
        y, exact = converted(x), linear(x)
    assert torch.equal(linear.weight, before)
    least = 0.85 if peer.name in ("ort-2bit", "ort-2bit-b32", "tq1_0", "tq2_0", "litespark") else 0.99
    assert torch.cosine_similarity(y.flatten(), exact.flatten(), dim=0) > least
    assert peer.error(converted, x, slice(0, 96)) <= 1


def test_a_copy_a_pickle_and_a_state_dict_compute_the_same(peer: Any) -> None:
    module, x = peer.random(256, 48, bias=True), normal(3, 256)
    other = peer.random(256, 48, bias=True, seed=4)
    with torch.inference_mode():
        y = module(x)
        assert not torch.equal(other(x), y)
        other.load_state_dict(module.state_dict())
        assert torch.equal(other(x), y)
        assert torch.equal(copy.deepcopy(module)(x), y)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), y)
        for twin in peer.kind.copies(module, 2):
            assert torch.equal(twin(x), y)


@pytest.mark.parametrize(("out_features", "in_features"), [(100, 512), (7, 256)])
def test_cost_is_what_a_live_layer_stores(peer: Any, out_features: int, in_features: int) -> None:
    said = peer.kind.cost(peer.spec, in_features, out_features)
    found = ledger(peer.random(in_features, out_features, bias=True))
    assert said.weight_bytes == found["codes"] + found["scales"]
    assert found["bias"] == 4 * out_features
    assert found["buffers"] == found["slack"] == 0
    assert said.format_bits == pytest.approx(8 * said.codes_bytes / (in_features * out_features))
    assert said.macs_per_token == in_features * out_features
    assert file_bytes(peer.random(in_features, out_features)) >= said.weight_bytes


def test_what_served_a_call_can_be_told(peer: Any) -> None:
    kernel = peer.kind.kernel(peer.random(256, 48))
    assert ", " not in kernel
    said = peer.kind.dispatch(peer.spec, kernel)
    assert said["backend"] in peer.kind.backends
    assert said["packed"] == "yes"
    assert peer.kind.dispatch(peer.spec, "ternary_linear/base3/int8/gemv/avx2") == {}


@pytest.mark.parametrize("package", SOURCES, ids=lambda package: package.distribution)
def test_each_package_with_ggml_serves(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    if not package.installed():
        pytest.skip(f"{package.distribution} is not installed: {install([package])}")
    kind = Ggml()
    monkeypatch.setattr(kind, "packages", (package,), raising=False)
    spec, x = GgmlSpec(kind="ggml"), normal(5, 512)
    module = kind.random(spec, 512, 70, bias=True, seed=0)
    with torch.inference_mode():
        y = module(x).double()
    exact = kind.reference(spec, module, x, slice(0, 70))
    assert float((y - exact).abs().max() / exact.abs().max()) <= kind.tolerance(spec, 512)
    assert kind.dispatch(spec, kind.kernel(module))["package"].startswith(package.distribution)


def test_peers_are_for_inference_on_the_cpu(any_peer: Any) -> None:
    with pytest.raises(Unsupported, match="for inference"):
        any_peer.kind.trainable(any_peer.spec, 8, 8, bias=True)
    elsewhere = any_peer.kind.unsupported(any_peer.spec, "cuda")
    assert elsewhere is None if any_peer.kind.name == "torch_int_mm" else "CPU only, not on cuda" in elsewhere


def test_numerics_tell_the_options_apart(any_peer: Any) -> None:
    numerics = any_peer.kind.numerics(any_peer.spec)
    for name in ("bits", "block_size"):
        if hasattr(any_peer.spec, name):
            assert numerics[name] == getattr(any_peer.spec, name)


def test_the_suite_of_peers_has_every_peer() -> None:
    suite = load_suite(Path(__file__).parents[4] / "suites" / "peers.yaml")
    assert set(registry.PEERS) <= {layer.kind for layer in suite.layers.values()}
    assert set(registry.PEERS) <= set(registry.kinds())
    assert not any(claim.gating for claim in suite.claims), "what others ship is not ours to gate on"


def test_peers_are_described_without_torch_and_without_their_packages() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'onnx', 'onnxruntime', 'llama_cpp', 'litespark_inference'):\n"
        "    sys.modules[name] = None\n"
        "from bitbench.layers import registry\n"
        "for name in registry.PEERS:\n"
        "    kind = registry.get(name)\n"
        "    spec = kind.spec.model_validate({'kind': name})\n"
        "    assert kind.cost(spec, 512, 64).weight_bytes > 0\n"
        "    assert kind.numerics(spec)\n"
        "    kind.unsupported(spec, 'cpu')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("tokens", "given"), [(1, 32), (31, 32), (32, 32), (100, 100)])
def test_a_gpu_is_given_enough_rows_for_its_int8_product(tokens: int, given: int) -> None:
    """torch refuses fewer than 17 there; rows of zeros change no other."""
    from bitbench.layers.peers.modules.torch_int_mm import enough

    q = torch.randint(-127, 128, (tokens, 16), dtype=torch.int8)
    padded = enough(q)
    assert padded.shape == (given, 16)
    assert torch.equal(padded[:tokens], q)
    assert not padded[tokens:].any()
