"""Layers whose calls go to the CUDA kernels: the emulator's, by CPU tensors; and what they report."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulated import EmulatedLibrary
from torch import nn

import impl
from impl import native
from impl.native.cuda import devices, image_check, self_check
from impl.native.cuda import library as loading

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ternary": lambda: impl.BitLinear(67, 40, activation_bits=8),
    "two_bit": lambda: impl.BitLinear(67, 40, activation_bits=1, format="two_bit", bias=False),
    "k_ternary": lambda: impl.MultiTernaryLinear(67, 40, k=2, activation_bits=16),
    "float": lambda: impl.BitLinear(67, 40),
    "binary": lambda: impl.BinaryLinear(67, 40),
    "binary-w1a1": lambda: impl.BinaryLinear(67, 40, activation_bits=1),
    "binary-w1a8": lambda: impl.BinaryLinear(67, 40, activation_bits=8),
}


def packed_with(backend: str, layer: nn.Module) -> nn.Module:
    with native.backend(backend):
        return copy.deepcopy(layer).pack()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.usefixtures("on_cpu_tensors")
def test_a_layer_computes_what_it_computes_on_the_cpu(kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().pack()
    x = torch.randn(3, 5, 67)
    y = layer(x)
    assert layer.last_kernel.endswith("/sm_80")
    weight, bias, bits = layer.packed_weight, layer.bias, layer.activation_bits
    reference = getattr(impl.functional, f"{native.operator_of(weight.format)}_python")
    expected = reference(x, weight, bias, bits).detach()
    if bits is None:
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(y, expected)


@pytest.mark.usefixtures("on_cpu_tensors")
def test_packing_leaves_the_same_state_and_copies_begin_anew() -> None:
    torch.manual_seed(0)
    layer = impl.BitLinear(67, 43, activation_bits=8)
    packed = copy.deepcopy(layer).pack()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(impl.packing.layout, "CODECS", {})
        plain = copy.deepcopy(layer).pack()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(packed.state_dict()[name], tensor)
    packed(torch.ones(1, 67))
    twin = copy.deepcopy(packed)
    assert packed._prepared is not None
    assert twin._prepared is None
    assert torch.equal(twin(torch.ones(1, 67)), packed(torch.ones(1, 67)))
    assert torch.equal(packed.unpack().weight, plain.unpack().weight)
    moved = packed.pack().to("meta")
    assert moved._prepared is None
    assert moved(torch.ones(2, 67, device="meta")).shape == (2, 43)


@pytest.mark.usefixtures("on_cpu_tensors")
def test_gradients_pass_through_the_kernels() -> None:
    torch.manual_seed(0)
    layer = impl.BitLinear(67, 40, activation_bits=8).pack()
    x = torch.randn(6, 67, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert layer.bias.grad is not None
    ours, bias = x.grad.clone(), layer.bias.grad.clone()
    x.grad = layer.bias.grad = None
    with native.backend("torch"):
        y = impl.functional.ternary_linear_python(x.detach(), layer.packed_weight, layer.bias, 8).detach()
        expected = (2 * y) @ layer.dequantize()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(bias, (2 * y).sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("on_cpu_tensors")
def test_autocast_gives_its_dtype() -> None:
    layer = impl.BitLinear(67, 40, activation_bits=8).pack()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 67)).dtype == torch.bfloat16


# ---- what is said of it ---------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "CASES", self_check._SMALL[:2] + self_check._FLOAT)
    monkeypatch.setattr(image_check, "CASES", image_check.CASES[:1])


@pytest.mark.usefixtures("small")
def test_capabilities_tell_of_library_and_devices(emulated: EmulatedLibrary) -> None:
    emulated.emulate(90, 132, device=1)
    found = impl.capabilities()
    plain = found.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    cuda = found.cuda
    assert cuda.library == str(emulated.path)
    assert (cuda.why_not, cuda.abi, cuda.toolkit) == ("", 2, "0.0")
    assert cuda.architectures == ("emulated",)
    assert cuda.kernels == emulated.kernels
    assert [(d.index, d.architecture, d.self_check) for d in cuda.devices] == [
        (0, "8.0", "not made"),
        (1, "9.0", "not made"),
    ]
    assert cuda.devices[0].activations == ("float", "sign", "ternary", "int8", "int16")
    served = {(k.operator, k.format, k.isa) for k in found.kernels if k.device == "cuda" and k.isa != "torch"}
    formats = {"two_bit": "ternary", "base3": "ternary", "binary": "binary"}
    assert served == {
        (f"{formats[format]}_{family}", format, isa)
        for format in formats
        for family in ("linear", "conv")
        for isa in ("sm_80", "sm_90")
    }
    assert native.serves_cuda(0, "linear", "base3")
    assert [device.self_check for device in impl.capabilities().cuda.devices] == ["passed", "not made"]


def test_capabilities_tell_what_was_found_wrong(emulated: EmulatedLibrary) -> None:
    devices._wrong[0] = {"float": "1 of 3 values are wrong"}
    devices._wrong[1] = {"any": "2 of 3 values are wrong", "float": "3 of 3 values are wrong"}
    cuda = impl.capabilities().cuda
    assert cuda.devices[0].activations == ("sign", "ternary", "int8", "int16")
    assert cuda.devices[0].self_check == "float: 1 of 3 values are wrong"
    assert cuda.devices[0].why_not == ""
    assert cuda.devices[1].activations == ()
    assert "any on cuda:1: 2 of 3 values are wrong" in cuda.devices[1].why_not
    assert cuda.why_not == ""
    devices._wrong[0] = devices._wrong[1]
    assert "2 of 3 values are wrong" in impl.capabilities().cuda.why_not


def test_capabilities_without_a_library_or_a_device(
    fresh: Path,
    emulated_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "_places", lambda: iter(()))
    cuda = impl.capabilities().cuda
    assert cuda.library is None
    assert "nvcc" in cuda.why_not
    assert cuda.devices == ()
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(loading, "_loaded", loading.CudaLibrary(emulated_path))
    cuda = impl.capabilities().cuda
    assert cuda.library == str(emulated_path)
    assert "finds no CUDA device" in cuda.why_not
    assert not any(kernel.device == "cuda" for kernel in impl.capabilities().kernels)


def test_the_first_use_of_cpu_layers_loads_no_cuda_library(fresh: Path) -> None:
    with native.backend("native" if native.available() else "torch"):
        impl.BitLinear(16, 8, activation_bits=8).pack()(torch.ones(1, 16))
    assert loading._loaded is None
