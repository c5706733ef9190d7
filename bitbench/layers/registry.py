"""Layer kinds by name. Peers add theirs through the entry-point group ``bitbench.layers``."""

from __future__ import annotations

from bitbench.layers.base import LayerKind
from bitbench.plugins import Registry

REGISTRY: Registry[LayerKind] = Registry(
    "bitbench.layers",
    "layer kind",
    LayerKind,  # type: ignore[type-abstract]
    {
        "linear": "bitbench.layers.linear:Linear",
        "torch_int8": "bitbench.layers.torch_int8:TorchInt8",
        "binary": "bitbench.layers.quantized:Binary",
        "ternary": "bitbench.layers.quantized:Ternary",
        "latent_free": "bitbench.layers.latent_free:LatentFree",
        "k_ternary": "bitbench.layers.quantized:KTernary",
        "torch_int_mm": "bitbench.layers.peers.torch_int_mm:TorchIntMM",
        "ort_matmul_nbits": "bitbench.layers.peers.ort_matmul_nbits:OrtMatMulNBits",
        "ggml": "bitbench.layers.peers.ggml:Ggml",
        "litespark": "bitbench.layers.peers.litespark:Litespark",
    },
)

PEERS = ("torch_int_mm", "ort_matmul_nbits", "ggml", "litespark")
"""Kinds of :mod:`bitbench.layers.peers`: other projects' layers, most of them in packages that the
extra ``peers`` installs."""


def kinds() -> list[str]:
    """Names of all layer kinds; imports none of them."""
    return REGISTRY.names()


def get(kind: str) -> LayerKind:
    """The layer kind called ``kind``; :class:`bitbench.errors.UserError` when unknown."""
    return REGISTRY.get(kind)
