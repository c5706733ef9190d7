"""Putting what a file of another library holds into a model: all of it, or nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES
from impl.convert import has_hooks
from impl.layers import QuantizedLinear
from impl.layers.forms import TwoForms
from impl.layers.nbit import IntegerLayer
from impl.layers.norm import NormedLinear

_LISTED = 8


def check_target(model: nn.Module, name: str, shape: tuple[int, int], has_bias: bool) -> None:
    """ValueError unless ``model`` has a linear layer ``name`` that a quantised one of ``shape``
    (out_features, in_features), with a bias or without, can stand in for."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            "the file has a quantised weight for it, the model has no such module: "
            "build the model as the file was built, or rename its modules"
        ) from None
    if type(layer) is not nn.Linear and not isinstance(layer, QuantizedLinear):
        raise ValueError(
            f"the file has a quantised weight for it, it is a {type(layer).__name__}: "
            "such a weight is for an nn.Linear or a quantised layer"
        )
    own = (layer.out_features, layer.in_features)
    if own != shape:
        raise ValueError(f"the file has a weight of {list(shape)} for it, the model one of {list(own)}")
    if (layer.bias is not None) != has_bias:
        with_, without = ("file", "model") if has_bias else ("model", "file")
        raise ValueError(f"the {with_} has a bias for it, the {without} has none")
    if has_hooks(layer):
        raise ValueError("it has hooks, which replacing it would lose: remove them first")


def codes_and_scales(layer: QuantizedLinear) -> tuple[Tensor, Tensor]:
    """int8 codes [k, rows, cols] and float32 scales [k, rows, groups] of a layer in either form.

    ValueError on the meta device, and where the latent weight holds NaN or infinity.
    """
    held = layer.codes if layer.weight is None else layer.weight
    if held is not None and held.is_meta:
        raise ValueError("it is on the meta device and has no values to export")
    codes, scales = layer._codes_and_scales()
    if not bool(torch.isfinite(scales).all()):
        raise ValueError("its weight holds NaN or infinity: repair the training run before exporting")
    return codes, scales


def distinct_entries(model: nn.Module, without: Iterable[nn.Module]) -> dict[str, Tensor]:
    """The state of ``model``, each tensor under the first of its names, except what the modules
    ``without`` hold themselves. Embeddings and convolutions of this package appear as the float
    ``weight`` that they compute with.

    ValueError where a tensor has no values, or where a layer computes with another weight than it
    holds and its kind is not known here.
    """
    left_out = {id(module) for module in without}
    modules = dict(model.named_modules(remove_duplicate=False))
    decoded = {
        name: module
        for name, module in modules.items()
        if isinstance(module, TwoForms) and id(module) not in left_out
    }
    seen: set[int] = set()
    entries: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner = name.rpartition(".")[0]
        if owner in decoded and id(modules[owner]) not in seen:
            seen.add(id(modules[owner]))
            entries |= _decoded_entries(owner, decoded[owner])
        if owner in decoded or id(modules.get(owner)) in left_out:
            continue
        _check_plain(name, tensor, modules.get(owner))
        if id(tensor) not in seen:
            seen.add(id(tensor))
            entries[name] = tensor.detach()
    return entries


def _decoded_entries(name: str, layer: TwoForms) -> dict[str, Tensor]:
    held = layer.codes if layer.weight is None else layer.weight
    if held is not None and held.is_meta:
        raise ValueError(f"{name or 'the root module'} is on the meta device and has no values to export")
    prefix = f"{name}." if name else ""
    entries = {f"{prefix}weight": cast("Any", layer).dequantize(dtype=layer.weight_dtype)}
    return entries if layer.bias is None else {**entries, f"{prefix}bias": layer.bias.detach()}


