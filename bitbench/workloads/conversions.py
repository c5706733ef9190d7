"""The float layers of a pretrained network, replaced by what a layer kind makes of them.

Converting takes seconds to minutes, and every process of a run needs it: compact conversions are kept in
the run's cache. Importing this module imports no torch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from filelock import FileLock

from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.layers.specs import LinearSpec
from bitbench.suite.convolutions import ConvShape
from bitbench.workloads.base import Context, Unsupported
from bitbench.workloads.layer_check import fallback_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    FloatLayer = nn.Linear | nn.Conv2d

Model = TypeVar("Model", bound="nn.Module")

End = Literal["float", "same"]
"""Of a layer at an end of a network: left as it is, or replaced by what replaces the others."""

COMPACT = 0.25
"""Share of the float weights' bytes up to which a conversion is kept on disk. Above it are the
float kinds, whose conversion is a cast and quicker than the file."""


@dataclass(frozen=True)
class Converted:
    """A network some of whose layers are those of one kind."""

    model: Any
    layers: Mapping[str, nn.Module]
    """The layers under test by their name in the model: ``blocks.0.attention.query``, ``head``."""
    kind: LayerKind
    spec: LayerSpec

    def kernels(self) -> str:
        """Kernels that served the last calls, each once."""
        return ", ".join(sorted(self.served()))

    def fallback(self) -> str | None:
        """Why one of the kernels is not what the layer's name promises, or None."""
        return fallback_of(self.kind, self.spec, self.kernels())

    def served(self) -> set[str]:
        """Kernels that served the last calls."""
        return {self.kind.kernel(layer) for layer in self.layers.values()} - {""}


def supported(spec: LayerSpec, context: Context) -> LayerKind:
    """The kind of ``spec``.

    Raises:
        Unsupported: it cannot run on the context's device.
    """
    kind = layer_registry.get(spec.kind)
    if reason := kind.unsupported(spec, context.device):
        raise Unsupported(reason)
    return kind


def is_float32(spec: LayerSpec) -> bool:
    """Whether what is replaced by ``spec`` stays as it is."""
    return isinstance(spec, LinearSpec) and spec.dtype == "float32"


def sharing_copy(model: Model) -> Model:
    """A model of its own whose tensors are those of ``model``."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def replaced_by(
    part: str,
    floats: Mapping[str, FloatLayer],
    identity: str,
    kind: LayerKind,
    spec: LayerSpec,
    context: Context,
) -> dict[str, nn.Module]:
    """What ``spec`` makes of ``floats``, the ``part`` of the network whose weights ``identity`` names.

    Compact conversions are kept in ``context.cache_dir`` by weights, part and layer description;
    whoever comes first converts, under a lock, the others wait and read.

    Raises:
        Unsupported: the kind has no layer of that sort.
    """
    path = context.cache_dir / "conversions" / f"{_key(identity, part, spec)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        return _read(path, floats, kind, spec) if path.is_file() else _convert(path, floats, kind, spec)


def _key(identity: str, part: str, spec: LayerSpec) -> str:
    text = json.dumps([identity, part, spec.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _convert(
    path: Path, floats: Mapping[str, FloatLayer], kind: LayerKind, spec: LayerSpec
) -> dict[str, nn.Module]:
    import torch
    from torch import nn

    with torch.no_grad():
        layers = {
            name: kind.convert(spec, old) if isinstance(old, nn.Linear) else kind.convert_conv2d(spec, old)
            for name, old in floats.items()
        }
    state: dict[str, Any] = {
        f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()
    }
    plain = all(isinstance(value, torch.Tensor) and not value.is_quantized for value in state.values())
    if plain:
        size = sum(value.nbytes for value in state.values())
        if size <= COMPACT * sum(old.weight.nbytes for old in floats.values()):
            _write(path, state)
    return layers


def _write(path: Path, state: dict[str, Tensor]) -> None:
    """Whole or not at all: written beside and renamed."""
    from safetensors.torch import save_file

    handle, temporary = tempfile.mkstemp(prefix=path.stem, suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, temporary)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read(
    path: Path, floats: Mapping[str, FloatLayer], kind: LayerKind, spec: LayerSpec
) -> dict[str, nn.Module]:
    from safetensors import safe_open

    layers: dict[str, nn.Module] = {}
    with safe_open(path, framework="pt") as file:
        keys: dict[str, list[str]] = {name: [] for name in floats}
        for key in file.keys():  # noqa: SIM118 - not a mapping
            name = next(n for n in (key.rsplit(".", depth)[0] for depth in (1, 2, 3)) if n in keys)
            keys[name].append(key)
        blank: dict[tuple[Any, ...], nn.Module] = {}  # drawing and packing codes is slow: once a shape
        for name, old in floats.items():
            shape = _shape(old)
            if shape not in blank:
                blank[shape] = _blank(old, kind, spec)
            layer = copy.deepcopy(blank[shape])
            layer.load_state_dict({key[len(name) + 1 :]: file.get_tensor(key) for key in keys[name]})
            layers[name] = layer.eval()
    return layers


def _shape(layer: FloatLayer) -> tuple[Any, ...]:
    stride = getattr(layer, "stride", None)
    return *layer.weight.shape, layer.bias is not None, stride


def _blank(layer: FloatLayer, kind: LayerKind, spec: LayerSpec) -> nn.Module:
    """A layer of the kind in the shape of ``layer``, to be filled."""
    from torch import nn

    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return kind.random(spec, layer.in_features, layer.out_features, bias=bias, seed=0)
    side = layer.kernel_size[0]
    shape = ConvShape(
        shape=[layer.out_channels, layer.in_channels], kernel=side, stride=layer.stride[0], size=side
    )
    if (layer.kernel_size, layer.padding) != ((side, side), (shape.padding, shape.padding)):
        raise ValueError(f"{layer} is no convolution of bitbench's: a square kernel, padded by half its side")
    return kind.random_conv2d(spec, shape, bias=bias, seed=0)
