"""Preferring a kernel, and the layers of bitorch_engine that prefer CUTLASS, on the emulated device."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from emulated import EmulatedLibrary
from torch.nn import functional as F

import impl
from impl import functional, native
from impl.compat.bitorch_engine import BinaryConv2dCutlass, BinaryLinearCuda, BinaryLinearCutlass
from impl.native.cuda import library as loading
from impl.native.cuda import preference, preferring
from impl.native.library import NativeError
from impl.packing import PackedWeight

HERE = torch.device("cpu")


@pytest.fixture
def emulated_here(on_cpu_tensors: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> EmulatedLibrary:
    """CPU tensors are the emulated device's, to :func:`preferring` too."""
    monkeypatch.setattr(preference, "DEVICE_TYPES", ("cpu",))
    return on_cpu_tensors


@pytest.fixture
def cutlass(emulated_here: EmulatedLibrary) -> EmulatedLibrary:
    """And CUTLASS has proof."""
    assert emulated_here.function("cuda_trust")(b"cutlass") == 0
    return emulated_here


def binary(rows: int, cols: int, seed: int = 0) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (1, rows, cols), generator=generator, dtype=torch.int8) * 2 - 1
    return PackedWeight.from_codes(codes, torch.rand(1, rows, 1, generator=generator) + 0.5, "binary", None)


def kernel() -> str:
    return native.last_kernel().split("/")[-2]


def test_a_preferred_kernel_serves_inside_the_block_and_only_there(cutlass: EmulatedLibrary) -> None:
    """One layer, in and out of the block: each kernel has a workspace of its own."""
    weight, x = binary(11, 70), torch.randn(5, 70)
    prepared = native.prepare_linear(weight, None, 1)
    expected = functional.binary_linear_python(x, weight, None, 1)
    for inside in (False, True, False, True, True, False):
        with preferring("cutlass" if inside else "any", HERE):
            assert torch.equal(prepared(x), expected)
            assert (kernel() == "cutlass") == inside
    assert cutlass.selection.preferred == ""
    assert torch.equal(prepared(x), expected)
    assert kernel() != "cutlass"


def inside_of_any(library: EmulatedLibrary) -> None:
    with preferring("any", HERE):
        assert library.selection.preferred == "any"
        raise KeyError


def test_blocks_nest_and_end_with_errors(cutlass: EmulatedLibrary) -> None:
    with preferring("cutlass", HERE):
        with pytest.raises(KeyError):
            inside_of_any(cutlass)
        assert cutlass.selection.preferred == "cutlass"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(cutlass.selection.preferred))
        thread.start()
        thread.join()
        assert seen == [""]
    assert cutlass.selection.preferred == ""


def test_what_the_kernel_cannot_do_is_done_by_others(cutlass: EmulatedLibrary) -> None:
    weight, x = binary(6, 40), torch.randn(3, 40)
    with preferring("cutlass", HERE):
        y = native.linear(x, weight, None, 8)
    assert kernel() != "cutlass"
    assert torch.equal(y, functional.binary_linear_python(x, weight, None, 8))


def test_without_proof_it_does_not_serve(emulated_here: EmulatedLibrary) -> None:
    assert "cutlass" in emulated_here.unproven
    weight, x = binary(6, 40), torch.randn(3, 40)
    with preferring("cutlass", HERE):
        y = native.linear(x, weight, None, 1)
    assert kernel() != "cutlass"
    assert torch.equal(y, functional.binary_linear_python(x, weight, None, 1))


def test_found_wrong_it_does_not_serve(cutlass: EmulatedLibrary) -> None:
    prepared, x = native.prepare_linear(binary(6, 40), None, 1), torch.randn(3, 40)
    with preferring("cutlass", HERE):
        prepared(x)
        assert kernel() == "cutlass"
        cutlass.avoid("cutlass", 0)
        prepared(x)
        assert kernel() != "cutlass"


def test_a_kernel_chosen_by_name_comes_before(cutlass: EmulatedLibrary) -> None:
    native.cuda.select_kernel("any")
    with preferring("cutlass", HERE):
        native.linear(torch.randn(3, 40), binary(6, 40), None, 1)
    assert kernel() == "any"


def test_nothing_is_loaded_for_processors(fresh: Path) -> None:
    with preferring("cutlass", HERE):
        assert loading._loaded is None


