"""Batch norm folded into the scales and the bias of the packed layer in front of it.

In evaluation batch norm is an affine map of each channel (Ioffe & Szegedy, 2015),

    norm(y) = (y - mean) * factor + beta,    factor = gamma / sqrt(var + eps)

and a packed layer ends in one: ``y = scale * dot + bias``, with a scale for each output. The two become
one, ``scale' = scale * factor`` and ``bias' = (bias - mean) * factor + beta``, at no cost to the layer:
codes, activations and their integer products stay what they were.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from impl.convert import replace_children
from impl.layers.base import QuantizedLinear
from impl.layers.conv import QuantizedConv
from impl.layers.quantized import QuantizedLayer
from impl.tracing import Calls

Layer = TypeVar("Layer", bound=QuantizedLayer)
Model = TypeVar("Model", bound=nn.Module)

# The norm of what a layer gives, by the number of its spatial dimensions (0: a linear layer).
_NORMS: dict[int, type[_BatchNorm]] = {
    0: nn.BatchNorm1d,
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


def fuse_batch_norm(layer: Layer, norm: nn.Module) -> Layer:
    """A new layer that computes ``norm(layer(x))``, in evaluation form. Neither argument is changed.

    ``layer``: a packed binary, ternary or k-ternary linear layer or convolution; of a linear layer,
    inputs [batch, in_features], as batch norm takes the second dimension for the channels. ``norm``: the
    ``nn.BatchNorm1d``, ``2d`` or ``3d`` (or ``nn.SyncBatchNorm``) of its output channels, in evaluation
    mode, with or without ``affine``.

    The new layer has float32 scales, one a row (of each group), whatever the old one's were, and a bias
    in the dtype of the old one or, where that had none, in ``layer.weight_dtype``. Results differ from
    ``norm(layer(x))`` by rounding alone. With integer activations, n = components times groups, float32
    throughout and u = 2^-24, that is at most 2 (n + 10) u times ``(sum_n |scale_n dot_n| * activation
    scale + |bias| + |mean|) * |factor| + |beta|``; float activations add the rounding of their sums. A
    narrower dtype is rounded to once, no longer after the layer and again after the norm.

    Raises TypeError for other modules and a norm of other dimensions; ValueError where the numbers of
    channels differ, the norm is in training mode, has no running statistics or lies on another device,
    or where a scale or bias is not finite in its dtype; RuntimeError for a layer in training form, whose
    weight is still to be quantised: ``pack()`` it first.
    """
    factor, shift = _affine(layer, norm)
    fused = copy.deepcopy(layer).eval()
    packed = layer.packed_weight
    scales = (packed.scales.to(torch.float64) * factor.view(1, -1, 1)).to(torch.float32)
    _check_finite("scale", scales)
    dtype = layer.weight_dtype if layer.bias is None else layer.bias.dtype
    if layer.bias is not None:
        shift = shift + layer.bias.detach().to(torch.float64) * factor
    bias = shift.to(dtype)
    _check_finite("bias", bias)
    trains = any(old is not None and old.requires_grad for old in (layer.bias, norm.bias))
    fused.bias = nn.Parameter(bias, requires_grad=trains)
    assert fused.codes is not None
    fused._become_packed(fused.codes, scales)
    if fused.group_size is None:
        fused.scale = "row"
    return fused


def fuse_batch_norms(model: Model) -> Model:
    """Fuse every batch norm in ``model`` that follows a packed layer (:func:`fuse_batch_norm`), in place,
    and return the model: layers are replaced, norms become ``nn.Identity``.

    Pairs are found by tracing the model with ``torch.fx``, low-bit layers and modules of torch as leaves:
    the output of the layer goes to the norm and nowhere else, and each is called once, by itself, without
    hooks. Other norms stay, as do those of a linear layer with another number of channels than it has
    outputs: they normalise sequences [batch, length, features] along their length.

    Linear layers in front of a norm must be called on [batch, in_features]. Where sequences are as long as
    they have features, nothing in the model tells their norm from one of the features, and it would be
    fused as that: keep such pairs apart (``impl.fuse_batch_norm`` fuses single ones).

    Raises ValueError where the model cannot be traced (its forward depends on values or shapes), and
    what :func:`fuse_batch_norm` raises; the model is then unchanged.
    """
    pairs = _find_pairs(model)
    replacements: dict[int, nn.Module] = {}
    for layer_name, norm_name in pairs:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        assert isinstance(layer, QuantizedLayer)
        try:
            replacements[id(layer)] = fuse_batch_norm(layer, norm)
        except (RuntimeError, TypeError, ValueError) as error:
            raise type(error)(f"{layer_name!r} and {norm_name!r}: {error}") from error
        replacements[id(norm)] = nn.Identity()
    replace_children(model, replacements)
    return model


# ---- one pair -------------------------------------------------------------------------------


def _affine(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``factor`` and ``beta - mean * factor`` of ``norm``, float64 [channels], once the two fit."""
    if not isinstance(layer, QuantizedLinear | QuantizedConv):
        raise TypeError(
            "layer must be a packed binary, ternary or k-ternary linear layer or convolution, "
            f"got {type(layer).__name__}"
        )
    dims = layer.dims if isinstance(layer, QuantizedConv) else 0
    if not isinstance(norm, (_NORMS[dims], nn.SyncBatchNorm)):
        raise TypeError(
            f"norm must be the nn.{_NORMS[dims].__name__} of what a {type(layer).__name__} gives, "
            f"got {type(norm).__name__}"
        )
    if not layer.is_packed:
        raise RuntimeError(
            f"this {type(layer).__name__} is in training form, its weight still to be quantised: "
            "pack() it before fusing a batch norm into its scales"
        )
    if norm.training:
        raise ValueError(
            "the batch norm is in training mode, it uses the statistics of each batch: call eval() first"
        )
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError(
            "the batch norm has no running statistics (track_running_stats=False), it uses those of each "
            "batch: nothing constant can be fused"
        )
    if norm.num_features != layer.out_features:
        raise ValueError(
            f"the batch norm has {norm.num_features} channels, the layer gives {layer.out_features}: "
            "they must agree"
        )
    assert layer.codes is not None
    if mean.device != layer.codes.device:
        raise ValueError(
            f"the batch norm is on {mean.device}, the layer on {layer.codes.device}: move one with .to()"
        )
    mean, var = mean.to(torch.float64), var.to(torch.float64)
    factor = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach().to(torch.float64)
    beta = 0.0 if norm.bias is None else norm.bias.detach().to(torch.float64)
    return factor, beta - mean * factor


def _check_finite(name: str, values: Tensor) -> None:
    """ValueError where ``values`` hold NaN or infinity. The meta device has no values to look at."""
    if values.is_meta:
        return
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {values.numel()} values of the fused {name} are not finite in {values.dtype}: look "
            "for NaN, infinity and negative variances in the batch norm"
        )


# ---- whole models ---------------------------------------------------------------------------


def _find_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of layers and norms to fuse, in the order of the model's forward."""
    calls = Calls(
        model,
        "fuse single pairs with impl.fuse_batch_norm(layer, norm), and set the norm to torch.nn.Identity()",
    )
    pairs = []
    for node in calls.nodes:
        norm = calls.alone(node)
        if not isinstance(norm, _BatchNorm):
            continue
        before = node.args[0]
        layer = calls.alone(before)
        if not isinstance(layer, QuantizedLinear | QuantizedConv) or len(before.users) != 1:
            continue
        if isinstance(layer, QuantizedLinear) and norm.num_features != layer.out_features:
            continue
        pairs.append((str(before.target), str(node.target)))
    return pairs
