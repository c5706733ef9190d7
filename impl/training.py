"""From a float network to its quantised one in small steps, and clipping of latent weights.

Quantising a trained network all at once throws away most of what it knows. Annealing blends the
quantised values in, for every quantised linear layer and convolution in training form:

    weight used      = (1 - s) w + s Q(w)
    activations used = (1 - t) x + t Q(x)        where ``activation_bits`` is set

with strengths s and t that a schedule raises from 0 (float) to 1 (quantised), as Hugging Face's
lambda does for BitNet fine-tuning (2024). The gradient is that of the blend: with the ``identity``
estimator it passes unchanged whatever the strength.

    model = impl.prepare(model, activation_bits=8)
    with Annealing(model, weights=Ramp(0, 1000), activations=Switch(500)) as annealing:
        for batch in data:
            loss(model(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
            annealing.step()
    impl.pack(model)

For a schedule that differs from layer to layer make one :class:`Annealing` for each part of the model.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from impl.checks import check_choice
from impl.layers.forms import TwoForms
from impl.layers.int8_training import Int8Training
from impl.layers.quantized import QuantizedLayer
from impl.quantizers.sign import check_positive_number

Schedule = Callable[[int], float]
"""The strength, from 0 to 1, after so many steps of the optimizer."""

RAMPS = ("linear", "cosine")


@dataclass(frozen=True)
class Ramp:
    """Strength 0 up to step ``begin``, 1 from step ``end``, and between them a straight line, or with
    ``shape="cosine"`` half a cosine."""

    begin: int
    end: int
    shape: str = "linear"

    def __post_init__(self) -> None:
        check_choice("ramp", self.shape, RAMPS)
        if not 0 <= self.begin < self.end:
            raise ValueError(
                f"a ramp needs 0 <= begin < end, got begin={self.begin} and end={self.end}: "
                "for a jump use Switch"
            )

    def __call__(self, step: int) -> float:
        progress = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Switch:
    """Strength 0 before step ``at``, 1 from then on."""

    at: int

    def __call__(self, step: int) -> float:
        return float(step >= self.at)


class Strength(NamedTuple):
    """How far quantisation is blended in: 0 is float, 1 fully quantised."""

    weights: float
    activations: float


FULL = Strength(1.0, 1.0)


class Annealing:
    """Follows schedules, step by step, on the quantised layers of a model.

    ``weights`` and ``activations`` are callables such as :class:`Ramp` and :class:`Switch`, from a
    number of steps to a strength; None leaves that strength as it is. The strengths of step 0 are in
    force from construction on; call :meth:`step` after every step of the optimizer. Training and
    evaluation use the same values.

    As a context manager it calls :meth:`finish` on leaving, unless an exception leaves. Layers that
    are packed meanwhile drop out. The strengths are no part of a model's ``state_dict``: save that of
    the annealing beside it.

    Raises ValueError where no layer is in training form, where there is nothing to anneal, and where a
    schedule leaves 0 .. 1.
    """

    def __init__(
        self, model: nn.Module, *, weights: Schedule | None = None, activations: Schedule | None = None
    ) -> None:
        layers = _latent_layers(model)
        if weights is None and activations is None:
            raise ValueError("nothing to anneal: give a schedule for weights, activations or both")
        if activations is not None and all(layer.activation_bits is None for layer in layers):
            raise ValueError(
                "a schedule for activations, but no layer quantises them: build layers with activation_bits=8"
            )
        self.model = model
        self.weights = weights
        self.activations = activations
        self.current_step = 0
        self(0)

    def __call__(self, step: int) -> None:
        """Set the strengths of ``step`` and go on from there."""
        count = operator.index(step)
        if count < 0:
            raise ValueError(f"step must be at least 0, got {count}")
        weights = None if self.weights is None else self.weights(count)
        activations = None if self.activations is None else self.activations(count)
        layers = [layer for layer in _quantized_layers(self.model) if not layer.is_packed]
        _set(layers, weights, activations)
        self.current_step = count

    def step(self) -> None:
        """Go on to the next step."""
        self(self.current_step + 1)

    def finish(self) -> None:
        """Quantise fully from now on, whatever the schedules say."""
        _set(_quantized_layers(self.model), *FULL)

    def state_dict(self) -> dict[str, int]:
        """The step reached, for a checkpoint."""
        return {"step": self.current_step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the step of ``state``, which :meth:`state_dict` returned."""
        if set(state) != {"step"}:
            raise ValueError(f"the state of an Annealing holds 'step' only, got {sorted(state)}")
        self(state["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()


def set_strength(model: nn.Module, *, weights: float | None = None, activations: float | None = None) -> None:
    """Blend quantisation into the layers of ``model`` to these strengths (None: as they are).

    Raises ValueError for a strength outside 0 .. 1 and where no layer is in training form.
    """
    _set(_latent_layers(model), weights, activations)


@contextlib.contextmanager
def at_strength(
    model: nn.Module, *, weights: float | None = None, activations: float | None = None
) -> Iterator[None]:
    """Within the block the layers of ``model`` have these strengths (None: as they are).

    ``with at_strength(model, weights=0, activations=0)`` evaluates the float network behind a quantised
    one. Run backward() inside the block as well: the strengths enter the gradient.
    """
    layers = _latent_layers(model)
    before = [strength_of(layer) for layer in layers]
    _set(layers, weights, activations)
    try:
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            _assign(layer, previous)


def strength_of(layer: QuantizedLayer) -> Strength:
    """The strengths that ``layer`` uses in training form."""
    return layer._strength if isinstance(layer, _Blended) else FULL


class WeightClip:
    """Clips latent weights to -clip_value .. clip_value, in place, whenever it is called.

    Estimators with a window (``clip``, ``approx_sign``, ``magnitude_aware``) have no gradient outside
    it: a weight that an optimizer step carried out would stay for ever. ``target`` is a module, for
    the latent weights of its quantised layers, embeddings included, or an iterable of tensors. To
    clip after every step:

        optimizer.register_step_post_hook(WeightClip(model))

    Arguments of the call are ignored. Raises ValueError where ``target`` holds nothing to clip.
    """

    def __init__(self, target: nn.Module | Iterable[Tensor], clip_value: float = 1.0) -> None:
        self.clip_value = check_positive_number("clip_value", clip_value)
        self._module = target if isinstance(target, nn.Module) else None
        self._tensors = [] if isinstance(target, nn.Module) else list(target)
        if self._module is None and not self._tensors:
            raise ValueError("no tensors to clip: give a module or a non-empty iterable")
        if self._module is not None and not self._weights():
            raise ValueError(
                "the module holds no quantised layer in training form: prepare() it, or unpack() it"
            )

    @torch.no_grad()
    def __call__(self, *_: object) -> None:
        for weight in self._weights():
            weight.clamp_(-self.clip_value, self.clip_value)

    def _weights(self) -> list[Tensor]:
        if self._module is None:
            return self._tensors
        layers = (m for m in self._module.modules() if isinstance(m, TwoForms))
        return [layer.weight for layer in layers if layer.weight is not None]


class _Blended(QuantizedLayer):
    """A quantised layer whose latent form uses blended values.

    A layer takes a subclass of this as its class while its strengths are below 1 and gets its own class
    back at full strength: neither other layers nor trained models pay for annealing. The strengths
    also lie in buffers, so that compiled graphs read rather than embed them.
    """

    weight_strength: Tensor
    activation_strength: Tensor
    _strength: Strength
    _plain: ClassVar[type[QuantizedLayer]]  # of every subclass: the class to go back to

    def _activations(self, x: Tensor, bits: int | None) -> Tensor:
        exact = super()._activations(x, None)  # type: ignore[safe-super]
        if bits is None:
            return exact
        rounded = super()._activations(x, bits)  # type: ignore[safe-super]
        return torch.lerp(exact, rounded, self.activation_strength.to(x.dtype))

    def _fake_quantized_weight(self) -> Tensor:
        weight = self._latent("the latent weight")
        return torch.lerp(weight, super()._fake_quantized_weight(), self.weight_strength.to(weight.dtype))

    def dequantize(self, rows: slice | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that forward uses: in training form, the blended one."""
        quantized = super().dequantize(rows, dtype)
        if self.weight is None:
            return quantized
        latent = self.weight.detach()[rows or slice(None)].to(dtype)
        return torch.lerp(latent, quantized, self.weight_strength.to(dtype))

    def pack(self) -> Self:
        """As :meth:`QuantizedLayer.pack`; RuntimeError below full strength, where it would change what
        the layer computes."""
        if not self.is_packed and self._strength != FULL:
            raise RuntimeError(
                f"packing quantises fully, this layer is at {self._strength}: first finish() its Annealing, "
                "or set_strength(model, weights=1, activations=1)"
            )
        return super().pack()

    def fill_strengths(self) -> None:
        """Write the strengths into the buffers."""
        self.weight_strength.fill_(self._strength.weights)
        self.activation_strength.fill_(self._strength.activations)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.fill_strengths()  # to_empty() leaves them undefined, casts round them
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copies and pickles name the class that can be imported."""
        return _restore, (self._plain,), self.__getstate__()

    def extra_repr(self) -> str:
        weights, activations = self._strength
        return f"{super().extra_repr()}, strength={weights:g}/{activations:g}"


@functools.cache
def _blended_class(plain: type[QuantizedLayer]) -> type[_Blended]:
    return cast("type[_Blended]", type(f"Blended{plain.__name__}", (_Blended, plain), {"_plain": plain}))


def _restore(plain: type[QuantizedLayer]) -> _Blended:
    cls = _blended_class(plain)
    return cls.__new__(cls)


def _assign(layer: QuantizedLayer, value: Strength) -> None:
    """Give ``layer`` these strengths, and the class that goes with them."""
    if not isinstance(layer, _Blended):
        if value == FULL:
            return
        device = next(t.device for t in (layer.weight, layer.codes) if t is not None)
        with torch.inference_mode(False):  # autograd refuses tensors made in inference mode
            for name in ("weight_strength", "activation_strength"):
                layer.register_buffer(name, torch.ones((), device=device), persistent=False)
        layer.__class__ = _blended_class(type(layer))
    blended = cast("_Blended", layer)
    blended._strength = value
    blended.fill_strengths()
    # Only where the class is ours: one derived from it since holds more than blending.
    if value == FULL and "_plain" in vars(type(blended)):
        plain = blended._plain
        for name in ("weight_strength", "activation_strength", "_strength"):
            delattr(blended, name)
        layer.__class__ = plain


def _set(layers: Iterable[QuantizedLayer], weights: float | None, activations: float | None) -> None:
    for name, value in (("weights", weights), ("activations", activations)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"the strength of {name} must lie in 0 .. 1, got {value!r}")
    layers = list(layers)
    below = (weights is not None and weights < 1) or (activations is not None and activations < 1)
    if below and any(isinstance(layer, Int8Training) and layer.int8_training for layer in layers):
        raise ValueError(
            f"layers with int8_training=True multiply whole codes and cannot blend float values in (weights="
            f"{weights}, activations={activations}): set layer.int8_training = True once annealing has ended"
        )
    for layer in layers:
        old = strength_of(layer)
        _assign(
            layer,
            Strength(
                old.weights if weights is None else float(weights),
                old.activations if activations is None else float(activations),
            ),
        )


def _quantized_layers(model: nn.Module) -> list[QuantizedLayer]:
    return [m for m in model.modules() if isinstance(m, QuantizedLayer)]


def _latent_layers(model: nn.Module) -> list[QuantizedLayer]:
    """The quantised layers of ``model`` in training form; ValueError where there is none."""
    layers = [layer for layer in _quantized_layers(model) if not layer.is_packed]
    if not layers:
        raise ValueError(
            "the model holds no quantised linear layer or convolution in training form: prepare() it, or "
            "unpack() it"
        )
    return layers
