"""The images and the networks of ``classify``. Worker side: imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitbench.data.images import Split, by_channel, load_images
from bitbench.layers import registry
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.workloads.ledger import model_figures
from bitbench.workloads.training import trainable_conv_factory, trainable_factory

if TYPE_CHECKING:
    from bitbench.workloads.classify import ClassifySpec


class ImageNetwork:
    """The images of an entry, as bytes on ``device``, normalised when they are used, and the network that is
    to tell them apart.

    Attributes: ``train`` and ``test``, images uint8 ``[n, channels, rows, columns]`` and their classes int64
    ``[n]``.
    """

    def __init__(self, spec: ClassifySpec, device: str) -> None:
        images = load_images(spec.images)
        self.spec = spec
        self.device = device
        self.classes = images.classes
        self.train = _tensors(images.train, device, spec.train_images)
        self.test = _tensors(images.test, device)
        pixels = images.train.images
        # A constant image has no deviation to divide by.
        self.mean, self.deviation = float(pixels.mean()), max(float(pixels.std()), 1.0)

    def network(self, kind: LayerKind, spec: LayerSpec, seed: int) -> nn.Module:
        """The network with ``kind``'s layers, trainable, and the initial weights of ``seed``."""
        from impl.models.mlp import MLP
        from impl.models.resnet import ResNet, float_conv

        entry = self.spec
        linear = trainable_factory(kind, spec)
        if entry.network == "mlp":
            sizes = (self.train[0][0].numel(), entry.hidden, entry.hidden, self.classes)
            return MLP(sizes, linear, seed=seed).to(self.device)
        conv = trainable_conv_factory(kind, spec)
        model = ResNet(
            entry.blocks,
            entry.widths,
            self.train[0].shape[1],
            self.classes,
            conv=conv,
            stem=conv if entry.ends == "same" else float_conv,
            linear=linear if entry.ends == "same" else nn.Linear,
            # After ReLU every sign is +1.
            activation=F.hardtanh if getattr(spec, "activation_bits", None) == 1 else F.relu,
            seed=seed,
        )
        # Float convolutions as narrow as these are faster so.
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def normalised(self, images: Tensor) -> Tensor:
        """Bytes as float32 with mean 0 and deviation 1 over the training images, as the network takes them:
        ``[n, pixels]``, or ``[n, channels, rows, columns]``."""
        values = (images.float() - self.mean) / self.deviation
        return values.flatten(1) if self.spec.network == "mlp" else values

    def byte_figures(self, model: nn.Module) -> dict[str, float]:
        """Bytes of ``model``, one of :meth:`network`, and what they are to the same network in float32."""
        plain = registry.get("linear")
        whole = self.network(plain, plain.spec.model_validate({"kind": "linear"}), seed=0)
        return model_figures(model, whole)


def _tensors(split: Split, device: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    return by_channel(split, count).to(device), torch.tensor(split.labels[:count]).long().to(device)
