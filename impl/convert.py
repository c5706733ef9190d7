"""Whole models: replace linear layers and convolutions by low-bit layers, pack and unpack them.

:func:`convert_linear_to_bitlinear` replaces linear layers, :func:`convert_convolutions` convolutions;
a network that is to have both is given to both.

Only exact ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d`` modules are replaced.
Subclasses are left alone, as the modules that hold them may read their weight directly
(``nn.MultiheadAttention`` does); so are layers with hooks, and layers that share their weight with
something that is not converted, such as an output head tied to an embedding: a packed copy would
cost memory rather than save it. Each is reported.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from impl.layers.base import QuantizedLinear
from impl.layers.conv import QuantizedConv
from impl.layers.embedding import EmbeddingTable
from impl.layers.fused import leave_fused_paths
from impl.layers.nbit import IntegerLayer
from impl.layers.quantized import QuantizedLayer
from impl.layers.ternary import BitLinear
from impl.layers.ternary_conv import TernaryConv

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class ConversionReport:
    """What a conversion did, by module name ("" is the root)."""

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Layers of the kind converted that were left alone, and why."""


def convert_linear_to_bitlinear(
    module: nn.Module,
    inplace: bool = True,
    *,
    skip: Sequence[str] = (),
    layer: type[QuantizedLinear] = BitLinear,
    report: ConversionReport | None = None,
    **options: Any,
) -> nn.Module:
    """Replace every ``nn.Linear`` in ``module`` by ``layer.from_linear(linear, **options)``.

    Weights, biases, devices and dtypes are kept. Linear layers that share a weight share it
    afterwards; where they also share or lack a bias they become one module. ``skip`` holds names
    or globs of modules to leave alone ("lm_head", "*.attention.*", "*head"); each must match
    something. ``inplace=False`` converts a deep copy. ``report`` is filled in; without one, layers
    left alone for another reason than ``skip`` are warned of once.

    Returns the converted module: the replacement where ``module`` is itself an ``nn.Linear``.
    Raises ValueError where ``skip`` matches nothing or a weight holds NaN or infinity, and TypeError
    for options that ``layer`` does not take and for float64 layers, before anything is replaced.
    """
    if not (isinstance(layer, type) and issubclass(layer, QuantizedLinear)):
        raise TypeError(f"layer must be a class such as impl.BitLinear or impl.BinaryLinear, got {layer!r}")
    kind = _Kind("linear layers", (nn.Linear,), lambda old: layer.from_linear(old, **options))
    return _convert(module, inplace, skip, report, kind)


def convert_convolutions(
    module: nn.Module,
    inplace: bool = True,
    *,
    skip: Sequence[str] = (),
    layer: type[QuantizedConv] = TernaryConv,
    report: ConversionReport | None = None,
    **options: Any,
) -> nn.Module:
    """Replace every convolution in ``module`` by ``layer.from_conv(convolution, **options)``.

    ``layer`` is BinaryConv, TernaryConv or MultiTernaryConv, for ``nn.Conv1d``, ``nn.Conv2d`` and
    ``nn.Conv3d`` alike. With ``pack=False`` the layers get latent weights, ready to train. Networks
    usually keep their first convolution in float: name it in ``skip``. Convolutions that pad by
    other values than zeros are left alone and reported. Otherwise as
    :func:`convert_linear_to_bitlinear`.
    """
    if not (isinstance(layer, type) and issubclass(layer, QuantizedConv)):
        raise TypeError(f"layer must be a class such as impl.TernaryConv or impl.BinaryConv, got {layer!r}")
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind = _Kind("convolutions", kinds, lambda old: layer.from_conv(old, **options))
    return _convert(module, inplace, skip, report, kind)


