"""What is timed of a network that tells images apart, by the workloads that have one: ``classify`` and
``image_accuracy``. Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitbench.store.schema import Check
from bitbench.workloads.base import Subject
from bitbench.workloads.conversions import Converted
from bitbench.workloads.layer_check import check_seen, fallback_of, poison, sampled_images, watched

if TYPE_CHECKING:
    from torch import Tensor


class NetworkSubject(Subject):
    """A whole network, called on one fixed batch of images ``x``."""

    replayable = True
    many_kernels = True

    def __init__(self, converted: Converted, x: Tensor) -> None:
        self.converted = converted
        self.x = x

    def call(self) -> Tensor:
        """Logits ``[batch, classes]``."""
        import torch

        with torch.inference_mode():
            logits: Tensor = self.converted.model(self.x)
        return logits

    def check(self) -> Check:
        """Each layer of the kind against the exact reference, on what it is given of a few images of the
        batch; all logits must be finite. What the network does beside these layers is torch's."""
        converted = self.converted
        served = converted.served()  # the calls that were timed
        poison(self.x, tuple(self.call().shape))
        with watched(converted.layers.values(), sampled_images(len(self.x))) as seen:
            logits = self.call()
        self.kernel = ", ".join(sorted(served | converted.served()))
        return check_seen(converted.kind, converted.spec, seen, sound=bool(logits.isfinite().all()))

    def fallback(self) -> str | None:
        return fallback_of(self.converted.kind, self.converted.spec, self.kernel)
