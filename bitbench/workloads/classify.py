"""``classify``: a small perceptron trained from scratch with each layer kind to tell images apart.

All of its three matrices are the kind's trainable form, the last one included: quantisation-aware
where the kind quantises, without a float copy of the weights where it has none. Those train by
DiodeMix alone, everything else by AdamW (:func:`bitbench.workloads.training.optimiser_for`).
Layers of one seed start from the same float weights and see the same batches in the same order;
the score is the share of the test images that the network gets right. Seeds are what the interval
is taken over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from bitbench.data.catalog import names
from bitbench.data.images import SYNTHETIC, SYNTHETIC_TRAIN, Split, check_images, load_images
from bitbench.errors import UserError
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.workloads.base import Context, PointPlan, Session, WorkloadKind, WorkloadSpec
from bitbench.workloads.training import TrainingSession, optimiser_for, schedule, trainable_factory

if TYPE_CHECKING:
    from torch import Tensor

    from impl.models.mlp import MLP

SCORED_AT_ONCE = 1000
"""Test images of a call."""

# What the estimate is made of: MNIST, measured on two cores of a server.
PIXELS, CLASSES, IMAGES = 784, 10, 60_000
STEP_SECONDS = 1e-3
"""Of a step beside its arithmetic."""
FLOPS = 1.5e11
QUANTISED_COST = 2.0
"""Time of a step of a kind that quantises, or flips, over that of a float step."""
LOAD_SECONDS = 0.1


class ClassifySpec(WorkloadSpec):
    """``{kind: classify, images: mnist, seeds: 5}``"""

    images: str
    """Catalog name, ``synthetic``, or a folder of four idx files."""
    hidden: int = Field(default=256, ge=1, le=1 << 14)
    """Features of each of the two hidden layers."""
    epochs: int = Field(default=6, ge=1)
    """Times that every training image is seen."""
    batch: int = Field(default=250, ge=2)
    """Images of a step; the last ones of an epoch that fill no batch are left out."""
    seeds: int = Field(default=5, ge=1)
    first_seed: int = Field(default=0, ge=0)
    lr: float = Field(default=4e-3, gt=0, lt=1)
    """Peak learning rate of AdamW's rule."""

    @field_validator("images")
    @classmethod
    def _known_images(cls, images: str) -> str:
        return check_images(images)


class ClassifyWorkload(WorkloadKind):
    name: ClassVar[str] = "classify"
    spec: ClassVar[type[ClassifySpec]] = ClassifySpec
    axes: ClassVar[tuple[str, ...]] = ("seeds",)

    def points(self, spec: ClassifySpec) -> list[PointPlan]:
        params = {"images": spec.images, "hidden": spec.hidden, "epochs": spec.epochs}
        return [PointPlan(params, "once", "seeds", launches=spec.seeds)]

    def quick(self, spec: ClassifySpec) -> ClassifySpec:
        return spec.model_copy(update={"seeds": 1, "epochs": 1})

    def estimate(self, spec: ClassifySpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        weights = spec.hidden * (PIXELS + spec.hidden + CLASSES)
        images = SYNTHETIC_TRAIN if spec.images == SYNTHETIC else IMAGES
        steps = spec.epochs * images / spec.batch
        slowdown = 1.0 if layer.kind == "linear" else QUANTISED_COST
        return slowdown * steps * (STEP_SECONDS + 6 * weights * spec.batch / FLOPS)

    def estimate_open(self, spec: ClassifySpec, plan: PointPlan) -> float:  # noqa: ARG002
        return LOAD_SECONDS

    def data(self, spec: ClassifySpec) -> list[str]:
        return [spec.images] if spec.images in names("images") else []

    def open(self, spec: ClassifySpec, params: dict[str, Any], context: Context) -> Session:  # noqa: ARG002
        return ClassifySession(spec, context)


class ClassifySession(TrainingSession):
    """The images, shared by all layers: bytes, normalised batch by batch."""

    def __init__(self, spec: ClassifySpec, context: Context) -> None:
        self.spec = spec
        self.context = context
        images = load_images(spec.images)
        self.steps_per_epoch = len(images.train.labels) // spec.batch
        if not self.steps_per_epoch:
            raise UserError(
                f"images {spec.images} has {len(images.train.labels)} to train on, less than a batch of "
                f"{spec.batch}",
                "Use a smaller batch.",
            )
        self.classes = images.classes
        self.train = _tensors(images.train, context.device)
        self.test = _tensors(images.test, context.device)
        pixels = images.train.images
        # A constant image has no deviation to divide by.
        self.mean, self.deviation = float(pixels.mean()), max(float(pixels.std()), 1.0)

    def _network(self, kind: LayerKind, spec: LayerSpec, seed: int) -> MLP:
        from impl.models.mlp import MLP

        hidden = self.spec.hidden
        sizes = (self.train[0].shape[1], hidden, hidden, self.classes)
        return MLP(sizes, trainable_factory(kind, spec), seed=seed).to(self.context.device)

    def _fit(self, model: MLP, seed: int) -> float:
        """Train; returns the loss (nat) of the last step."""
        import torch
        import torch.nn.functional as F

        spec = self.spec
        steps = spec.epochs * self.steps_per_epoch
        optimiser = optimiser_for(model, lr=spec.lr, steps=steps)
        rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, steps))
        generator = torch.Generator().manual_seed(seed)
        images, labels = self.train
        model.train()
        value = math.nan
        for _ in range(spec.epochs):
            order = torch.randperm(len(labels), generator=generator)
            for batch in order.split(spec.batch)[: self.steps_per_epoch]:
                chosen = batch.to(self.context.device)
                optimiser.zero_grad(set_to_none=True)
                loss = F.cross_entropy(model(self._normalised(images[chosen])), labels[chosen])
                loss.backward()
                optimiser.step()
                rates.step()
            value = float(loss.detach())
        return value

    def _score(self, model: MLP) -> dict[str, float]:
        """Share of the test images whose class has the largest logit."""
        import torch

        model.eval()
        with torch.no_grad():
            right = sum(
                int((model(self._normalised(images)).argmax(dim=1) == labels).sum())
                for images, labels in zip(*(part.split(SCORED_AT_ONCE) for part in self.test), strict=True)
            )
        return {"training.accuracy": right / len(self.test[1])}

    def _normalised(self, images: Tensor) -> Tensor:
        """Bytes ``[n, pixels]`` as float32 with mean 0 and deviation 1 over the training images."""
        return (images.float() - self.mean) / self.deviation


def _tensors(split: Split, device: str) -> tuple[Tensor, Tensor]:
    """Images uint8 ``[n, pixels]`` and labels int64 ``[n]``."""
    import torch

    count = len(split.labels)
    return (
        torch.tensor(split.images).view(count, -1).to(device),
        torch.tensor(split.labels).long().to(device),
    )