def has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has hooks on its calls or gradients: a layer put in its place has none of them."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def why_left(
    module: nn.Module,
    candidates: Mapping[str, nn.Module],
    classes: tuple[type[nn.Module], ...] = (nn.Linear,),
) -> dict[str, str]:
    """Which of the ``candidates`` to replace, layers of ``module`` by name, something relies on as they
    are, and why: those that are of none of ``classes`` but of a subclass, have hooks, or share their
    weight with something that is not replaced. A layer under several names is given under each."""
    left = {name: why for name, old in candidates.items() if (why := _why_not(old, classes))}
    while True:
        replaced = {name: old for name, old in candidates.items() if name not in left}
        tied = _tied_outside(module.modules(), replaced)
        if not tied:
            return left
        for name, other in tied.items():
            left[name] = f"its weight is shared with a {other}, which is not converted"


@dataclass(frozen=True)
class _Kind:
    """What a conversion replaces."""

    plural: str
    classes: tuple[type[nn.Module], ...]
    replace: Callable[[Any], QuantizedLayer]


def _convert(
    module: nn.Module, inplace: bool, skip: Sequence[str], report: ConversionReport | None, kind: _Kind
) -> nn.Module:
    if isinstance(skip, str):
        raise TypeError(f"skip takes a list of names, got the string {skip!r}: write skip=[{skip!r}]")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    module = module if inplace else copy.deepcopy(module)
    found = report if report is not None else ConversionReport()
    chosen = _select(module, skip, found, kind)
    replacements = _build(chosen, kind)
    for name, old in chosen.items():
        found.converted.append(name)
        if old is module:
            module = replacements[id(old)]
    replace_children(module, replacements)
    left = {name: why for name, why in found.skipped.items() if not why.startswith(_ASKED)}
    if report is None and left:
        listing = "; ".join(f"{name or 'the root module'}: {why}" for name, why in left.items())
        warnings.warn(f"{kind.plural} left unconverted: {listing}", UserWarning, stacklevel=3)
    return module


def prepare(module: nn.Module, inplace: bool = True, **options: Any) -> nn.Module:
    """:func:`convert_linear_to_bitlinear` to training form: latent weights, ready to train.

    ``convert_convolutions(module, pack=False)`` does the same for convolutions.
    """
    return convert_linear_to_bitlinear(module, inplace, pack=False, **options)


def pack(module: Model) -> Model:
    """Pack every quantised layer in ``module`` in place, itself, embeddings and n-bit layers included.
    Returns it.

    Layers that share a latent weight and quantise it alike share the packed buffers (until a move
    to another device, which copies buffers).
    """
    layers = [layer for layer in _quantized_layers(module) if layer.weight is not None]
    uses = Counter(id(layer.weight) for layer in layers)
    first_of: dict[tuple[Any, ...], QuantizedLayer | EmbeddingTable] = {}
    held = []  # shared weights stay alive to the end: a freed one's id could be met again
    for layer in layers:
        shared = uses[id(layer.weight)] > 1
        if shared:
            held.append(layer.weight)
        key = (id(layer.weight), *_numerics(layer))
        if shared and key in first_of:
            layer.share_packed(first_of[key])
        else:
            layer.pack()
            if shared:
                first_of[key] = layer
    for other in _integer_layers(module):
        other.pack()
    return module


def unpack(module: Model) -> Model:
    """Unpack every quantised layer in ``module`` in place, itself, embeddings and n-bit layers included.
    Returns it.

    Layers that share packed buffers share the latent weight.
    """
    weights: dict[int, tuple[Tensor, nn.Parameter]] = {}  # the codes too, so that no id is met twice
    for layer in _quantized_layers(module):
        codes = layer.codes
        if codes is None:
            continue
        layer.unpack()
        assert layer.weight is not None
        layer.weight = weights.setdefault(id(codes), (codes, layer.weight))[1]
    for other in _integer_layers(module):
        other.unpack()
    return module


_ASKED = "named in skip"


