"""Whole models by the names of bitorch_engine: find and replace layers, prepare, pack, save, load.

Against the original: the root module counts as every other does; a replaced layer keeps its weight,
bias, device and dtype; saving does not change the model; loading is strict and runs no code from
the file. :mod:`impl.convert` and :mod:`impl.checkpoint` do the work.
"""

from __future__ import annotations

import copy
import difflib
import glob
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import nn

from impl import checkpoint
from impl.convert import ConversionReport, convert_linear_to_bitlinear, why_left
from impl.convert import pack as pack_quantised
from impl.layers import BinaryLinear, BitLinear, MultiTernaryLinear, QuantizedLinear
from impl.layers.forms import TwoForms
from impl.layers.fused import leave_fused_paths
from impl.layers.nbit import IntegerLayer

_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_STATE_KEY = "state_dict"
_PACKAGE = __name__.split(".", maxsplit=1)[0]

# ---- finding and replacing ------------------------------------------------------------------------


def collect_layers(
    module: nn.Module, layer_types: Iterable[type[nn.Module]] | None = None, parent_name: str = ""
) -> dict[str, nn.Module]:
    """Layers in ``module``, itself included, whose type is exactly one of ``layer_types``, by name.

    None stands for ``nn.Linear``. Names begin with ``parent_name``; a layer under two names is there
    twice. Nothing is looked for inside a layer that was found.
    """
    types = {nn.Linear} if layer_types is None else set(layer_types)
    if type(module) in types:
        return {parent_name: module}
    found: dict[str, nn.Module] = {}
    for name, child in module._modules.items():  # named_children() drops second names
        if child is not None:
            found |= collect_layers(child, types, f"{parent_name}.{name}" if parent_name else name)
    return found


def replace_layers(
    module: nn.Module,
    names_to_replace: Iterable[str],
    class_: type[nn.Module],
    replace_fn: Callable[[Any], nn.Module],
    parent_name: str = "",
) -> list[nn.Module]:
    """Replace the layers called ``names_to_replace`` in ``module`` by ``replace_fn(layer)``, in place.

    Names are those of :func:`collect_layers`. Containers of every kind hold replacements. A layer
    named under two names stays one; a layer that is a ``class_`` already is left alone. Returns the
    new layers.

    Raises ValueError for names that are not in ``module``, that contain one another, or that mean
    ``module`` itself, which cannot be replaced in place; TypeError where ``replace_fn`` returns
    something else than a ``class_``. Nothing is replaced then.
    """
    found = dict(module.named_modules(remove_duplicate=False))
    names = _names_in(module, names_to_replace, parent_name, found)
    for name in names:
        outer = next((other for other in names if name.startswith(f"{other}.")), None)
        if outer is not None:
            raise ValueError(f"{name!r} is inside {outer!r}, which is to be replaced too: name one of them")
    built: dict[int, nn.Module] = {}
    for name in names:
        old = found[name]
        if isinstance(old, class_) or id(old) in built:
            continue
        new = replace_fn(old)
        if not isinstance(new, class_):
            raise TypeError(f"{name}: replace_fn returned a {type(new).__name__}, not a {class_.__name__}")
        built[id(old)] = new
    for name in names:
        if id(found[name]) in built:
            owner, _, leaf = name.rpartition(".")
            setattr(found[owner], leaf, built[id(found[name])])
    leave_fused_paths(module)
    return list(built.values())


def quantize_linear_with(
    module: nn.Module,
    names_to_replace: Iterable[str],
    layer: type[QuantizedLinear],
    parent_name: str = "",
    **options: Any,
) -> list[QuantizedLinear]:
    """Replace linear layers by ``layer.from_linear(linear, **options)``, in place: weights, biases,
    devices, dtypes and ties are kept (:func:`impl.convert_linear_to_bitlinear` for a choice of names).

    Returns the new layers. Warns of layers that are left alone: subclasses of ``nn.Linear``, layers
    with hooks, and those that share their weight with one that is not replaced. Raises ValueError
    for names that are no linear layer of ``module``, or name one of two names of a layer.
    """
    linears, names = _linears_in(module, names_to_replace, parent_name)
    if not names:
        return []
    report = ConversionReport()
    skip = [glob.escape(name) for name in linears if name not in names]
    convert_linear_to_bitlinear(module, skip=skip, layer=layer, report=report, **options)
    _warn_of_rest({name: why for name, why in report.skipped.items() if name in names})
    new = {id(found): found for found in map(module.get_submodule, report.converted)}
    return [cast("QuantizedLinear", found) for found in new.values()]


