"""CUDA convolutions on tensors: the emulator runs the kernels, CPU tensors are its memory."""

from __future__ import annotations

import pytest
import torch
from emulated import EmulatedLibrary
from torch import Tensor, nn

import impl
from impl import functional, native, tiles
from impl.native.cuda import PreparedCudaConv
from impl.native.library import NativeError

pytestmark = pytest.mark.usefixtures("emulated", "one_thread")

KINDS = {
    "binary": impl.BinaryConv2d,
    "ternary": impl.TernaryConv2d,
    "k_ternary": impl.MultiTernaryConv2d,
}


def layer_of(kind: str, bits: int | None, **options: object) -> nn.Module:
    torch.manual_seed(3)
    places = {"stride": (2, 1), "padding": 1, **options}
    layer: nn.Module = KINDS[kind](12, 20, 3, activation_bits=bits, **places)
    return layer.pack()


def reference(layer: nn.Module, x: Tensor) -> Tensor:
    weight = layer.packed_weight
    operator = getattr(functional, f"{native.operator_of(weight.format, 'conv')}_python")
    y: Tensor = operator(x, weight, layer.geometry, layer.bias, layer.activation_bits)
    return y.detach()


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("on_cpu_tensors")
def test_a_layer_computes_what_it_computes_on_the_cpu(kind: str, bits: int) -> None:
    layer = layer_of(kind, bits, groups=2, padding_value=-1 if bits == 1 else 0)
    for x in (torch.randn(2, 12, 7, 6), torch.randn(2, 12, 6, 5, dtype=torch.bfloat16)):
        with torch.no_grad():
            y = layer(x)
            last = layer(x.contiguous(memory_format=torch.channels_last))
        assert y.is_contiguous()
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert y.dtype == x.dtype
        assert torch.equal(y, reference(layer, x))
        assert torch.equal(last, y)
        assert layer.last_kernel.endswith("/sm_80")
        assert layer.last_kernel.startswith(native.operator_of(layer.format, "conv"))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.usefixtures("on_cpu_tensors")
def test_other_dimensions(dims: int) -> None:
    torch.manual_seed(0)
    convolution = {1: impl.BinaryConv1d, 3: impl.BinaryConv3d}[dims]
    layer = convolution(5, 9, 2, padding=1, activation_bits=1).pack()
    x = torch.randn(3, 5, *[4, 5, 3][:dims])
    with torch.no_grad():
        assert torch.equal(layer(x), reference(layer, x))


@pytest.mark.usefixtures("on_cpu_tensors")
def test_float_activations_are_decoded_tile_by_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 12 * 9 * 7)
    for kind in KINDS:
        layer = layer_of(kind, None)
        x = torch.randn(2, 12, 7, 6)
        torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-4, atol=1e-4)
        assert layer.last_kernel.split("/")[2:] == ["float", "decode+conv", "sm_80"]


def test_what_is_known_of_an_input_follows_its_sizes_and_the_choice_of_kernel(
    emulated: EmulatedLibrary,
) -> None:
    layer = layer_of("binary", 1)
    call = PreparedCudaConv(layer.packed_weight, layer.geometry, layer.bias, 1)
    small, large = torch.randn(1, 12, 5, 5), torch.randn(3, 12, 9, 8)
    for name in ("any", None, "any"):
        native.cuda.select_kernel(name)
        for x in (small, large, large, small):
            assert torch.equal(call(x), reference(layer, x))
            assert name is None or native.last_kernel().split("/")[3] == name
    native.cuda.select_kernel(None)
    first = native.last_kernel()
    emulated.avoid("any", 0)
    call(small)
    assert first != ""


@pytest.mark.usefixtures("on_cpu_tensors")
def test_gradients_and_empty_batches() -> None:
    layer = layer_of("ternary", 8)
    x = torch.randn(2, 12, 7, 6, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert layer.bias.grad is not None
    assert layer(torch.randn(0, 12, 7, 6)).shape == (0, 20, 4, 6)


def test_what_does_not_fit_is_refused(emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of("binary", 1)
    call = PreparedCudaConv(layer.packed_weight, layer.geometry, layer.bias, 1)
    with pytest.raises(ValueError, match="x must be float32"):
        call(torch.zeros(1, 12, 5, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="the weight has 108 columns"):
        call(torch.zeros(1, 11, 5, 5))
    with pytest.raises(NativeError, match="activation is 3: use"):
        PreparedCudaConv(layer.packed_weight, layer.geometry, None, 3)(torch.zeros(1, 12, 5, 5))
    native.cuda.select_kernel("float")
    with pytest.raises(NativeError, match="kernel float was chosen, but"):
        call(torch.zeros(1, 12, 5, 5))
    native.cuda.select_kernel(None)
    monkeypatch.setattr(emulated, "index_of", lambda _: 1)
    with pytest.raises(ValueError, match="the input is on cpu, the packed weight on cpu: move one"):
        call(torch.zeros(1, 12, 5, 5))