def _select(
    module: nn.Module, skip: Sequence[str], report: ConversionReport, kind: _Kind
) -> dict[str, nn.Module]:
    """The layers to convert, by their first name; fills in what is left alone."""
    modules = dict(module.named_modules(remove_duplicate=False))
    unmatched = [pattern for pattern in skip if not any(_matches(name, [pattern]) for name in modules)]
    if unmatched:
        names = [name for name, m in modules.items() if isinstance(m, kind.classes)]
        raise ValueError(
            f"skip names {', '.join(map(repr, unmatched))}, which match no module; "
            f"{kind.plural} are {', '.join(map(repr, names[:12]))}{' ...' if len(names) > 12 else ''}"
        )
    found = {name: old for name, old in modules.items() if isinstance(old, kind.classes)}
    asked = {name: f"{_ASKED}: {name}" for name in found if _matches(name, skip)}
    refused = {id(found[name]) for name in asked}  # under one of its names: under all
    candidates = {name: old for name, old in found.items() if id(old) not in refused}
    left = why_left(module, candidates, kind.classes)
    report.skipped |= asked | left
    chosen: dict[int, tuple[str, nn.Module]] = {}
    for name, old in candidates.items():
        if name not in left:
            chosen.setdefault(id(old), (name, old))
    return dict(chosen.values())


def _why_not(old: nn.Module, classes: tuple[type[nn.Module], ...]) -> str:
    if type(old) not in classes:
        base = next(base for base in classes if isinstance(old, base))
        return f"{type(old).__name__} is a subclass of nn.{base.__name__} that its owner may rely on"
    if has_hooks(old):
        return "it has hooks, which would be lost"
    mode = getattr(old, "padding_mode", "zeros")
    return "" if mode == "zeros" else f"it pads by {mode!r}, low-bit convolutions by one value"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether ``name`` or a module that contains it is one of ``patterns`` (names or globs)."""
    parts = name.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch.fnmatchcase(prefix, pattern) for prefix in prefixes for pattern in patterns)


def _tied_outside(modules: Iterable[nn.Module], chosen: Mapping[str, nn.Module]) -> dict[str, str]:
    """Chosen layers whose weight some module that is not chosen holds too, with its type."""
    ids = {id(old) for old in chosen.values()}
    owners: dict[int, str] = {}
    for module in modules:
        if id(module) not in ids:
            owners.update({id(p): type(module).__name__ for p in module.parameters(recurse=False)})
    return {name: owners[id(old.weight)] for name, old in chosen.items() if id(old.weight) in owners}


def _build(olds: dict[str, nn.Module], kind: _Kind) -> dict[int, QuantizedLayer]:
    """The replacement of each layer, by the id of the old one; ties are kept."""
    replacements: dict[int, QuantizedLayer] = {}
    first_of: dict[int, QuantizedLayer] = {}
    alike: dict[tuple[Any, ...], QuantizedLayer] = {}
    for name, old in olds.items():
        places = (getattr(old, place, None) for place in ("stride", "padding", "dilation", "groups"))
        key = (id(old.weight), id(old.bias), *places)
        if key in alike and alike[key].is_packed:
            replacements[id(old)] = alike[key]  # nothing tells them apart: one module, tied for good
            continue
        try:
            new = kind.replace(old)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name or 'the root module'}: {error}") from error
        # The old layer goes: its Parameters live on, so that ties and optimizers keep them.
        new.bias = cast("nn.Parameter | None", old.bias)
        if not new.is_packed:
            new.weight = cast("nn.Parameter", old.weight)
        elif id(old.weight) in first_of:
            new.share_packed(first_of[id(old.weight)])
        first_of.setdefault(id(old.weight), new)
        alike[key] = replacements[id(old)] = new
    return replacements


def replace_children(module: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Put new modules in the places of those in ``module`` that they replace, by the id of the old one:
    under every name that it has."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() drops second names
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
    leave_fused_paths(module)


def _quantized_layers(module: nn.Module) -> list[QuantizedLayer | EmbeddingTable]:
    return [m for m in module.modules() if isinstance(m, QuantizedLayer | EmbeddingTable)]


def _integer_layers(module: nn.Module) -> list[IntegerLayer]:
    return [m for m in module.modules() if isinstance(m, IntegerLayer)]


def _numerics(layer: QuantizedLayer | EmbeddingTable) -> tuple[Any, ...]:
    """Everything that fixes what packing makes of a weight."""
    return (
        type(layer),
        layer.format,
        layer.components,
        layer.scale,
        layer.group_size,
        layer.scale_dtype,
        getattr(layer, "rule", None),
        getattr(layer, "refit", None),
    )
