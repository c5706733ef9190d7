"""How fast layers are, to plan with: what the estimates of the workloads share. Torch-free.

The figures are means of stored runs on two cores of a server (AVX-512): an estimate is for the reader
who decides whether to wait, not for judging a kernel.
"""

from __future__ import annotations

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec

OPERATIONS_PER_SECOND = {"fp32": 2e11, "bf16": 9e11, "int8": 1.5e12, "bit": 6e12}
"""Of both cores, by what bounds the arithmetic (:attr:`bitbench.layers.base.LayerCost.compute`), with
many tokens."""

ISA_SHARE = {"avx2": 0.35, "portable": 0.03}
"""Of the integer rates, for a layer held to an older instruction set."""

PEER_SHARE = 0.2
"""Of the integer rates, for a layer of another project."""

PEER_MAKING = 2.5
"""How many times as long as ours it takes to make, check and copy one of them."""

BYTES_PER_SECOND = 3e10
"""Of weights read from memory."""

CORES = 2

SIDE = 1024
"""Of the layer that stands for those of a model."""


def call_seconds(
    layer: LayerSpec, in_features: int, out_features: int, tokens: float, threads: int | None = None
) -> float:
    """Seconds of a call on ``tokens`` rows: reading the weights, then the arithmetic."""
    cost = registry.get(layer.kind).cost(layer, in_features, out_features)
    rate = OPERATIONS_PER_SECOND.get(cost.compute, OPERATIONS_PER_SECOND["fp32"])
    if cost.compute in ("int8", "bit"):
        rate *= PEER_SHARE if layer.kind in registry.PEERS else 1.0
        rate *= ISA_SHARE.get(getattr(layer, "isa", None) or "", 1.0)
    rate *= min(threads or CORES, CORES) / CORES
    return cost.weight_bytes / BYTES_PER_SECOND + 2 * cost.macs_per_token * tokens / rate


def making(layer: LayerSpec) -> float:
    """Time to make, check and copy ``layer``, as a multiple of the mean over our kinds and torch's."""
    return PEER_MAKING if layer.kind in registry.PEERS else 1.0


def numbers_seconds(layer: LayerSpec, numbers: int, tokens: int) -> float:
    """Seconds that ``tokens`` tokens take in layers of a model that hold ``numbers`` weights in all."""
    return call_seconds(layer, SIDE, SIDE, tokens) * numbers / SIDE**2


def bytes_share(layer: LayerSpec) -> float:
    """Bytes of the weights as part of those of fp32."""
    return registry.get(layer.kind).cost(layer, SIDE, SIDE).weight_bytes / (4 * SIDE**2)
