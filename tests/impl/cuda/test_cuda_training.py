"""Training with int8 products by the CUDA kernels, as the emulator runs them: the reference's numbers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from emulated import EmulatedLibrary
from torch import Tensor
from weights import ternary

import impl
from impl import native
from impl.layers.int8_training import Int8Training
from impl.native.cuda import devices, training, training_check
from impl.native.library import NativeError
from impl.ops import int8_training
from impl.packing import FORMATS

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS: dict[str, dict[str, Any]] = {
    "tensor": {"bias": False},
    "row": {"scale": "row", "format": "two_bit", "rule": "absmax", "ste": "clip"},
    "groups": {"group_size": 24, "rule": "twn", "ste": "clip"},
    "half scales": {"scale_dtype": torch.float16, "rule": "twn", "scale": "tensor"},
}


KERNELS = ("quantize_weight", "input_grad", "apply_mask")
BINARY_LAYERS: dict[str, dict[str, Any]] = {
    "binary": {"ste": "identity", "bias": False},
    "binary tensor": {"scale": "tensor"},
    "binary groups": {"group_size": 24},
    "signs": {"activation_bits": 1},
    "signs, half scales": {"activation_bits": 1, "scale_dtype": torch.float16, "ste": "identity"},
}
KINDS = [*LAYERS, *BINARY_LAYERS]


def layer_of(kind: str, cols: int = 67, rows: int = 43) -> Int8Training:
    torch.manual_seed(0)
    cls, table = (impl.BitLinear, LAYERS) if kind in LAYERS else (impl.BinaryLinear, BINARY_LAYERS)
    layer = cls(cols, rows, **{"activation_bits": 8, "int8_training": True, **table[kind]})
    with torch.no_grad():
        # Short binary fractions: their means are the same in any order of summation.
        layer.weight.copy_(torch.randint(-256, 257, (rows, cols)) / 128)
    return layer


def pass_through(layer: Int8Training, x: Tensor) -> dict[str, Tensor | None]:
    """y and every gradient."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


@pytest.mark.usefixtures("on_cpu_tensors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_give_the_numbers_of_the_reference(kind: str, dtype: torch.dtype) -> None:
    layer = layer_of(kind)
    for shape in ((3,), (2, 9), (0,)):
        x = torch.randn(*shape, 67).to(dtype)
        found = pass_through(layer, x)
        assert layer.last_kernel.endswith("/sm_80") or not x.numel()
        with pytest.MonkeyPatch.context() as patch:
            for table in (native.dispatch.TRAINING, impl.packing.layout.CODECS, native.dispatch.PREPARED):
                patch.delitem(table, "cpu")
            patch.setattr(native.dispatch, "serves_cpu", lambda: False)
            expected = pass_through(copy.deepcopy(layer), x)
        for name, right in expected.items():
            if name == "y" and layer.group_size is not None:  # another order of the groups
                torch.testing.assert_close(found[name], right)
            else:
                assert torch.equal(found[name], right), name


@pytest.mark.usefixtures("on_cpu_tensors")
@pytest.mark.parametrize("kind", KINDS)
def test_packing_leaves_what_training_used(kind: str) -> None:
    layer = layer_of(kind)
    x = torch.randn(5, 67)
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(copy.deepcopy(layer).pack()(x), y)
        layer.weight[layer.weight == 0] = 0.5  # whose sign does not turn
        y = layer(x)
        layer.weight.neg_()
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x) - bias, bias - y)


@pytest.mark.usefixtures("on_cpu_tensors")
def test_each_kernel_is_called_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in KERNELS:
        kernel = getattr(training, name)
        monkeypatch.setattr(
            training, name, lambda *a, name=name, kernel=kernel, **k: calls.append(name) or kernel(*a, **k)
        )
    for kind in ("row", "binary groups", "signs"):
        layer = layer_of(kind)
        for _ in range(2):
            pass_through(layer, torch.randn(3, 67))
        assert calls == ["quantize_weight", *["input_grad", "apply_mask"] * 2], kind
        calls.clear()


@pytest.mark.usefixtures("on_cpu_tensors")
def test_weights_and_gradients_of_any_strides() -> None:
    wide = torch.randint(-256, 257, (43, 140)) / 128
    for weight in (wide[:, :67], wide[:, 1::2], wide[:20].t()):
        for per_tensor in (False, True):
            found = int8_training.quantize_latent(weight, "absmean", per_tensor, 0, FORMATS["base3"], True)
            expected = int8_training.quantize_latent(
                weight.contiguous(), "absmean", per_tensor, 0, FORMATS["base3"], True
            )
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    _, packed = ternary("two_bit", 1, 43, 67, 24)
    line = torch.randn(43).as_strided((1, 43), (0, 1))
    for grad in (torch.randn(43, 5).t(), torch.randn(5, 90)[:, :43], torch.ones(1, 1).expand(5, 43), line):
        assert torch.equal(training.input_grad(grad, packed), int8_training.input_grad_python(grad, packed))


