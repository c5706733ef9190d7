"""Binary networks whose layers hand each other signs: batch norm, bias and sign in one interval a channel.

Between two binary layers stands something like ``sign(batch_norm(y))``. In evaluation each step of it,
float arithmetic with its roundings included, rises or falls with y alone: all of it is +1 in one interval
of y for each channel and -1 elsewhere. The ends of the interval are found by bisection of the float32
numbers, with the modules themselves as the judge, so that the fused network gives the signs of the other
to the last bit, ties included. (Thresholds in place of batch norm: Umuroglu et al., FINN, arXiv
1612.07119, section 4.2.2.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from impl.checks import ACTIVATION_DTYPES
from impl.convert import replace_children
from impl.fusion import _affine
from impl.layers.activations import ApproxSign, RSign, SteSign, SwishSign
from impl.layers.base import QuantizedLinear
from impl.layers.conv import QuantizedConv
from impl.layers.threshold import ThresholdLayer
from impl.signs import Thresholds
from impl.tracing import Calls

Model = TypeVar("Model", bound=nn.Module)
Layer = QuantizedLinear | QuantizedConv

_SIGNS = (SteSign, ApproxSign, SwishSign, RSign)
_BETWEEN = (_BatchNorm, nn.Hardtanh, nn.Identity)
_MOST = 0x7F7FFFFF  # the largest finite float32, as an integer; those between follow each other


def fuse_thresholds(model: Model, dtype: torch.dtype = torch.float32) -> Model:
    """Let the binary layers of ``model`` hand each other signs, in place, and return the model.

    Wherever the result of a packed layer goes through batch norm and a sign into packed layers with
    ``activation_bits=1`` and nowhere else,

        layer -> [batch norm] -> sign -> layers

    the layers become :class:`~impl.layers.threshold.ThresholdLayer` and what is between them
    ``nn.Identity``: the first layer compares its results with one interval a channel and writes a bit
    each, the next ones take these. ``sign``: :class:`~impl.layers.activations.SteSign`, ``ApproxSign``,
    ``SwishSign`` or ``RSign``; ``nn.Hardtanh`` and ``nn.Identity`` may stand in front of it. Both ends
    are convolutions, or both linear layers. The first layer may have any ``activation_bits``.

    ``dtype``: of the input, for which the fused network gives what the other gave, to the last bit: for
    every input, NaN and infinities included, on the device it was fused on (another one may round a batch
    norm otherwise: move the model first). Another input dtype, or autocast to one, is a TypeError in
    forward. The network is for inference: it has no gradients.

    Chains are found by tracing the model with ``torch.fx`` as :func:`impl.fuse_batch_norms` does. What
    does not fit stays as it is: a sign that a pooling or reshaping takes, a layer with
    ``activation_bits=1`` that gets no explicit sign (its activation scale, mean|x|, is part of its
    result), layers that are called twice or have hooks.

    Raises ValueError where the model cannot be traced, where a batch norm is in training mode or has
    statistics that are not finite; RuntimeError for a layer of such a chain in training form: ``pack()``
    it first; TypeError for another ``dtype`` than float32, bfloat16 and float16. The model is then
    unchanged.
    """
    if dtype not in ACTIVATION_DTYPES:
        raise TypeError(f"dtype must be one of {ACTIVATION_DTYPES}, got {dtype}")
    calls = Calls(model, "fuse the part of it whose forward depends on neither values nor shapes")
    gives: dict[Layer, tuple[Thresholds, bool]] = {}
    takes: dict[Layer, str] = {}  # and their names
    replacements: dict[nn.Module, nn.Module] = {}
    for giver, between, takers in _chains(calls):
        layer = _layer(model, giver)
        modules = [model.get_submodule(str(node.target)) for node in between]
        try:
            if not layer.is_packed:
                raise RuntimeError("the layer is in training form: pack() the model before fusing thresholds")
            for module in modules:
                if isinstance(module, _BatchNorm):
                    _affine(layer, module)  # raises where it is none of the layer's, or not constant
            gives[layer] = find_thresholds(layer, modules, dtype), not _by_channel(modules)
        except (RuntimeError, TypeError, ValueError) as error:
            names = ", ".join(repr(str(node.target)) for node in (giver, *between))
            raise type(error)(f"{names}: {error}") from error
        takes.update((_layer(model, taker), str(taker.target)) for taker in takers)
        replacements.update((module, nn.Identity()) for module in modules)
    for layer, name in takes.items():
        if not layer.is_packed:
            raise RuntimeError(f"{name!r} is in training form: pack() the model before fusing thresholds")
    for layer in {**gives, **takes}:
        thresholds, any_rank = gives.get(layer, (None, True))
        replacements[layer] = ThresholdLayer(layer, thresholds, layer in takes, dtype, any_rank)
    replace_children(model, {id(old): new for old, new in replacements.items()})
    return model


def _layer(model: nn.Module, node: fx.Node) -> Layer:
    layer = model.get_submodule(str(node.target))
    assert isinstance(layer, QuantizedLinear | QuantizedConv)
    return layer


# ---- one interval a channel -----------------------------------------------------------------


def find_thresholds(layer: Layer, modules: list[nn.Module], dtype: torch.dtype) -> Thresholds:
    """Where ``modules``, called one after the other, make +1 of a result of ``layer`` in ``dtype``.

    The last one gives +-1 (NaN of what is not finite); the others rise or fall with their input, channel
    by channel. Raises ValueError where they make no number of 0, and on the meta device; RuntimeError for a
    layer in training form.
    """
    channels = layer.out_features
    device = layer.packed_weight.scales.device
    if device.type == "meta":
        raise ValueError("the meta device has no values to find thresholds from: load the model first")

    def signs(keys: Tensor) -> Tensor:
        """+1, -1 or NaN of the float32 values that ``keys`` [channels] stand for."""
        y = _values(keys).to(dtype).view(1, channels, *[1] * _dims(layer))
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for module in modules:
                y = module(y)
        return y.view(channels).to(torch.float32)

    zero = torch.zeros(channels, dtype=torch.int64, device=device)
    bad = int(signs(zero).isnan().sum())
    if bad:
        raise ValueError(
            f"{bad} of {channels} channels are no number where the layer gives 0: look for NaN, infinity and "
            "negative variances in the batch norm"
        )
    # Finite results are those of an interval around 0.
    most = _last(lambda keys: ~signs(keys).isnan(), zero, _MOST)
    least = -_last(lambda keys: ~signs(-keys).isnan(), zero, _MOST)
    low, high = signs(least) > 0, signs(most) > 0
    # The last key with the sign of the lowest one: from there on it is the other one.
    turn = _last(lambda keys: (signs(keys) > 0) == low, least, most)
    always = low == high
    infinity = torch.full((channels,), torch.inf, dtype=torch.float32, device=device)
    lower = torch.where(low, -infinity, torch.where(always, infinity, _values(turn + 1)))
    upper = torch.where(high, infinity, torch.where(always, -infinity, _values(turn)))
    return Thresholds(lower, upper, _values(least), _values(most))


def _values(keys: Tensor) -> Tensor:
    """Float32 values of integers: in the same order, 0 being 0, each the next one after the one before."""
    magnitude = keys.abs().to(torch.int32).view(torch.float32)
    return torch.where(keys < 0, -magnitude, magnitude)


def _last(holds: Callable[[Tensor], Tensor], first: Tensor, last: Tensor | int) -> Tensor:
    """The largest key of ``first`` .. ``last`` for which ``holds``: true at ``first``, and from some key
    on false, channel by channel."""
    low = first.clone()
    high = torch.zeros_like(first) + last
    while bool((low < high).any()):
        middle = low + (high - low + 1) // 2
        true = holds(middle)
        low = torch.where(true, middle, low)
        high = torch.where(true, high, middle - 1)
    return low


def _by_channel(modules: list[nn.Module]) -> bool:
    """Whether one of them has parameters for each channel, whose dimension must then be the second."""
    return any(isinstance(module, _BatchNorm | RSign) for module in modules)


# ---- whole models ---------------------------------------------------------------------------


def _chains(calls: Calls) -> Iterator[tuple[fx.Node, list[fx.Node], list[fx.Node]]]:
    """Calls of a layer, of the modules between it and its signs, the sign included, and of the layers that
    take these."""
    for node in calls.nodes:
        layer = _plain_layer(calls.alone(node))
        if layer is None:
            continue
        between: list[fx.Node] = []
        last, signed = node, False
        while not signed and len(last.users) == 1:
            last = next(iter(last.users))
            module = calls.alone(last)
            if not isinstance(module, _SIGNS + _BETWEEN) or not _fits(module, layer):
                break
            between.append(last)
            signed = isinstance(module, _SIGNS)
        takers = list(last.users)
        if signed and takers and all(_takes(calls.alone(taker), layer) for taker in takers):
            yield node, between, takers


def _plain_layer(module: nn.Module | None) -> Layer | None:
    """``module`` if it is a low-bit layer that does what the kernels do and nothing else."""
    if not isinstance(module, QuantizedLinear | QuantizedConv) or "forward" in vars(module):
        return None
    plain = type(module).forward in (QuantizedLinear.forward, QuantizedConv.forward)
    return module if plain else None


def _dims(layer: Layer) -> int:
    """Spatial dimensions: 0 of a linear layer."""
    return layer.dims if isinstance(layer, QuantizedConv) else 0


def _takes(module: nn.Module | None, giver: Layer) -> bool:
    """Whether ``module`` is a layer that takes the signs of ``giver``'s results."""
    taker = _plain_layer(module)
    if taker is None or taker.activation_bits != 1 or _dims(taker) != _dims(giver):
        return False
    channels = taker.in_channels if isinstance(taker, QuantizedConv) else taker.in_features
    return channels == giver.out_features


def _fits(module: nn.Module, layer: Layer) -> bool:
    """Whether the channels that ``module`` has parameters for are those of ``layer``'s results."""
    if isinstance(module, _BatchNorm):
        return isinstance(layer, QuantizedConv) or module.num_features == layer.out_features
    if isinstance(module, RSign):
        return module.channels == layer.out_features and module.dim % (_dims(layer) + 2) == 1
    return True
