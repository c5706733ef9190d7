"""States of Hugging Face transformers' BitNet integration, both ways.

What such a state holds for a linear layer, by the ``quantization_config`` beside it:

==================  ==================  ===============================================================
linear_class        quantization_mode   entries
==================  ==================  ===============================================================
``bitlinear``       (offline)           ``weight`` packed; ``weight_scale`` = 1 / scale; ``bias``
``autobitlinear``   ``offline``         ``weight`` packed, or codes as floats; ``weight_scale`` = scale;
                                        ``bias`` / scale, as the layer multiplies its whole output
``autobitlinear``   ``online``          ``weight``: the latent weight, quantised in every forward;
                                        ``bias``
==================  ==================  ===============================================================

Packed weights are uint8 [out_features / 4, in_features] (:func:`impl.packing.pack_hf_two_bit`);
weight = code * scale with one scale per tensor. With ``use_rms_norm`` each layer has a norm in
front, ``rms_norm.weight``; here that is a :class:`~impl.layers.norm.NormedLinear`. Activations are
always quantised to 8 bits per token, which is ``activation_bits=8`` here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from impl.checks import check_choice
from impl.interchange.bitnet_config import LINEAR_CLASSES, BitNetConfig
from impl.interchange.placing import check_target, codes_and_scales, distinct_entries, place
from impl.layers import BitLinear, QuantizedLinear
from impl.layers.norm import NormedLinear, RMSNorm
from impl.packing import hf_weight_scale, pack_hf_two_bit, unpack_hf_two_bit

STORAGES = ("packed", "unpacked", "master")
"""How :func:`to_huggingface` stores weights: 2-bit codes, codes as floats, or latent weights."""

_ROWS_PER_BYTE = 4


def to_huggingface(
    model: nn.Module, *, linear_class: str = "autobitlinear", storage: str = "packed"
) -> tuple[dict[str, Tensor], BitNetConfig]:
    """The state of ``model`` as transformers' BitNet layers hold it, and the config that says so.

    ``model`` holds :class:`impl.BitLinear` layers in either form with one scale per tensor; its
    other tensors are passed on, tied ones under their first name, embeddings and convolutions of this
    package as the float weight that they compute with. ``storage``: "packed"
    (out_features must be a multiple of 4), "unpacked" (codes in the layer's ``weight_dtype``,
    ``autobitlinear`` only) or "master" (latent weights of the rule ``absmean``, ``autobitlinear``
    only). Scales are float32. ``model`` is not changed. Warns of layers without 8-bit activations, as
    transformers will quantise theirs.

    Raises ValueError naming the layer that cannot be stored so, and why.
    """
    check_choice("linear_class", linear_class, LINEAR_CLASSES)
    check_choice("storage", storage, STORAGES)
    if linear_class == "bitlinear" and storage != "packed":
        raise ValueError(f"storage={storage!r} needs linear_class='autobitlinear': 'bitlinear' reads packed")
    layers, norms = _bitnet_layers(model)
    state = distinct_entries(model, without=[*layers.values(), *norms.values()])
    for name, layer in layers.items():
        try:
            master = storage == "master"
            entries = _latent_entries(layer) if master else _entries(layer, linear_class, storage)
        except ValueError as error:
            raise ValueError(f"{name or 'the root module'}: {error}") from error
        if name in norms:
            gain = norms[name].weight
            assert gain is not None
            entries["rms_norm.weight"] = gain.detach()
        state |= {_prefix(name) + key: tensor for key, tensor in entries.items()}
    config = BitNetConfig(
        linear_class,
        "online" if storage == "master" else "offline",
        _float_linears(model, layers),
        use_rms_norm=bool(norms),
        rms_norm_eps=_eps_of(norms.values()) if norms else BitNetConfig.rms_norm_eps,
    )
    _warn_of_activations(layers)
    return state, config


def from_huggingface(
    model: nn.Module, state: Mapping[str, Tensor], config: BitNetConfig, *, format: str = "base3"
) -> nn.Module:
    """Fill ``model`` from a transformers ``state``; its quantised layers become
    :class:`impl.BitLinear` layers of ``format`` with 8-bit activations.

    ``model`` is built as the float network, with ``nn.Linear`` (or quantised layers, which are
    replaced) under the names of the state; the meta device will do. Packed and unpacked weights
    give packed layers, latent ones (``online``) layers in training form. Returns the model.

    Raises ValueError, with ``model`` unchanged, where the state is damaged or does not fit it.
    """
    rest = dict(state)
    layers: dict[str, nn.Module] = {}
    for name in _quantised_names(model, state, config):
        try:
            layers[name] = _layer(model, name, rest, config, format)
        except ValueError as error:
            raise ValueError(f"{name or 'the root module'}: {error}") from error
    if not layers:
        raise ValueError(
            "the state has no quantised weight: load it as a float checkpoint, or look at "
            "modules_to_not_convert"
        )
    return place(model, layers, rest)


# ---- to transformers ------------------------------------------------------------------------------


def _bitnet_layers(model: nn.Module) -> tuple[dict[str, BitLinear], dict[str, RMSNorm]]:
    """The BitLinear layers of ``model`` by the name that transformers gives them, and the norms in
    front of them by the same names."""
    layers: dict[str, BitLinear] = {}
    norms: dict[str, RMSNorm] = {}
    wrapped: set[int] = set()
    for name, module in model.named_modules():
        layer = module
        if isinstance(module, NormedLinear):
            if not isinstance(module.norm, RMSNorm) or module.norm.weight is None:
                raise ValueError(f"{name}: transformers puts an RMSNorm with weights before a layer, or none")
            norms[name] = module.norm
            layer = module.linear
            wrapped.add(id(layer))
        elif id(module) in wrapped:
            continue
        if isinstance(layer, BitLinear):
            layers[name] = layer
        elif isinstance(layer, QuantizedLinear):
            raise ValueError(
                f"{name or 'the root module'} is a {type(layer).__name__}: transformers' BitNet has "
                "ternary weights of one component only"
            )
    if not layers:
        raise ValueError("the model holds no BitLinear: convert_linear_to_bitlinear() makes them")
    bare = [name for name in layers if name not in norms]
    if norms and bare:
        raise ValueError(f"{bare[0]} has no norm in front as others do: use_rms_norm is for all or none")
    return layers, norms


def _warn_of_activations(layers: Mapping[str, BitLinear]) -> None:
    other = [name or "the root module" for name, layer in layers.items() if layer.activation_bits != 8]
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        warnings.warn(
            f"{other[0]}{more} without activation_bits=8: transformers quantises the input of every BitNet "
            "layer to 8 bits, so that the outputs will differ",
            UserWarning,
            stacklevel=3,
        )


def _eps_of(norms: Iterable[RMSNorm]) -> float:
    found = {norm.eps for norm in norms}
    if len(found) > 1:
        raise ValueError(f"the norms have the eps {sorted(found)}: transformers has one rms_norm_eps for all")
    return found.pop()


def _float_linears(model: nn.Module, layers: Mapping[str, BitLinear]) -> tuple[str, ...]:
    """Names of the linear layers that stay float; ValueError where one, taken as a part of a name,
    would keep transformers from converting a quantised layer too."""
    names = tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    for name in names:
        taken = next((other for other in layers if name in other), None)
        if taken is not None:
            raise ValueError(
                f"transformers takes {name!r}, which stays float, for a part of {taken!r} and would not "
                "convert that layer either: rename one of them"
            )
    return names


def _entries(layer: BitLinear, linear_class: str, storage: str) -> dict[str, Tensor]:
    """``weight``, ``weight_scale`` and ``bias`` of a layer stored by its codes."""
    codes, scale = _codes_and_scale(layer)
    if storage == "packed":
        if codes.shape[0] % _ROWS_PER_BYTE:
            raise ValueError(
                f"out_features={codes.shape[0]} is no multiple of {_ROWS_PER_BYTE}, which packed weights of "
                "transformers need: use storage='unpacked'"
            )
        weight = pack_hf_two_bit(codes)
    else:
        weight = codes.to(layer.weight_dtype)
    entries = {"weight": weight, "weight_scale": hf_weight_scale(scale, linear_class)}
    if layer.bias is not None:
        bias = layer.bias.detach()
        entries["bias"] = bias if linear_class == "bitlinear" else (bias / scale).to(bias.dtype)
    return entries


def _codes_and_scale(layer: BitLinear) -> tuple[Tensor, Tensor]:
    """int8 codes [rows, cols] and the one float32 scale [1] of a layer."""
    all_codes, scales = codes_and_scales(layer)
    codes = all_codes[0]
    if layer.group_size is None:
        scales = scales[0][(codes != 0).any(dim=-1)]  # rows of zeros have no say
    distinct = scales.unique()
    if distinct.numel() > 1:
        raise ValueError(
            f"it has {distinct.numel()} different scales, transformers' BitNet has one per tensor: "
            "quantise with scale='tensor'"
        )
    if distinct.numel() == 0 or distinct.item() == 0:  # the weight is zero: any scale says so
        return torch.zeros_like(codes), torch.ones(1, device=codes.device)
    return codes, distinct


def _latent_entries(layer: BitLinear) -> dict[str, Tensor]:
    """``weight`` and ``bias`` of a layer that transformers will quantise itself, by absmean."""
    if layer.weight is None:
        raise ValueError("it is packed and has no latent weight: unpack() it, or use storage='packed'")
    if layer.rule != "absmean" or layer.scale == "row" or layer.group_size is not None:
        raise ValueError(
            f"transformers quantises latent weights by absmean per tensor, it has rule={layer.rule!r}, "
            f"scale={layer.scale!r}, group_size={layer.group_size}: use storage='packed'"
        )
    entries = {"weight": layer.weight.detach()}
    return entries if layer.bias is None else {**entries, "bias": layer.bias.detach()}


# ---- from transformers ----------------------------------------------------------------------------


def _quantised_names(model: nn.Module, state: Mapping[str, Tensor], config: BitNetConfig) -> list[str]:
    if config.online:
        linears = {
            name: module
            for name, module in model.named_modules()
            if type(module) is nn.Linear or isinstance(module, QuantizedLinear | NormedLinear)
        }
        inner = {f"{_prefix(name)}linear" for name, m in linears.items() if isinstance(m, NormedLinear)}
        return [name for name in linears if name not in inner and not config.skips(name)]
    for key, tensor in state.items():
        name, leaf = _split(key)
        if leaf == "weight" and tensor.dtype == torch.uint8 and f"{_prefix(name)}weight_scale" not in state:
            raise ValueError(f"{key} is packed but has no weight_scale beside it: the state is not whole")
    return [name for name, leaf in map(_split, state) if leaf == "weight_scale"]


def _layer(
    model: nn.Module, name: str, rest: dict[str, Tensor], config: BitNetConfig, format: str
) -> BitLinear | NormedLinear:
    """The layer for ``name``; its entries are taken out of ``rest``."""
    prefix = _prefix(name)
    if f"{prefix}weight" not in rest:
        raise ValueError("the state has no weight for it")
    weight = rest.pop(f"{prefix}weight").detach()
    bias = rest.pop(f"{prefix}bias", None)
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix, got shape {list(weight.shape)}")
    packed = weight.dtype == torch.uint8 and not config.online
    at = f"{prefix}linear" if _is_normed(model, name, config) else name
    # Packed rows are known up to a multiple of four: the model says how many there are.
    rows = _rows_of(model, at, weight.shape[0]) if packed else weight.shape[0]
    check_target(model, at, (rows, weight.shape[1]), bias is not None)
    if config.online:
        layer = _latent_layer(weight, bias, format)
    else:
        codes = unpack_hf_two_bit(weight, rows) if packed else _ternary_codes(weight)
        layer = _packed_layer(codes, rest.pop(f"{prefix}weight_scale"), bias, config, format)
    if not config.use_rms_norm:
        return layer
    gain = rest.pop(f"{prefix}rms_norm.weight", None)
    if gain is None or tuple(gain.shape) != (layer.in_features,):
        got = "none" if gain is None else f"one of {list(gain.shape)}"
        raise ValueError(f"use_rms_norm needs an rms_norm.weight [{layer.in_features}], the state has {got}")
    norm = RMSNorm(layer.in_features, config.rms_norm_eps, device="meta")
    norm.weight = nn.Parameter(gain.detach().clone())
    return NormedLinear(layer, norm)


def _packed_layer(
    codes: Tensor, stored: Tensor, bias: Tensor | None, config: BitNetConfig, format: str
) -> BitLinear:
    if stored.numel() != 1:
        raise ValueError(f"weight_scale must be one number, got shape {list(stored.shape)}")
    scale = stored.detach().to(torch.float32).reshape(1)
    if not bool(torch.isfinite(scale)) or scale.item() == 0:
        raise ValueError(f"weight_scale must be finite and not 0, got {scale.item()}")
    scale = hf_weight_scale(scale, config.linear_class)
    if bias is not None and config.linear_class == "autobitlinear":
        bias = (bias.to(torch.float32) * scale).to(bias.dtype)
    return BitLinear.from_codes(codes, scale.view(1, 1, 1), bias, format=format, activation_bits=8)


def _latent_layer(weight: Tensor, bias: Tensor | None, format: str) -> BitLinear:
    if not weight.is_floating_point():
        raise ValueError(
            f"a latent weight is floating point, got {weight.dtype}: is quantization_mode 'online' right?"
        )
    rows, cols = weight.shape
    layer = BitLinear(cols, rows, bias is not None, "meta", weight.dtype, activation_bits=8, format=format)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _is_normed(model: nn.Module, name: str, config: BitNetConfig) -> bool:
    """Whether ``model`` has a norm before the layer ``name``; ValueError where the file has none."""
    normed = isinstance(_module_at(model, name), NormedLinear)
    if normed and not config.use_rms_norm:
        raise ValueError("the model has a norm before it, the file has none: use_rms_norm is not set")
    return normed


def _rows_of(model: nn.Module, name: str, byte_rows: int) -> int:
    """out_features of the layer ``name`` where so many rows of bytes hold it, else all that they can
    hold, which then does not fit the layer."""
    most = byte_rows * _ROWS_PER_BYTE
    rows = getattr(_module_at(model, name), "out_features", most)
    return rows if isinstance(rows, int) and most - _ROWS_PER_BYTE < rows <= most else most


def _module_at(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _ternary_codes(weight: Tensor) -> Tensor:
    codes = weight.to(torch.int8)
    if not bool((codes == weight).all()) or bool((codes.abs() > 1).any()):
        raise ValueError(
            "an unpacked weight holds the codes -1, 0 and +1: latent weights have quantization_mode 'online'"
        )
    return codes


def _prefix(name: str) -> str:
    return f"{name}." if name else ""


def _split(key: str) -> tuple[str, str]:
    name, _, leaf = key.rpartition(".")
    return name, leaf