def test_the_self_check_passes_and_notices(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = training_check._SHAPES[:3]
    monkeypatch.setattr(training_check, "_SHAPES", shapes)
    device = torch.device("cpu")
    for complaint in training_check.CHECKS.values():
        assert complaint(device) == ""

    def off_by_one(out: Any) -> Any:
        (out[0] if isinstance(out, tuple) else out).view(-1)[3] += 1
        return out

    for name in KERNELS:
        complaint, kernel = training_check.CHECKS[name], getattr(training, name)
        with pytest.MonkeyPatch.context() as patch:
            if name == "apply_mask":
                patch.setattr(training, name, lambda grad, mask, kernel=kernel: kernel(grad, mask * 0))
            else:
                patch.setattr(training, name, lambda *a, kernel=kernel, **k: off_by_one(kernel(*a, **k)))
            assert "are wrong (" in complaint(device), name
            if name != "apply_mask":
                assert "are wrong (" in training_check.CHECKS["binary_training"](device), name


@pytest.mark.usefixtures("emulated")
def test_a_kernel_found_wrong_is_left_out() -> None:
    devices._unusable[0] = ""
    devices._wrong[0] = {"input_grad": "2 of 3 values are wrong"}
    assert devices.why_not(0, "linear", "base3") == ""
    assert "input_grad on cuda:0: 2 of 3" in devices.why_not(0, "training", "base3")
    assert "input_grad on cuda:0: 2 of 3" in devices.why_not(0, "training", "binary")
    devices._wrong[0] = {"binary_training": "1 of 2 codes are wrong"}
    assert devices.why_not(0, "training", "base3") == ""
    assert "binary_training on cuda:0: 1 of 2" in devices.why_not(0, "training", "binary")
    devices._wrong[0] = {"input_grad": "2 of 3 values are wrong"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert native.training_kernels(torch.device("cuda", 0), "base3") is None
    assert "2 of 3 values are wrong" in str(caught[0].message)
    with native.backend("native"), pytest.raises(NativeError, match="2 of 3 values are wrong"):
        native.training_kernels(torch.device("cuda", 0), "base3")
    with native.backend("torch"):
        assert native.training_kernels(torch.device("cuda", 0), "two_bit") is None
    devices._wrong[0] = {}
    with native.backend("native"):
        assert native.training_kernels(torch.device("cuda", 0), "two_bit") is training
    assert native.training_kernels(torch.device("cpu"), "base3") is None


@pytest.mark.usefixtures("emulated")
def test_what_the_library_refuses_is_an_error() -> None:
    weight = torch.ones(4, 9)
    with pytest.raises(NativeError, match=r"quantize_weight: .*exclude each other"):
        training.quantize_weight(weight, "twn", per_tensor=True, group_size=8, format="base3", mask=False)
    _, packed = ternary("base3", 1, 4, 9)
    with pytest.raises(NativeError, match=r"input_grad: .*they must agree"):
        training.input_grad(torch.ones(2, 5), packed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_gives_the_numbers_of_a_cpu(kind: str) -> None:
    layer = layer_of(kind, 520, 1037)
    x = torch.randn(70, 520)
    with native.backend("torch"):
        expected = pass_through(copy.deepcopy(layer), x)
    gpu = copy.deepcopy(layer).cuda()
    given = x.cuda().requires_grad_()
    y = gpu(given)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).cuda())
    assert "/torch" not in gpu.last_kernel
    found = {"y": y.detach(), "x": given.grad, **{name: p.grad for name, p in gpu.named_parameters()}}
    for name, right in expected.items():
        # Sums of the weight's and the bias's gradient are float, and TF32 stays as it is set.
        exact = name == "x" or (name == "y" and layer.group_size is None)
        torch.testing.assert_close(
            found[name].cpu(), right, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-3})
        )
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(gpu).pack()(given), y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_training_step_is_captured_into_a_graph() -> None:
    layer = layer_of("row", 256, 128).cuda()
    x = torch.randn(32, 256, device="cuda", requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            layer.zero_grad()
            layer(x).square().sum().backward()
    torch.cuda.current_stream().wait_stream(side)
    layer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
        (grad,) = torch.autograd.grad(y.square().sum(), layer.weight)
    with torch.no_grad():
        layer.weight.neg_()
        x.copy_(torch.randn_like(x))
    graph.replay()
    again = layer(x)
    assert torch.equal(again, y)
    assert torch.equal(torch.autograd.grad(again.square().sum(), layer.weight)[0], grad)
