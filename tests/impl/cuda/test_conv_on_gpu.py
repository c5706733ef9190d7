"""Convolutions, and signs from layer to layer, on a GPU."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from threshold_networks import layer_of, norm_of, same, sign_of

import impl
from impl import functional, native
from impl.native.library import NativeError
from impl.thresholds import fuse_thresholds

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and not native.cuda.available(),
        reason="the CUDA kernels were not built: run CMake with BITIMPL_CUDA=auto or on",
    ),
]

Make = Callable[[], nn.Module]
LAYERS: dict[str, Make] = {
    "w1a1": lambda: impl.BinaryConv2d(64, 72, 3, padding=1, activation_bits=1),
    "w1a1-128": lambda: impl.BinaryConv2d(128, 256, 3, stride=2, padding=1, activation_bits=1),
    "w1a1-1x1": lambda: impl.BinaryConv2d(256, 128, 1, activation_bits=1, bias=False),
    "w1a1-groups": lambda: impl.BinaryConv2d(48, 24, 3, groups=3, padding=1, activation_bits=1),
    "w1a1-narrow": lambda: impl.BinaryConv2d(3, 10, 5, padding=2, dilation=2, activation_bits=1),
    "w1a8": lambda: impl.BinaryConv2d(64, 72, 3, padding=1, activation_bits=8),
    "ternary": lambda: impl.TernaryConv2d(64, 72, 3, padding=1, activation_bits=8),
    "ternary-a16": lambda: impl.TernaryConv2d(20, 33, 3, stride=2, activation_bits=16),
    "k2": lambda: impl.MultiTernaryConv2d(32, 40, 3, k=2, padding=1, activation_bits=8),
    "depthwise": lambda: impl.TernaryConv2d(64, 64, 3, groups=64, padding=1, activation_bits=8),
    "float": lambda: impl.BinaryConv2d(32, 40, 3, padding=1),
}


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    """An explicit choice: a test that the torch reference served would prove nothing."""
    torch.manual_seed(0)
    with native.backend("native"):
        assert native.uses_native(torch.device("cuda", 0), "conv", "binary")
        yield


def exact(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Short binary fractions: sums of them are the same in every order."""
    return (torch.randint(-256, 257, shape) / 64).to(dtype).cuda()


def assert_as_reference(layer: nn.Module, x: Tensor, y: Tensor) -> None:
    alone = copy.deepcopy(layer).cpu()
    bias = None if alone.bias is None else alone.bias.detach()
    operator = getattr(functional, f"{native.operator_of(alone.format, 'conv')}_python")
    expected = operator(x.detach().cpu(), alone.packed_weight, alone.geometry, bias, alone.activation_bits)
    if alone.activation_bits is None:
        torch.testing.assert_close(y.float().cpu(), expected.float(), rtol=3e-2, atol=3e-2)
    else:
        assert torch.equal(y.cpu(), expected)


@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_results_are_those_of_the_reference(kind: str, dtype: torch.dtype) -> None:
    layer = LAYERS[kind]().pack().cuda()
    for samples, size in ((1, 7), (2, 14), (5, 28)):
        x = exact(samples, layer.in_channels, size, size + 1, dtype=dtype)
        with torch.no_grad():
            for given in (x, x.contiguous(memory_format=torch.channels_last), x[..., ::2]):
                y = layer(given)
                assert y.dtype == dtype
                assert_as_reference(layer, given, y)
                assert layer.last_kernel.split("/")[-1].startswith("sm_")


@pytest.mark.parametrize("kind", ["w1a1", "w1a8", "ternary", "depthwise"])
def test_a_captured_graph_replays_with_new_input(kind: str) -> None:
    layer = LAYERS[kind]().pack().cuda().eval()
    x = exact(2, layer.in_channels, 14, 14)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for _ in range(3):
            x.copy_(exact(2, layer.in_channels, 14, 14))
            y.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            assert_as_reference(layer, x, y)


def test_every_kernel_by_name() -> None:
    library = native.cuda.require()
    layers = [LAYERS[kind]().pack().cuda() for kind in ("w1a1", "w1a1-1x1", "ternary")]
    try:
        for name in sorted(set(library.kernels) - set(library.unproven)):
            native.cuda.select_kernel(name)
            served = 0
            for layer in layers:
                x = exact(2, layer.in_channels, 14, 15)
                with torch.no_grad(), contextlib.suppress(NativeError):  # not every kernel takes every layer
                    assert_as_reference(layer, x, layer(x))
                    served += 1
            assert served == len(layers) or name != "any"
    finally:
        native.cuda.select_kernel(None)


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize("dims", [0, 2])
def test_a_fused_network_gives_what_the_other_gave(dims: int, kind: str, bits: int) -> None:
    generator = torch.Generator().manual_seed(dims + bits)
    options = {"padding": 1} if dims else {}
    net = nn.Sequential(
        layer_of(dims, kind, 64, 128, bits, generator, ties=True, **options),
        norm_of(dims, 128, generator, ties=True),
        sign_of("ste", 128, generator),
        layer_of(dims, "binary", 128, 96, 1, generator, ties=True, **options),
        norm_of(dims, 96, generator, ties=True),
        sign_of("ste", 96, generator),
        layer_of(dims, kind, 96, 40, 1, generator, **options),
    ).cuda()
    for samples in (1, 6, 300):
        x = exact(samples, 64, *[9, 8][:dims])
        with torch.no_grad():
            expected = net(x)
            fused = fuse_thresholds(copy.deepcopy(net))
            assert same(fused(x), expected)
