"""Saving and loading the state of a module as safetensors.

The file is a plain safetensors file: packed layers appear as ``<name>.codes`` (uint8),
``<name>.scales`` and ``<name>.packing`` (the int64 header), latent ones as ``<name>.weight``.
Tensors that share memory are stored once; the metadata entry ``bitimpl.aliases`` (JSON) maps the
other names to the stored one.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from impl.packing import Header, already_checked, check_packed, read_header
from impl.parameters import LowBitTensor

#: Version of this file convention; files of newer versions are refused.
FILE_VERSION = 1

_Packed = tuple[Header, Tensor, Tensor]  # with its codes and scales

_VERSION_KEY = "bitimpl.version"
_ALIASES_KEY = "bitimpl.aliases"


def save(module: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write the state of ``module`` to ``path``; an existing file is replaced in one step.

    ``metadata`` (strings) is stored beside it; names that begin with ``bitimpl.`` are taken.
    Raises ValueError for such names, for tensors on the meta device, and for parameters without a
    float copy, which safetensors cannot hold.
    """
    reserved = [key for key in metadata or {} if key.startswith("bitimpl.")]
    if reserved:
        raise ValueError(f"metadata {reserved} use the reserved prefix 'bitimpl.': rename them")
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}: safetensors holds tensors only")
        if value.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values to save")
        if isinstance(value, LowBitTensor):
            raise ValueError(
                f"{name} is a {type(value).__name__}, integers that look like floats, which safetensors "
                "cannot hold: pack the layer, or torch.save() the state to train on"
            )
        place = (value.data_ptr(), value.dtype, value.device, tuple(value.shape), value.stride())
        if value.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        tensors[name] = in_own_memory(value.detach())
    header = {
        "format": "pt",
        _VERSION_KEY: str(FILE_VERSION),
        _ALIASES_KEY: json.dumps(aliases, sort_keys=True),
        **(metadata or {}),
    }
    replace_file(path, lambda partial: save_file(tensors, partial, metadata=header))


def replace_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a file beside ``path`` and put it there in one step, with the permissions of
    a new file. Where ``write`` raises, nothing is left of it and what was at ``path`` stays; where the
    machine stops, ``path`` is the old file or the new one, whole."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    partial.touch(exist_ok=False)
    try:
        mode = partial.stat().st_mode  # what the umask gives; safetensors puts an owner-only file here
        write(partial)
        partial.chmod(mode)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())  # or the new name could be on disk before what it names
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def in_own_memory(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy of it unless it is contiguous and fills its memory: safetensors refuses
    views of one storage."""
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def load(
    module: nn.Module, path: str | os.PathLike[str], *, strict: bool = True, assign: bool = False
) -> dict[str, str]:
    """Load ``path`` into ``module`` and return the file's metadata.

    Quantised layers take the form, packed or latent, that the file holds for them. ``strict`` and
    ``assign`` are those of ``load_state_dict``; a module on the meta device needs ``assign``.

    Raises FileNotFoundError; ValueError where the file is damaged, pickled, of a newer version, or
    holds packed weights that this build cannot read, with ``module`` unchanged; RuntimeError where it
    does not fit ``module``, which takes what fits then, as from ``load_state_dict``.
    """
    state, metadata, weights = _read(path)
    with already_checked(weights):  # the layers check what they are given, here it is known to be whole
        module.load_state_dict(state, strict=strict, assign=assign)
    return metadata


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state in ``path``, aliases included, and the file's metadata. Raises as :func:`load`."""
    state, metadata, _ = _read(path)
    return state, metadata


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str], list[_Packed]]:
    """:func:`read_state`, and the packed weights of the state, found whole."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_version(path, metadata)
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        if is_pickled(path):
            raise ValueError(
                f"{path} is a torch or pickle file, which can run code when loaded; only safetensors are "
                "read here: load_state_dict(torch.load(path, weights_only=True)) loads tensors alone"
            ) from error
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    for name, stored in _aliases(path, metadata).items():
        if stored not in state:
            raise ValueError(f"{path} names {stored} as the data of {name} but does not hold it: damaged")
        state[name] = state[stored]
    return state, metadata, _packed_weights(path, state)


def is_pickled(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as those of ``torch.save`` (a zip archive, once a bare pickle) do, and not
    as safetensors: eight bytes of length, any of them, then JSON."""
    with open(path, "rb") as file:
        head = file.read(9)
    return head[8:] != b"{" and head.startswith((b"PK", b"\x80"))


def _packed_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> list[_Packed]:
    """The packed weights in ``state``; ValueError naming the tensor where one is damaged or newer."""
    found: list[_Packed] = []
    for name, packing in state.items():
        prefix, _, leaf = name.rpartition(".")
        if leaf != "packing":
            continue
        try:
            header = read_header(packing)
        except ValueError as error:
            raise ValueError(f"{path}, {name}: {error}") from error
        at = f"{prefix}." if prefix else ""
        codes, scales = state.get(f"{at}codes"), state.get(f"{at}scales")
        if codes is None or scales is None:
            continue  # a strict load names what is missing
        try:
            check_packed(header, codes, scales)
        except ValueError as error:
            raise ValueError(f"{path}, {at}{error}") from error
        found.append((header, codes, scales))
    return found


def _aliases(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, str]:
    """The further names of tensors stored once."""
    try:
        aliases = json.loads(metadata.get(_ALIASES_KEY, "{}"))
    except ValueError as error:
        raise ValueError(f"{path}: {_ALIASES_KEY} in its metadata is not valid JSON: {error}") from error
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise ValueError(f"{path}: {_ALIASES_KEY} in its metadata must map names to names: damaged")
    return aliases


def _check_version(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    version = metadata.get(_VERSION_KEY, str(FILE_VERSION))
    if not version.isdecimal() or int(version) > FILE_VERSION:
        raise ValueError(
            f"{path} has file version {version}, this build reads up to {FILE_VERSION}: update the package"
        )