def quantize_linear_with_binary_linear(
    module: nn.Module, names_to_replace: Iterable[str], parent_name: str = "", **options: Any
) -> list[QuantizedLinear]:
    """:func:`quantize_linear_with` :class:`impl.BinaryLinear`."""
    return quantize_linear_with(module, names_to_replace, BinaryLinear, parent_name, **options)


def quantize_linear_with_ternary_linear(
    module: nn.Module, names_to_replace: Iterable[str], parent_name: str = "", **options: Any
) -> list[QuantizedLinear]:
    """:func:`quantize_linear_with` :class:`impl.BitLinear`."""
    return quantize_linear_with(module, names_to_replace, BitLinear, parent_name, **options)


def quantize_linear_with_k_ternary_linear(
    module: nn.Module, names_to_replace: Iterable[str], parent_name: str = "", **options: Any
) -> list[QuantizedLinear]:
    """:func:`quantize_linear_with` :class:`impl.MultiTernaryLinear`."""
    return quantize_linear_with(module, names_to_replace, MultiTernaryLinear, parent_name, **options)


def replace_linear_layers(
    module: nn.Module,
    names_to_replace: Iterable[str],
    class_: type[nn.Module],
    from_linear: Callable[[nn.Linear], nn.Module],
    parent_name: str = "",
) -> list[nn.Module]:
    """Replace linear layers by ``from_linear(linear)``, a ``class_`` of any kind, in place: layers that
    share a weight share it afterwards. What is left alone, returned and raised is as for
    :func:`quantize_linear_with`."""
    linears, names = _linears_in(module, names_to_replace, parent_name)
    left = why_left(module, {name: linears[name] for name in names})
    _warn_of_rest(left)
    first_of: dict[int, nn.Module] = {}

    def make(linear: nn.Linear) -> nn.Module:
        new = from_linear(linear)
        new.weight = first_of.setdefault(id(linear.weight), new).weight
        return new

    return replace_layers(module, [name for name in names if name not in left], class_, make)


# ---- preparing and packing ------------------------------------------------------------------------


def prepare_bie_layers(model: nn.Module, layers: Iterable[type[nn.Module]] | None = None) -> list[str]:
    """Make the quantised layers in ``model``, itself included, ready for training and inference.

    Calls ``prepare_params()`` of every layer that has it; the layers of this package need nothing.
    ``layers``: only instances of these classes. Returns the names of the layers. TypeError for
    instances that know neither.
    """
    chosen = _quantised(model, layers, "prepare_params")
    for layer in chosen.values():
        if callable(getattr(layer, "prepare_params", None)):
            cast("Any", layer).prepare_params()
    return list(chosen)


def pack_bie_layers(
    model: nn.Module, qweight_only: bool = True, layers: Iterable[type[nn.Module]] | None = None
) -> list[str]:
    """Pack the quantised layers in ``model``, itself included, in place.

    Calls ``generate_quantized_weight(qweight_only)`` of every layer that has it, and ``pack()`` of the
    layers of this package. These hold one form of their weight at a time, so that
    ``qweight_only=False``, which is to keep the float weight, leaves them as they are.
    ``layers``: only instances of these classes. Returns the names of the layers. TypeError for
    instances that know neither; ValueError for weights that cannot be packed.
    """
    chosen = _quantised(model, layers, "generate_quantized_weight")
    own: list[nn.Module] = []
    for layer in chosen.values():
        if callable(getattr(layer, "generate_quantized_weight", None)):
            cast("Any", layer).generate_quantized_weight(qweight_only=qweight_only)
        elif qweight_only:
            own.append(layer)
    pack_quantised(nn.ModuleList(own))  # together: layers that share a latent weight share the packed one
    return list(chosen)


# ---- saving and loading ---------------------------------------------------------------------------


def save_checkpoint(model: nn.Module, name: str | os.PathLike[str], qweight_only: bool = True) -> None:
    """Write the state of ``model`` to the file ``name``, packed unless ``qweight_only`` is False.

    ``model`` itself is not packed or otherwise changed, so this serves during training too. A name
    that ends in .pt, .pth, .bin, .ckpt or .tar gives the original's file, ``torch.save`` of
    {"state_dict": ...}, any other a safetensors file (:func:`impl.checkpoint.save`), which cannot hold
    unpacked parameters without a float copy (ValueError). An existing file is replaced in one step.
    """
    packed = _twin(model)
    pack_bie_layers(packed, qweight_only)
    path = Path(name)
    if path.suffix not in _TORCH_SUFFIXES:
        checkpoint.save(packed, path)
        return
    state = {_STATE_KEY: packed.state_dict()}
    checkpoint.replace_file(path, lambda partial: torch.save(state, partial))


