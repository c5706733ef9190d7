"""Folders of Hugging Face BitNet models: ``config.json`` and safetensors, one file or shards."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from impl.checkpoint import in_own_memory, replace_file
from impl.interchange.bitnet_config import BitNetConfig
from impl.interchange.huggingface import from_huggingface, to_huggingface

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def save_huggingface(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    linear_class: str = "autobitlinear",
    storage: str = "packed",
    model_config: Mapping[str, Any] | None = None,
) -> BitNetConfig:
    """Write ``model`` as a BitNet folder of transformers: :func:`to_huggingface`, in two files.

    ``config.json`` is ``model_config`` (the architecture, as transformers names it), or what the
    folder's ``config.json`` already says, with the new ``quantization_config``. The names of the
    state are those of ``model``: transformers finds them where they are its own. Returns the
    BitNetConfig. Raises as :func:`to_huggingface`; ValueError where a ``config.json`` is damaged.
    """
    state, config = to_huggingface(model, linear_class=linear_class, storage=storage)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    known = _read_json(target / _CONFIG) if model_config is None and (target / _CONFIG).is_file() else {}
    described = {**known, **(model_config or {}), "quantization_config": config.to_dict()}
    text = json.dumps(described, indent=2) + "\n"
    taken: set[int] = set()
    tensors = {name: _alone(tensor, taken) for name, tensor in state.items()}
    replace_file(target / _WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    replace_file(target / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    return config


def load_huggingface(model: nn.Module, folder: str | os.PathLike[str], *, format: str = "base3") -> nn.Module:
    """Fill ``model`` from a BitNet folder, as :func:`from_huggingface` does, and return it.

    Raises FileNotFoundError; ValueError where a file is damaged, the weights are pickled, or the
    state does not fit ``model``, which then is unchanged.
    """
    state, config, _ = read_huggingface(folder)
    return from_huggingface(model, state, config, format=format)


def read_huggingface(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, Tensor], BitNetConfig, dict[str, Any]]:
    """The state in a BitNet folder, its quantisation, and all of ``config.json``."""
    source = Path(folder)
    if not (source / _CONFIG).is_file():
        raise FileNotFoundError(f"no {_CONFIG} in {source}: name the folder of the model")
    described = _read_json(source / _CONFIG)
    config = BitNetConfig.from_dict(described)
    state: dict[str, Tensor] = {}
    for path in _weight_files(source):
        try:
            state |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    return state, config, described


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if (folder / _WEIGHTS).is_file():  # before an index, as in transformers: it may be left from before
        files = [folder / _WEIGHTS]
    elif index.is_file():
        mapping = _read_json(index).get("weight_map")
        names = sorted({str(name) for name in mapping.values()}) if isinstance(mapping, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"{index} must map tensors to files beside it, got {names[:3]}")
        files = [folder / name for name in names]
    elif not list(folder.glob("*.bin")):
        files = [folder / _WEIGHTS]
    else:
        raise ValueError(
            f"{folder} holds pickled weights (*.bin) only, which can run code when loaded: "
            "convert them to safetensors first"
        )
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}: the folder is not whole")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(value).__name__}")
    return value


def _alone(tensor: Tensor, taken: set[int]) -> Tensor:
    """``tensor`` as the only and contiguous user of its memory, which safetensors asks for; ``taken``
    are the addresses given out."""
    own = in_own_memory(tensor)
    if own.data_ptr() in taken:
        own = own.clone()
    taken.add(own.data_ptr())
    return own
