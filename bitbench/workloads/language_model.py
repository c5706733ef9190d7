"""What the workloads on a pretrained language model share: its block layers replaced by a layer kind.

Importing this module imports no torch.
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
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from pydantic import field_validator

from bitbench.data.models import check_causal_lm
from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.workloads.base import Context, Unsupported, WorkloadSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitbench.data.models import CausalLM
    from impl.models.llama import Llama

COMPACT = 0.25
"""Share of the float weights' bytes up to which a conversion is kept on disk. Above it are the
float kinds, whose conversion is a cast and quicker than the file."""

LOAD_SECONDS_PER_NUMBER = 3e-8
"""Dequantise a GGUF file: 4 s for 134.5 million numbers on two cores."""


class LanguageModelSpec(WorkloadSpec):
    """An entry that runs a pretrained model."""

    model: str
    """Catalog name, ``tiny-random``, or the path of a .gguf file."""

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        return check_causal_lm(model)


@dataclass(frozen=True)
class Converted:
    """A model whose block projections are layers of one kind."""

    model: Llama
    layers: Mapping[str, nn.Module]
    """The layers under test by their name in the model, such as ``blocks.0.attention.query``."""
    kind: LayerKind
    spec: LayerSpec

    def kernels(self) -> str:
        """Kernels that served the last calls, each once."""
        return ", ".join(sorted({self.kind.kernel(layer) for layer in self.layers.values()}))

    def fallback(self) -> str | None:
        """Why one of the kernels is not what the layer's name promises, or None."""
        names = {self.kind.kernel(layer) for layer in self.layers.values()}
        reasons = (self.kind.fallback(self.spec, name) for name in sorted(names))
        return next((reason for reason in reasons if reason), None)


def supported(spec: LayerSpec, context: Context) -> LayerKind:
    """The kind of ``spec``.

    Raises:
        Unsupported: it cannot run on the context's device.
    """
    kind = layer_registry.get(spec.kind)
    if reason := kind.unsupported(spec, context.device):
        raise Unsupported(reason)
    return kind


def convert_blocks(lm: CausalLM, spec: LayerSpec, context: Context) -> Converted:
    """``lm`` with every linear layer of its blocks replaced by what ``spec`` makes of it.

    Embedding, norms and head stay float32 and are shared with ``lm``: one copy in the process. So
    does the residual stream; a layer of another type casts on its way in and out.
    Compact conversions are kept in ``context.cache_dir`` by weights and layer description; whoever
    comes first converts, under a lock, the others wait and read.

    Raises:
        Unsupported: the layer cannot run here.
    """
    kind = supported(spec, context)
    linears = _block_linears(lm.model)
    path = context.cache_dir / "conversions" / f"{_key(lm, spec)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        layers = _read(path, linears, kind, spec) if path.is_file() else _convert(path, linears, kind, spec)
    model = _sharing_copy(lm.model)
    for name, layer in layers.items():
        model.set_submodule(name, layer.to(context.device))
    return Converted(model.eval(), layers, kind, spec)


def _block_linears(model: Llama) -> dict[str, nn.Linear]:
    from impl.models.llama import PROJECTIONS

    names = [f"blocks.{i}.{part}" for i in range(model.config.num_layers) for part in PROJECTIONS]
    return {name: model.get_submodule(name) for name in names}  # type: ignore[misc]


def _sharing_copy(model: Llama) -> Llama:
    """A model of its own whose tensors are those of ``model``."""
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)


def _key(lm: CausalLM, spec: LayerSpec) -> str:
    text = json.dumps([lm.identity, spec.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _convert(
    path: Path, linears: dict[str, nn.Linear], kind: LayerKind, spec: LayerSpec
) -> dict[str, nn.Module]:
    import torch

    with torch.no_grad():
        layers = {name: kind.convert(spec, linear) for name, linear in linears.items()}
    state: dict[str, Any] = {
        f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()
    }
    plain = all(isinstance(value, torch.Tensor) and not value.is_quantized for value in state.values())
    if plain:
        size = sum(value.nbytes for value in state.values())
        if size <= COMPACT * sum(linear.weight.nbytes for linear in linears.values()):
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
    path: Path, linears: dict[str, nn.Linear], kind: LayerKind, spec: LayerSpec
) -> dict[str, nn.Module]:
    from safetensors import safe_open

    layers: dict[str, nn.Module] = {}
    with safe_open(path, framework="pt") as file:
        keys: dict[str, list[str]] = {name: [] for name in linears}
        for key in file.keys():  # noqa: SIM118 - not a mapping
            name = next(n for n in (key.rsplit(".", depth)[0] for depth in (1, 2, 3)) if n in keys)
            keys[name].append(key)
        blank: dict[tuple[int, int], nn.Module] = {}  # drawing and packing codes is slow: once a shape
        for name, linear in linears.items():
            shape = linear.in_features, linear.out_features
            if shape not in blank:
                blank[shape] = kind.random(spec, *shape, bias=False, seed=0)
            layer = copy.deepcopy(blank[shape])
            layer.load_state_dict({key[len(name) + 1 :]: file.get_tensor(key) for key in keys[name]})
            layers[name] = layer.eval()
    return layers
