"""The time of a network that tells images apart, packed: a timed point of ``classify``.

The timed call classifies a batch of test images. The network has its initial weights: its time does not
depend on training. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.store.schema import Check
from bitbench.workloads.base import Context, Session, Subject
from bitbench.workloads.language_model import supported
from bitbench.workloads.layer_check import check_seen, poison, watched
from bitbench.workloads.training import packed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitbench.workloads.classify import ClassifySpec


class NetworkSession(Session):
    """The images, shared by all layers."""

    def __init__(self, spec: ClassifySpec, batch: int, context: Context) -> None:
        from bitbench.workloads.image_network import ImageNetwork

        self.images = ImageNetwork(spec, context.device)
        self.batch = batch
        self.context = context

    def build(self, layer: str, spec: LayerSpec) -> NetworkSubject:  # noqa: ARG002 - its name changes nothing
        import torch

        kind = supported(spec, self.context)
        torch.manual_seed(self.context.seed)  # for layers that draw random numbers of their own
        model = self.images.network(kind, spec, self.context.seed)
        layers = low_bit_layers(model)
        if getattr(spec, "form", "packed") == "packed":
            packed(model)
        count = len(self.images.test[0])
        chosen = torch.arange(self.batch, device=self.context.device) % count
        x = self.images.normalised(self.images.test[0][chosen])
        return NetworkSubject(kind, spec, model.requires_grad_(False).eval(), layers, x)


def low_bit_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model`` that are of a kind of :mod:`impl`; of a float network all that multiply."""
    from torch import nn

    from impl.layers.quantized import QuantizedLayer

    found: list[nn.Module] = [part for part in model.modules() if isinstance(part, QuantizedLayer)]
    return found or [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)]


class NetworkSubject(Subject):
    """One network, called on one fixed batch."""

    replayable = True
    many_kernels = True

    def __init__(
        self, kind: LayerKind, spec: LayerSpec, model: nn.Module, layers: list[nn.Module], x: Tensor
    ) -> None:
        self._kind = kind
        self._spec = spec
        self._model = model
        self._layers = layers
        self._x = x

    def call(self) -> Tensor:
        """Logits ``[batch, classes]``."""
        logits: Tensor = self._model(self._x)
        return logits

    def check(self) -> Check:
        """Each layer of the kind against the exact reference on the activations of the call."""
        import torch

        kernels = self._served()
        poison(self._x, (len(self._x), 10))
        with watched(self._layers) as seen:
            logits = self.call()
        self.kernel = ", ".join(sorted(kernels | self._served()))
        return check_seen(self._kind, self._spec, seen, sound=bool(torch.isfinite(logits).all()))

    def fallback(self) -> str | None:
        reasons = (self._kind.fallback(self._spec, name) for name in self.kernel.split(", "))
        return next((reason for reason in reasons if reason), None)

    def _served(self) -> set[str]:
        return {self._kind.kernel(layer) for layer in self._layers} - {""}