def load_checkpoint(
    model: nn.Module, checkpoint_path: str | os.PathLike[str], qweight_only: bool = True
) -> None:
    """Load a file of :func:`save_checkpoint` or :func:`impl.checkpoint.save` into ``model``, strictly.

    Layers take the form that the file holds for them; with ``qweight_only`` those that it holds as
    float weights are packed then. A model on the meta device takes the tensors over.

    Raises FileNotFoundError; ValueError where the file is damaged or holds objects other than tensors,
    which are not loaded; RuntimeError where keys, shapes or packed weights are not those that the
    layers of ``model`` take.
    """
    meta = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    _load_file(model, checkpoint_path, assign=meta)
    pack_bie_layers(model, qweight_only)


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the modules of ``model`` that shares its tensors: packing it replaces them there only."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, cast("dict[int, Any]", tensors))


def _load_file(model: nn.Module, path: str | os.PathLike[str], assign: bool) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not checkpoint.is_pickled(path):
        checkpoint.load(model, path, assign=assign)
        return
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and loading that could run code: save the state_dict alone, "
            "or as safetensors"
        ) from error
    except (RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is not a whole torch file: {error}") from error
    state = loaded.get(_STATE_KEY, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no state_dict, but a {type(state).__name__}")
    model.load_state_dict(state, strict=True, assign=assign)


# ---- choosing -------------------------------------------------------------------------------------


def _names_in(
    module: nn.Module, names: Iterable[str], parent_name: str, known: Mapping[str, nn.Module]
) -> list[str]:
    """``names`` without ``parent_name``, each once; ValueError for those not in ``known``."""
    if isinstance(names, str):
        raise TypeError(f"names_to_replace takes a list, got the string {names!r}: write [{names!r}]")
    chosen: dict[str, None] = {}
    for full in names:
        name = full
        if parent_name and full == parent_name:
            name = ""
        elif parent_name:
            name = full.removeprefix(f"{parent_name}.")
            if name == full:
                raise ValueError(f"{full!r} does not begin with parent_name={parent_name!r}")
        if name == "":
            raise ValueError(
                f"the {type(module).__name__} given cannot be replaced in place: "
                "build its replacement from it, as with BitLinear.from_linear"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no such layer to replace: {full!r}{hint}")
        chosen[name] = None
    return list(chosen)


def _linears_in(
    module: nn.Module, names_to_replace: Iterable[str], parent_name: str
) -> tuple[dict[str, nn.Linear], list[str]]:
    """The linear layers of ``module`` under all their names, and the names of those to replace."""
    linears = {
        name: linear
        for name, linear in module.named_modules(remove_duplicate=False)
        if isinstance(linear, nn.Linear)
    }
    names = _names_in(module, names_to_replace, parent_name, linears)
    others = {id(linear): name for name, linear in linears.items() if name not in names}
    for name in names:
        if id(linears[name]) in others:
            raise ValueError(f"{name!r} is also called {others[id(linears[name])]!r}: name both")
    return linears, names


def _warn_of_rest(left: Mapping[str, str]) -> None:
    if left:
        listing = "; ".join(f"{name}: {why}" for name, why in left.items())
        message = f"linear layers left unconverted: {listing}"
        warnings.warn(message, UserWarning, stacklevel=_frames_of_this_package() + 1)


def _frames_of_this_package() -> int:
    """Frames between the caller and whoever called this package: its functions are wrapped by others."""
    frame: FrameType | None = sys._getframe(1)
    count = 0
    while frame is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == _PACKAGE:
        frame, count = frame.f_back, count + 1
    return count


def _quantised(
    model: nn.Module, layers: Iterable[type[nn.Module]] | None, method: str
) -> dict[str, nn.Module]:
    """The layers of ``model`` that have ``method`` or two forms, by name; of ``layers`` if given."""

    def able(module: nn.Module) -> bool:
        return isinstance(module, TwoForms | IntegerLayer) or callable(getattr(module, method, None))

    classes = None if layers is None else tuple(layers)
    chosen = {
        name: module
        for name, module in model.named_modules()
        if (able(module) if classes is None else isinstance(module, classes))
    }
    for name, module in chosen.items():
        if not able(module):
            called = name or "the root module"
            raise TypeError(f"{called} is a {type(module).__name__}, which has no {method}()")
    return chosen
