"""The peers' layers under test, each with the options it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.layers.peers.peer import Peer

SPECS: dict[str, dict[str, Any]] = {
    "int-mm": {"kind": "torch_int_mm"},
    "ort-2bit": {"kind": "ort_matmul_nbits"},
    "ort-4bit": {"kind": "ort_matmul_nbits", "bits": 4},
    "ort-2bit-b32": {"kind": "ort_matmul_nbits", "bits": 2, "block_size": 32},
    "ort-4bit-b256": {"kind": "ort_matmul_nbits", "bits": 4, "block_size": 256},
    "tq2_0": {"kind": "ggml"},
    "tq1_0": {"kind": "ggml", "type": "tq1_0"},
    "litespark": {"kind": "litespark"},
}


@dataclass(frozen=True)
class Entry:
    """A peer with its description."""

    name: str
    kind: Peer
    spec: LayerSpec

    @property
    def step(self) -> int:
        """What in_features must be a multiple of."""
        return 256 if self.spec.kind == "ggml" else 1

    def features(self, count: int) -> int:
        """``count`` or the next number that the peer takes."""
        return -(-count // self.step) * self.step

    def random(self, in_features: int, out_features: int, *, bias: bool = False, seed: int = 3) -> nn.Module:
        """A layer with random weights; ``in_features`` as :meth:`features` gives it."""
        return self.kind.random(self.spec, in_features, out_features, bias=bias, seed=seed)

    def error(self, module: nn.Module, x: torch.Tensor, rows: slice) -> float:
        """Error of the module's output, in units of what the kind tolerates."""
        with torch.inference_mode():
            y = module(x)[:, rows].double()
        exact = self.kind.reference(self.spec, module, x, rows)
        assert exact.dtype == torch.float64
        assert exact.shape == y.shape
        worst = (y - exact).abs().nan_to_num(nan=torch.inf).max() / exact.abs().max()
        return float(worst) / self.kind.tolerance(self.spec, x.shape[1])


def entry(name: str) -> Entry:
    """The peer called ``name`` in :data:`SPECS`; installed or not."""
    kind = registry.get(SPECS[name]["kind"])
    assert isinstance(kind, Peer)
    return Entry(name, kind, kind.spec.model_validate(SPECS[name]))


def installed(name: str) -> Entry:
    """The peer called ``name``; the test is skipped where its package is missing."""
    found = entry(name)
    if reason := found.kind.missing():
        pytest.skip(reason)
    return found


@pytest.fixture(params=SPECS)
def peer(request: pytest.FixtureRequest) -> Entry:
    """Each peer in turn, skipped where its package is missing."""
    return installed(request.param)


@pytest.fixture(params=SPECS)
def any_peer(request: pytest.FixtureRequest) -> Entry:
    """Each peer in turn, installed or not."""
    return entry(request.param)
