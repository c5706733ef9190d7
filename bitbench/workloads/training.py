"""What the workloads that train share: a network by layer and seed, layers in trainable form, their
optimizer, the learning rate.

Importing this module imports no torch.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.suite.convolutions import ConvShape
from bitbench.workloads.base import Context, Outcome, Session, Unsupported
from bitbench.workloads.conversions import supported

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

WARMUP_SHARE = 0.05
FINAL_LR_SHARE = 0.1

FLIP_LR = 1e-3
"""Size of a vote of DiodeMix, its default: the margin that a binary weight starts from and falls back
to is as large."""
FLIP_THRESHOLD = 0.1
"""Surplus of opposing votes that a flip takes, as a share of the peak learning rate. The schedule
ends at this share: flips become rarer all through training, and end with it."""
FLIP_MEMORY = 0.2
"""Share of the training that the average of the votes looks back over, 1 / (1 - beta2) steps of it:
long enough to average over many batches, short enough for a weight to change its mind a few times."""


class TrainingSession(Session):
    """Trains a network with each layer, from the same seeds, and scores it. ``spec`` has ``first_seed``."""

    spec: Any
    context: Context

    @abstractmethod
    def _network(self, kind: LayerKind, spec: LayerSpec, seed: int) -> nn.Module:
        """The network with the kind's layers and the initial weights of ``seed``, on the device."""

    @abstractmethod
    def _fit(self, model: Any, seed: int) -> float:
        """Train on batches drawn by ``seed``; returns the loss (nat) of the last step."""

    @abstractmethod
    def _score(self, model: Any) -> dict[str, float]:
        """What the trained network reaches, by metric."""

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:
        import torch

        kind = supported(spec, self.context)
        seed = self.spec.first_seed + replicate
        torch.manual_seed(seed)  # for layers that draw random numbers of their own
        model = self._network(kind, spec, seed)
        started = time.perf_counter()
        loss = self._fit(model, seed)
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise ArithmeticError(f"training {layer} diverged: loss {loss} at the last step")
        return Outcome(
            metrics={**self._score(model), "training.loss": loss, "training.seconds": seconds},
            kernel=f"torch/training/{spec.kind}",
        )


def trainable_factory(kind: LayerKind, spec: LayerSpec) -> Callable[[int, int], nn.Module]:
    """``factory(in_features, out_features)``: the kind's trainable form, without bias, inside a float32
    network."""

    def linear(in_features: int, out_features: int) -> nn.Module:
        made = trainable(kind, spec, in_features, out_features)
        if kind.input_dtype(spec) == "float32":
            return made
        from bitbench.layers.cast import CastLinear

        return CastLinear(made)  # type: ignore[arg-type]

    return linear


def trainable_conv_factory(
    kind: LayerKind, spec: LayerSpec
) -> Callable[[int, int, int, int, int], nn.Module]:
    """``factory(in_channels, out_channels, kernel, stride, padding)``: the same of the kind's convolutions,
    with a padding of ``kernel // 2``."""
    if kind.input_dtype(spec) != "float32":
        raise Unsupported(
            f"a network of convolutions is float32 throughout, {spec.kind} layers of another dtype are not "
            "trained in it: leave `dtype` out"
        )

    def conv(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> nn.Module:
        # The size of an image changes nothing of the layer.
        shape = ConvShape(shape=[out_channels, in_channels], kernel=kernel, stride=stride, size=kernel)
        assert shape.padding == padding
        return _with_something_to_train(spec, kind.trainable_conv2d(spec, shape, bias=False))

    return conv


def packed(model: nn.Module) -> nn.Module:
    """``model``, trained, with the low-bit weights that its layers train packed, in place: the numbers are
    those that training used."""
    import impl
    from impl.layers.rules import MultiTernaryWeight

    for layer in model.modules():
        if isinstance(layer, MultiTernaryWeight):
            layer.refit = False  # it would fit codes and scales to the latent weight anew
    return impl.pack(model)


def trainable(
    kind: LayerKind, spec: LayerSpec, in_features: int, out_features: int, *, bias: bool = False
) -> nn.Module:
    """The kind's trainable form.

    Raises:
        Unsupported: it has nothing to train.
    """
    return _with_something_to_train(spec, kind.trainable(spec, in_features, out_features, bias=bias))


def _with_something_to_train(spec: LayerSpec, made: nn.Module) -> nn.Module:
    if not any(parameter.requires_grad for parameter in made.parameters()):
        raise Unsupported(f"a {spec.kind} layer has nothing to train")
    return made


def optimiser_for(
    model: nn.Module,
    *,
    lr: float,
    steps: int,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """AdamW; for a model with weights that have no float copy DiodeMix, for all of its parameters.

    DiodeMix descends those weights by flips and everything else by AdamW's rule, with the same
    ``lr`` and ``betas``. ``weight_decay`` goes to matrices of floats only. ``steps`` is the length of
    the training.
    """
    import torch

    from impl.optim import DiodeMix
    from impl.parameters import LowBitParameter

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stored = [p for p in trained if isinstance(p, LowBitParameter)]
    floats = [p for p in trained if not isinstance(p, LowBitParameter)]
    groups = [
        {"params": [p for p in floats if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in floats if p.dim() < 2], "weight_decay": 0.0},
    ]
    if not stored:
        return torch.optim.AdamW(groups, lr=lr, betas=betas)
    memory = max(2.0, FLIP_MEMORY * steps)
    flips = {
        "params": stored,
        "lr": FLIP_LR,
        "betas": (0.9, 1 - 1 / memory),
        "threshold": FLIP_THRESHOLD * FLIP_LR,
    }
    return DiodeMix([flips, *groups], lr=lr, betas=betas)


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to a tenth."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * (1 + math.cos(math.pi * progress)) / 2
