"""GGUF files with ternary tensors: reading them, filling a model from one, writing one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from impl.checkpoint import replace_file
from impl.checks import check_choice
from impl.interchange.gguf_blocks import (
    BLOCK_BYTES,
    BLOCK_WEIGHTS,
    decode_blocks,
    encode_blocks,
    merge_scales,
)
from impl.interchange.gguf_header import check_header
from impl.interchange.placing import check_target, codes_and_scales, distinct_entries, place
from impl.layers import BitLinear, QuantizedLinear
from impl.quantizers import Quantized

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter, ReaderTensor

Metadata = Mapping[str, "str | bool | int | float | list[Any]"]

_NAME_BYTES = 64  # GGML_MAX_NAME, the closing zero included
_MISFITS = ("error", "decode")


@dataclass(frozen=True, eq=False)
class GGUFContents:
    """What a GGUF file holds: tensors and key-value pairs by name.

    Matrices of the types ``TQ1_0`` and ``TQ2_0`` are :class:`impl.quantizers.Quantized`: int8 codes
    [1, rows, cols] and float16 scales. Other tensors keep their dtype where torch has it, and are
    decoded to float32 where they are quantised otherwise.
    """

    tensors: dict[str, Tensor | Quantized]
    metadata: dict[str, Any]


def read_gguf(path: str | os.PathLike[str]) -> GGUFContents:
    """Read a whole GGUF file.

    Raises FileNotFoundError; ValueError where the file is damaged or truncated, of the other byte
    order, or holds a type that the gguf package cannot decode.
    """
    reader = _open(path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    try:
        metadata = {key: field.contents() for key, field in fields.items()}
    except ValueError as error:  # text is decoded here only
        raise ValueError(f"{path} is not a whole GGUF file: {error}") from error
    return GGUFContents(dict(_tensors(reader)), metadata)


def load_gguf(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    rename: Callable[[str], str | None] | None = None,
    format: str = "base3",
    activation_bits: int | None = None,
) -> nn.Module:
    """Fill ``model`` from a GGUF file; linear layers whose weight is ``TQ1_0`` or ``TQ2_0`` there
    become packed :class:`impl.BitLinear` layers of ``format``, others are decoded.

    ``model`` is built as the float network, with ``nn.Linear`` (or quantised layers, which are
    replaced); the meta device will do. ``rename`` maps the file's tensor names to the state's
    ("blk.0.attn_q.weight" to "blocks.0.attention.query.weight"), None leaves a tensor out. The
    scales stay the file's float16 ones: per tensor or row where blocks agree, else per group of
    256. Returns the model.

    Raises FileNotFoundError; ValueError, with ``model`` unchanged, where the file is damaged or does
    not fit it.
    """
    layers: dict[str, nn.Module] = {}
    weights: dict[str, Quantized] = {}
    state: dict[str, Tensor] = {}
    # GGUF has no number without a dimension, as a counter of batches is.
    entries = model.state_dict().items()
    numbers = {name for name, entry in entries if isinstance(entry, Tensor) and entry.dim() == 0}
    for name, value in _tensors(_open(path)):
        key = name if rename is None else rename(name)
        if key is None:
            continue
        if isinstance(value, Tensor):
            state[key] = value.reshape(()) if key in numbers and value.numel() == 1 else value
        else:
            weights[key] = value
    modules = dict(model.named_modules(remove_duplicate=False))
    for key in list(weights):
        owner, _, leaf = key.rpartition(".")
        value = weights.pop(key)  # one weight at a time is held as codes and as a layer
        if leaf != "weight" or not isinstance(modules.get(owner), nn.Linear | QuantizedLinear):
            state[key] = value.dequantize()  # an embedding, say
            continue
        rows, cols = value.codes.shape[1:]
        bias = state.pop(f"{owner}.bias" if owner else "bias", None)
        try:
            check_target(model, owner, (rows, cols), bias is not None)
        except ValueError as error:
            raise ValueError(f"{owner or 'the root module'}: {error}") from error
        layers[owner] = BitLinear.from_codes(
            value.codes,
            value.scales,
            bias,
            format=format,
            activation_bits=activation_bits,
            group_size=value.group_size,
        )
    return place(model, layers, state)


def save_gguf(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    type: str = "TQ2_0",
    architecture: str = "bitimpl",
    rename: Callable[[str], str | None] | None = None,
    metadata: Metadata | None = None,
    misfits: str = "error",
) -> None:
    """Write ``model`` as a GGUF file whose quantised linear layers are of ``type`` (``TQ1_0`` or
    ``TQ2_0``); an existing file is replaced in one step.

    ``rename`` maps the names of the state to those of the file; None leaves a tensor out.
    ``architecture`` and ``metadata`` are what a reader such as llama.cpp needs to know the network
    by. Tensors of one dimension are written as float32, as llama.cpp has them, others in their
    dtype, tied ones under their first name; embeddings and convolutions of this package as the float
    weight that they compute with. Scales are rounded to float16.

    Layers that blocks of 256 weights cannot hold (``in_features`` or ``group_size`` not a multiple
    of 256, several components, a scale outside float16) are an error, or with ``misfits="decode"``
    are written as float32 values. Raises ValueError naming the layer or tensor.
    """
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

    check_choice("GGUF type", type, BLOCK_BYTES)
    check_choice("misfits", misfits, _MISFITS)
    writer = GGUFWriter(None, architecture)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{type}"])
    _add_metadata(writer, metadata or {})

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}
    floats = distinct_entries(model, without=layers.values())
    blocks: dict[str, Tensor] = {}
    for name, layer in layers.items():
        prefix, called = (f"{name}.", name) if name else ("", "the root module")
        try:
            codes, scales = codes_and_scales(layer)
        except ValueError as error:
            raise ValueError(f"{called}: {error}") from error
        try:
            blocks[f"{prefix}weight"] = _encode(layer, codes, scales, type)
        except ValueError as error:
            if misfits == "error":
                raise ValueError(
                    f"{called}: {error}, or write such layers as floats with misfits='decode'"
                ) from error
            floats[f"{prefix}weight"] = layer.dequantize()
        if layer.bias is not None:
            floats[f"{prefix}bias"] = layer.bias.detach()

    for key, tensor in blocks.items():
        name_in_file = _renamed(key, rename)
        if name_in_file is not None:
            writer.add_tensor(name_in_file, tensor.cpu().numpy(), raw_dtype=GGMLQuantizationType[type])
    for key, tensor in floats.items():
        name_in_file = _renamed(key, rename)
        if name_in_file is not None:
            numbers, raw_dtype = _float_array(key, tensor)
            writer.add_tensor(name_in_file, numbers, raw_dtype=raw_dtype)
    replace_file(path, lambda partial: _write(writer, partial))


# ---- reading --------------------------------------------------------------------------------------


def _open(path: str | os.PathLike[str]) -> GGUFReader:
    from gguf import GGUFReader

    if not Path(path).is_file():
        raise FileNotFoundError(f"no GGUF file at {path}")
    try:
        check_header(path)
        return GGUFReader(path)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is not a whole GGUF file: {error}") from error


def _tensors(reader: GGUFReader) -> Iterator[tuple[str, Tensor | Quantized]]:
    for item in reader.tensors:
        if item.tensor_type.name in BLOCK_BYTES and item.data.ndim == 2:
            yield item.name, _ternary(item)
        else:
            yield item.name, _numbers(item)


def _ternary(item: ReaderTensor) -> Quantized:
    blocks = torch.from_numpy(np.array(item.data))
    try:
        codes, scales = decode_blocks(blocks, item.tensor_type.name)
    except ValueError as error:
        raise ValueError(f"{item.name}: {error}") from error
    merged, group_size = merge_scales(codes, scales)
    return Quantized(codes.unsqueeze(0), merged, group_size)


def _numbers(item: ReaderTensor) -> Tensor:
    from gguf.quants import dequantize

    data: Any = np.array(item.data)  # a copy: the file is mapped read-only
    if item.tensor_type.name == "BF16":
        return torch.from_numpy(data).view(torch.bfloat16)
    if data.dtype == np.uint8:
        try:
            data = dequantize(data, item.tensor_type)
        except NotImplementedError as error:
            raise ValueError(f"{item.name} has type {item.tensor_type.name}: {error}") from error
    return torch.from_numpy(data)


# ---- writing --------------------------------------------------------------------------------------


def _encode(layer: QuantizedLinear, codes: Tensor, scales: Tensor, type: str) -> Tensor:
    """Blocks uint8 [rows, bytes] of the codes and scales of ``layer``; ValueError where they cannot
    hold them."""
    if layer.components != 1:
        raise ValueError(f"{type} holds one component, the layer has {layer.components}")
    if layer.in_features % BLOCK_WEIGHTS:
        raise ValueError(
            f"in_features={layer.in_features} is no multiple of {BLOCK_WEIGHTS}, a block of {type}"
        )
    group_size = layer.group_size
    if group_size is not None and group_size % BLOCK_WEIGHTS:
        raise ValueError(f"group_size={group_size} is no multiple of {BLOCK_WEIGHTS}, a block of {type}")
    blocks = layer.in_features // BLOCK_WEIGHTS
    if group_size is None:
        by_block = scales[0].expand(-1, blocks)
    else:
        by_block = scales[0].repeat_interleave(group_size // BLOCK_WEIGHTS, dim=-1)[:, :blocks]
    return encode_blocks(codes[0], by_block, type)


def _float_array(name: str, tensor: Tensor) -> tuple[Any, Any]:
    """An array and, where gguf cannot tell it from the array, its type."""
    from gguf import GGMLQuantizationType

    tensor = tensor.cpu().contiguous()
    if tensor.is_floating_point() and tensor.dim() <= 1:
        tensor = tensor.to(torch.float32)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint8).numpy(), GGMLQuantizationType.BF16
    if tensor.dtype in (torch.bool, torch.uint8) or tensor.is_complex():
        raise ValueError(f"{name} is {tensor.dtype}, which GGUF does not have: leave it out with rename")
    if tensor.dim() == 0:
        tensor = tensor.unsqueeze(0)
    return tensor.numpy(), None


def _renamed(name: str, rename: Callable[[str], str | None] | None) -> str | None:
    new = name if rename is None else rename(name)
    if new is not None and len(new.encode()) >= _NAME_BYTES:
        raise ValueError(f"the tensor name {new!r} is too long: ggml keeps {_NAME_BYTES - 1} bytes of it")
    return new


def _add_metadata(writer: GGUFWriter, metadata: Metadata) -> None:
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_uint32 if 0 <= value < 2**32 else writer.add_int64)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _write(writer: GGUFWriter, path: Path) -> None:
    """Fill the file ``path`` and close it, also where that fails."""
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