def test_nothing_is_done_without_the_library_or_the_kernel(
    emulated_here: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(emulated_here), "kernels", ("any", "gemv"))
    with preferring("cutlass", HERE):
        assert emulated_here.selection.preferred == ""
    with pytest.raises(
        NativeError, match="cannot prefer CUDA kernel 'fast': there is no CUDA kernel \"fast\""
    ):
        emulated_here.prefer("fast")
    monkeypatch.setattr(loading, "_loaded", NativeError("not built"))
    with preferring("cutlass", HERE):
        pass


# ---- layers ------------------------------------------------------------------------------------


def signs(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize(("rows", "columns"), [(4, 8), (5, 33), (16, 128), (9, 200)])
def test_packed_linear_layers_run_on_cutlass(cutlass: EmulatedLibrary, rows: int, columns: int) -> None:
    """D6 (packed weights in one layout, the kernel of another where M % 8 was not 0): any number of rows."""
    torch.manual_seed(columns)
    layer = BinaryLinearCutlass(columns, rows, bias=True).eval()
    w = torch.randn(rows, columns)
    layer.set_weight_data(w)
    layer.generate_quantized_weight(qweight_only=True)
    with torch.no_grad():
        layer.bias_a.uniform_(-0.5, 0.5)
        layer.scale_a.fill_(0.75)
        layer.bias.uniform_()
    for tokens in (1, 2, 7, 8, 9):
        x = torch.randn(tokens, columns)
        y = layer(x)
        assert kernel() == "cutlass"
        product = signs(x + layer.bias_a) @ signs(w - w.mean()).t()
        assert torch.equal(y, product * layer.scale_a * layer.scale_w + layer.bias)
    assert cutlass.selection.preferred == ""


def test_other_layers_do_not(cutlass: EmulatedLibrary) -> None:
    layer = BinaryLinearCuda(40, 6).eval()
    layer.generate_quantized_weight(qweight_only=True)
    layer(torch.randn(3, 40))
    assert kernel() != "cutlass"


@pytest.mark.parametrize("padding_value", [-1.0, 0.0, 1.0])
def test_packed_convolutions_prefer_cutlass(
    emulated_here: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch, padding_value: float
) -> None:
    """D5: the border holds what the argument says."""
    seen: list[str] = []
    real = functional.binary_conv

    def watched(*args: object) -> torch.Tensor:
        seen.append(emulated_here.selection.preferred)
        with native.backend("torch"):
            return real(*args)  # type: ignore[arg-type] - whatever it was given

    monkeypatch.setattr(functional, "binary_conv", watched)
    layer = BinaryConv2dCutlass(5, 6, 3, padding=1, padding_value=padding_value).eval()
    w = torch.randn(6, 5, 3, 3)
    layer.set_weight_data(w)
    layer.generate_quantized_weight(qweight_only=True)
    with torch.no_grad():
        layer.scale_a.fill_(0.75)
    x = torch.randn(2, 5, 7, 6)
    padded = F.pad(signs(x), (1, 1, 1, 1), value=padding_value)
    expected = F.conv2d(padded, signs(w - w.mean())) * layer.scale_a * layer.scale_w
    assert torch.equal(layer(x), expected)
    assert seen == ["cutlass"]
    assert emulated_here.selection.preferred == ""


# ---- capabilities --------------------------------------------------------------------------------


def test_capabilities_tell_of_cutlass(emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    found = impl.capabilities().cuda
    assert found.cutlass.version == "emulated"
    assert "no GPU has yet been seen to compute" in found.cutlass.why_not
    assert "BITIMPL_UNPROVEN=1" in found.cutlass.why_not
    monkeypatch.setattr(emulated, "unproven", {})
    assert impl.capabilities().cuda.cutlass.why_not == ""
    monkeypatch.setattr(type(emulated), "cutlass", "")
    found = impl.capabilities().cuda
    assert found.cutlass.version is None
    assert "built without CUTLASS" in found.cutlass.why_not
    assert "BITIMPL_CUTLASS=on" in found.cutlass.why_not
    monkeypatch.setattr(loading, "_loaded", NativeError("not built"))
    assert impl.capabilities().cuda.cutlass == impl.capabilities.__globals__["Cutlass"](None, "not built")
