"""The time of a network that tells images apart, packed: a timed point of ``classify``.

The timed call classifies a batch of test images. The network has its initial weights: its time does not
depend on training. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitbench.layers.base import LayerSpec
from bitbench.workloads.base import Context, Session
from bitbench.workloads.conversions import Converted, supported
from bitbench.workloads.network_subject import NetworkSubject
from bitbench.workloads.training import packed

if TYPE_CHECKING:
    from torch import nn

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
        return NetworkSubject(Converted(model.requires_grad_(False).eval(), layers, kind, spec), x)


def low_bit_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``model`` that are of a kind of :mod:`impl`, by name; of a float network all that
    multiply."""
    from torch import nn

    from impl.layers.quantized import QuantizedLayer

    parts = dict(model.named_modules())
    found = {name: part for name, part in parts.items() if isinstance(part, QuantizedLayer)}
    plain = {name: part for name, part in parts.items() if isinstance(part, nn.Linear | nn.Conv2d)}
    return {**(found or plain)}