def _check_plain(name: str, tensor: Any, owner: nn.Module | None) -> None:
    """ValueError unless ``tensor`` is memory with values, all that ``owner`` computes with."""
    # bitorch_engine's layers and zeta's, by what they share: they stand above this package's layers.
    methods = ("generate_quantized_weight", "quantized_weight")
    if isinstance(owner, IntegerLayer) or any(callable(getattr(owner, method, None)) for method in methods):
        raise ValueError(
            f"{name} belongs to a {type(owner).__name__}, which computes with other values than those: "
            "replace it by a layer that the file can hold, such as impl.BitLinear"
        )
    if type(tensor) not in (Tensor, nn.Parameter):
        raise ValueError(
            f"{name} is a {type(tensor).__name__}: only plain tensors can be exported, put those of its "
            "values there first"
        )
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no values to export")


def place(model: nn.Module, layers: Mapping[str, nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    """Put ``layers`` in the places of the modules of their names and load ``state`` into the rest.

    Every entry of the remaining model must be in ``state``, under one of its names where it is
    tied, and nothing else: ValueError otherwise, with ``model`` unchanged. Layers go to the device
    and dtype of what they replace. A model on the meta device takes over the tensors of ``state``;
    buffers outside its state are for the caller to fill. Returns the model: the new layer where it
    was the root.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    replaced = {id(modules[name]): layer for name, layer in layers.items()}
    gone = [name for name, module in modules.items() if id(module) in replaced]
    targets = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not _inside(name, gone)
    }
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, tensor in targets.items():
        names_of[id(tensor)].append(name)
    filled = _fill_ties(state, names_of.values())
    _check_fit(targets, filled)

    for name, layer in layers.items():
        _take_over(modules[name], layer)
    if "" in layers:
        return layers[""]
    for parent in list(modules.values()):
        for name, child in list(parent._modules.items()):  # named_children() drops second names
            if id(child) in replaced:
                setattr(parent, name, replaced[id(child)])
    if filled:
        assign = any(tensor.is_meta for tensor in targets.values())
        model.load_state_dict(filled, strict=False, assign=assign)
        if assign:
            for names in names_of.values():
                _tie(model, names)
    return model


def _inside(entry: str, modules: Iterable[str]) -> bool:
    return any(name == "" or entry.startswith(f"{name}.") for name in modules)


def _fill_ties(state: Mapping[str, Tensor], groups: Iterable[list[str]]) -> dict[str, Tensor]:
    """``state`` with every name of a tied tensor that it has under one name."""
    filled = dict(state)
    for names in groups:
        given = next((state[name] for name in names if name in state), None)
        if given is not None:
            for name in names:
                filled.setdefault(name, given)
    return filled


def _check_fit(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    problems = []
    missing = [name for name in targets if name not in state]
    unexpected = [name for name in state if name not in targets]
    if missing:
        problems.append(f"lacks {_listing(missing)}")
    if unexpected:
        problems.append(f"has {_listing(unexpected)}, which the model does not have")
    problems += [
        f"has {name} of shape {list(state[name].shape)}, the model one of {list(target.shape)}"
        for name, target in targets.items()
        if name in state and state[name].shape != target.shape
    ][:_LISTED]
    if problems:
        raise ValueError(f"the file {'; it '.join(problems)}: build the model as the file was built")


def _listing(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Bring ``new`` to the device, dtype and mode of the layer ``old``."""
    layer = old.linear if isinstance(old, NormedLinear) else old
    assert isinstance(layer, nn.Linear | QuantizedLinear)
    held = layer.codes if isinstance(layer, QuantizedLinear) and layer.weight is None else layer.weight
    assert held is not None
    if not held.is_meta:
        dtype = layer.weight_dtype if isinstance(layer, QuantizedLinear) else held.dtype
        new.to(held.device, dtype if dtype in ACTIVATION_DTYPES else None)
    new.train(old.training)


def _tie(model: nn.Module, names: list[str]) -> None:
    """Let one tensor stand under all of ``names``: adopting a state gives each its own Parameter."""
    owner, _, leaf = names[0].rpartition(".")
    first = getattr(model.get_submodule(owner), leaf)
    for name in names[1:]:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, first)
