"""Signs from layer to layer on CUDA: the emulator runs the kernels, CPU tensors are its memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from threshold_networks import layer_of, norm_of, same, sign_of

from impl import native
from impl.layers.threshold import ThresholdLayer
from impl.native.cuda import PreparedCudaSigns
from impl.thresholds import fuse_thresholds

pytestmark = pytest.mark.usefixtures("on_cpu_tensors", "one_thread")


def network(dims: int, kind: str, bits: int) -> nn.Sequential:
    """A layer, signs, a binary layer, signs, a layer that gives floats."""
    generator = torch.Generator().manual_seed(dims + bits)
    options = {"padding": 1} if dims else {}
    return nn.Sequential(
        layer_of(dims, kind, 11, 24, bits, generator, ties=True, **options),
        norm_of(dims, 24, generator, ties=True),
        sign_of("ste", 24, generator),
        layer_of(dims, "binary", 24, 19, 1, generator, ties=True, **options),
        norm_of(dims, 19, generator, ties=True),
        sign_of("rsign", 19, generator),
        layer_of(dims, kind, 19, 9, 1, generator, **options),
    )


@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("kind", ["binary", "ternary", "k_ternary"])
@pytest.mark.parametrize("dims", [0, 2])
def test_a_fused_network_gives_what_the_other_gave(dims: int, kind: str, bits: int) -> None:
    net = network(dims, kind, bits)
    shape = (4, 11, 6, 5)[: dims + 2]
    x = torch.randint(-64, 65, shape, generator=torch.Generator().manual_seed(1)) / 16
    x[0].flatten()[0] = -0.0
    x[-1].flatten()[0] = torch.nan
    with native.backend("torch"), torch.no_grad():
        expected = net(x)
    fused = fuse_thresholds(net)
    layers = [module for module in fused.modules() if isinstance(module, ThresholdLayer)]
    assert len(layers) == 3
    with torch.no_grad():
        y = fused(x)
    assert same(y, expected)
    # Of itself: the layers alone, between signs that torch packs, would run on kernels of this name too.
    assert all(type(module._prepared) is PreparedCudaSigns for module in layers)
    assert all(module.layer.last_kernel.endswith("/sm_80") for module in layers)


def test_an_empty_batch() -> None:
    fused = fuse_thresholds(network(2, "binary", 1))
    assert fused(torch.zeros(0, 11, 6, 5)).shape == (0, 9, 6, 5)
