"""One small instance of every public layer, for the tests that hold for all of them.

A new layer gets a line in :data:`CASES`; ``test_every_layer_has_a_case`` fails until it does.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import impl.layers
from impl.layers import (
    BinaryEmbedding,
    BinaryEmbeddingBag,
    BinaryLinear,
    BinaryMultiheadAttention,
    BitLinear,
    LearnableBias,
    MultiTernaryLinear,
    NormedLinear,
    RMSNorm,
    RPReLU,
    RSign,
    TernaryEmbedding,
    TernaryEmbeddingBag,
)
from impl.layers.activations import (
    ApproxSign,
    DoReFa,
    MagnitudeAwareSign,
    SteHeaviside,
    SteSign,
    SteTern,
    SwishSign,
)
from impl.layers.binary_conv import BinaryConv1d, BinaryConv3d
from impl.layers.k_ternary_conv import MultiTernaryConv2d
from impl.layers.nbit import GroupwiseLinear, MixedGroupwiseLinear, NBitConv2d, NBitLinear
from impl.layers.ternary_conv import TernaryConv2d
from impl.layers.threshold import ThresholdLayer

ROWS = 11  # embeddings in a table


@dataclass(frozen=True)
class Case:
    """A layer and what it is called with. ``make`` passes ``device`` and ``dtype`` on where the layer
    takes them; ``shape`` is that of float inputs, None where the layer takes row numbers."""

    name: str
    make: Callable[..., nn.Module]
    shape: tuple[int, ...] | None
    has_parameters: bool = True

    def build(self, packed: bool = False, **factory: Any) -> nn.Module:
        torch.manual_seed(5)
        module = self.make(**factory) if self.has_parameters else self.make()
        for layer in two_forms(module) if packed else ():
            layer.pack()
        return module

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.shape is None:
            return torch.randint(ROWS, (4, 3), generator=generator)
        return torch.randn(self.shape, generator=generator).to(dtype)

    @property
    def forms(self) -> tuple[bool, ...]:
        """Values of ``packed`` that make a difference."""
        return (False, True) if two_forms(self.build(device="meta")) else (False,)


def two_forms(module: nn.Module) -> list[Any]:
    """The layers in ``module`` that have a latent and a packed form."""
    return [layer for layer in module.modules() if hasattr(type(layer), "is_packed")]


def outputs(module: Callable[..., Any], x: Tensor) -> tuple[Tensor, ...]:
    y = module(x)
    return y if isinstance(y, tuple) else (y,)


def run(
    module: Callable[..., Any], x: Tensor, layer: nn.Module
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs of ``module``, which calls ``layer``, and the gradients of a loss over all of them: to the
    parameters of ``layer`` that have one, and to ``x`` as "input"."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.is_floating_point())
    layer.zero_grad()
    y = outputs(module, x)
    used = [part for part in y if part.requires_grad]
    if not used:
        return y, {}
    sum(
        (part.float() * torch.arange(1.0, part.numel() + 1).view(part.shape)).sum() for part in used
    ).backward()
    found = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return y, (found if x.grad is None else {**found, "input": x.grad})


def gradients(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return run(layer, x, layer)[1]


def _case(
    cls: type[nn.Module], *arguments: Any, shape: tuple[int, ...] | None = (3, 12), **options: Any
) -> Case:
    tags = [cls.__name__, *(f"{key}={value}" for key, value in options.items())]
    return Case("-".join(tags), lambda **factory: cls(*arguments, **options, **factory), shape)


def _activation(cls: type[nn.Module], *arguments: Any) -> Case:
    tags = [cls.__name__, *map(str, arguments)]
    return Case("-".join(tags), lambda: cls(*arguments), (4, 6), has_parameters=False)


CASES = [
    _case(BinaryLinear, 12, 9),
    _case(BinaryLinear, 12, 9, activation_bits=1),
    _case(BinaryLinear, 12, 9, activation_bits=8, group_size=8),
    _case(BitLinear, 12, 9),
    _case(BitLinear, 12, 9, activation_bits=8, format="two_bit"),
    _case(BitLinear, 12, 9, activation_bits=16, rule="twn"),
    _case(BitLinear, 12, 9, activation_bits=2),
    _case(BitLinear, 12, 9, activation_bits=8, int8_training=True),
    _case(MultiTernaryLinear, 12, 9, k=2, refit=False),
    _case(MultiTernaryLinear, 12, 9, k=3, activation_bits=8, group_size=8, refit=False),
    _case(BinaryConv1d, 4, 6, 3, shape=(2, 4, 9), padding=1, padding_value=-1, activation_bits=1),
    _case(BinaryConv3d, 4, 3, 2, shape=(2, 4, 4, 3, 5), padding="same"),
    _case(TernaryConv2d, 4, 6, (3, 2), shape=(2, 4, 6, 5), stride=2, groups=2, activation_bits=8),
    _case(MultiTernaryConv2d, 4, 6, 3, shape=(2, 4, 6, 5), padding=1, refit=False),
    _case(NBitLinear, 12, 9),
    _case(NBitLinear, 12, 9, activation_bits=None),
    _case(NBitConv2d, 4, 6, 3, shape=(2, 4, 6, 5), padding=1, weight_bits=8),
    _case(GroupwiseLinear, 12, 9, group_size=8),
    _case(MixedGroupwiseLinear, 64, 9, shape=(3, 64)),
    _case(BinaryEmbedding, ROWS, 9, shape=None),
    _case(BinaryEmbedding, ROWS, 9, 2, shape=None, group_size=8),
    _case(TernaryEmbedding, ROWS, 9, shape=None),
    _case(TernaryEmbedding, ROWS, 9, shape=None, scale="tensor", format="two_bit"),
    _case(BinaryEmbeddingBag, ROWS, 9, shape=None),
    _case(BinaryEmbeddingBag, ROWS, 9, shape=None, mode="majority"),
    _case(TernaryEmbeddingBag, ROWS, 9, 2, shape=None, mode="max"),
    _case(TernaryEmbeddingBag, ROWS, 9, shape=None, mode="sum"),
    _case(BinaryMultiheadAttention, 12, 8, 2, shape=(2, 5, 12), dropout=0.0),
    _case(BinaryMultiheadAttention, 12, 8, 2, shape=(2, 5, 12), dropout=0.0, activation_bits=8),
    _case(LearnableBias, 12),
    Case("NormedLinear", lambda **factory: NormedLinear(BitLinear(12, 9, **factory)), (3, 12)),
    _case(RMSNorm, 12),
    _case(RMSNorm, 12, affine=False),
    _case(RSign, 6, shape=(2, 6, 5)),
    _case(RPReLU, 6, shape=(2, 6, 5)),
    _activation(SteSign),
    _activation(ApproxSign),
    _activation(SwishSign),
    _activation(SteHeaviside),
    _activation(MagnitudeAwareSign),
    _activation(SteTern),
    _activation(DoReFa, 2, "activations"),
    _activation(DoReFa, 2, "weights"),
]


#: Not for building networks of: ``impl.fuse_thresholds`` puts it around packed layers, for inference alone
#: (tests/impl/test_thresholds.py).
MADE_BY_FUSION = {ThresholdLayer}


def public_layers() -> set[type[nn.Module]]:
    """Every class in ``impl.layers`` that is a layer to call: public, not abstract, with a forward."""
    names = [m.name for m in pkgutil.walk_packages(impl.layers.__path__, "impl.layers.")]
    modules = [importlib.import_module(name) for name in names]
    return {
        family(value)
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.isabstract(value)
        and value.forward is not nn.Module.forward
        and value not in MADE_BY_FUSION
    }


def family(cls: type[nn.Module]) -> type[nn.Module]:
    """``cls``, or for the convolutions of one, two and three dimensions the class that they share."""
    shared = [base for base in cls.__mro__ if inspect.isclass(base) and issubclass(base, nn.Module)]
    return next((base for base in shared if _lacks_dims(base) and not inspect.isabstract(base)), cls)


def _lacks_dims(cls: type) -> bool:
    declared = any("dims" in vars(base).get("__annotations__", {}) for base in cls.__mro__)
    return declared and not hasattr(cls, "dims")
